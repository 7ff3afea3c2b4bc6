"""What a request may hold."""

from typing import Any

import pytest
from pydantic import ValidationError

from mftcoder.serving.protocol import Asked, ChatRequest, CompletionRequest, InfillRequest

CHAT = {"messages": [{"role": "user", "content": "x"}]}
PROMPT = {"prompt": "x"}
GAP = {"input_prefix": "a", "input_suffix": "b"}


@pytest.mark.parametrize("stop", ["", [""], ["\n", ""]])
def test_an_empty_stop_word_is_refused(stop: Any) -> None:
    with pytest.raises(ValidationError, match="an empty text ends no text"):
        CompletionRequest.model_validate({**PROMPT, "stop": stop})


@pytest.mark.parametrize(
    "field, values",
    {
        "temperature": ["0.5", True, float("nan")],
        "top_p": ["0.5", True],
        "seed": ["3", True, 2.0],
        "n": ["2", True, 2.0],
        "max_tokens": ["5", True, 5.0],
        "stream": ["true", 1],
        "stream_options": [{"include_usage": 1}, {"include_usge": True}],
        "complete_word": ["no", 0],
        "model": [5],
        "stop": [5, [5], ["x"] * 65],
    }.items(),
)
@pytest.mark.parametrize("kind, whole", [(ChatRequest, CHAT), (CompletionRequest, PROMPT)])
def test_a_value_of_another_type_is_refused_and_never_converted(
    kind: type[Asked], whole: dict[str, Any], field: str, values: list[Any]
) -> None:
    for value in values:
        with pytest.raises(ValidationError):
            kind.model_validate({**whole, field: value})


@pytest.mark.parametrize(
    "kind, fields",
    [
        (ChatRequest, {**CHAT, "logprobs": 1}),
        (ChatRequest, {**CHAT, "logprobs": True, "top_logprobs": "3"}),
        (ChatRequest, {**CHAT, "max_completion_tokens": "5"}),
        (ChatRequest, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "image_url": "b"}]}]}),
        (CompletionRequest, {**PROMPT, "logprobs": True}),
        (CompletionRequest, {**PROMPT, "best_of": True}),
        (CompletionRequest, {"prompt": [["5"]]}),
        (CompletionRequest, {"prompt": [True]}),
        (CompletionRequest, {"prompt": [5.0]}),
        (InfillRequest, {**GAP, "n_predict": "5"}),
        (InfillRequest, {**GAP, "t_max_predict_ms": float("inf")}),
        (InfillRequest, {**GAP, "input_extra": [{"text": "a", "file": "b"}]}),
    ],
)
def test_so_it_is_in_the_fields_of_one_path(kind: type[Asked], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(fields)


def test_a_whole_number_may_stand_for_a_number() -> None:
    asked = ChatRequest.model_validate({**CHAT, "temperature": 0, "top_p": 1})
    assert (asked.temperature, asked.top_p) == (0, 1)


def test_two_limits_of_a_chat_must_be_equal() -> None:
    assert ChatRequest.model_validate({**CHAT, "max_tokens": 5, "max_completion_tokens": 5})
    with pytest.raises(ValidationError, match="max_tokens: differs from max_completion_tokens"):
        ChatRequest.model_validate({**CHAT, "max_tokens": 5, "max_completion_tokens": 6})


def test_what_editors_send_without_meaning_anything_by_it_is_accepted() -> None:
    """A list of no tool calls, an empty name of the model, and more stop words than the protocol's four."""
    messages = [
        {"role": "assistant", "content": "a", "tool_calls": []},
        {"role": "user", "content": "b", "tool_calls": None},
    ]
    assert ChatRequest.model_validate({"messages": messages, "prompt_cache_options": {}, "moderation": None})
    assert len(CompletionRequest.model_validate({**PROMPT, "stop": [f"<{n}>" for n in range(40)]}).stop_words) == 40
    assert ChatRequest.model_validate({**CHAT, "model": ""}).model is None
    with pytest.raises(ValidationError, match="tool_calls"):
        ChatRequest.model_validate({"messages": [{**messages[0], "tool_calls": [{"id": "1"}]}, messages[1]]})


def test_the_files_that_editors_send_with_a_gap_are_accepted() -> None:
    """As llama.vscode and llama.vim send them: each with the time at which it was taken."""
    files = [{"text": "x = 1\n", "time": 1_700_000_000_000, "filename": "a.py"}]
    warm = {
        "prompt": "",
        "n_predict": 0,
        "samplers": [],
        "cache_prompt": True,
        "t_max_prompt_ms": 500,
        "t_max_predict_ms": 1,
    }
    asked = InfillRequest.model_validate({**GAP, **warm, "input_extra": files})
    assert [(file.filename, file.text) for file in asked.input_extra] == [("a.py", "x = 1\n")]


LLAMA_VSCODE = {
    "stream": False, "cache_prompt": True, "samplers": "edkypmxt", "temperature": 0.8, "dynatemp_range": 0,
    "dynatemp_exponent": 1, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "typical_p": 1, "xtc_probability": 0, "xtc_threshold": 0.1,
    "repeat_last_n": 64, "repeat_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0, "dry_multiplier": 0, "dry_base": 1.75,
    "dry_allowed_length": 2, "dry_penalty_last_n": -1, "max_tokens": -1, "timings_per_token": False,
}  # fmt: skip
"""What llama.vscode sends to change a piece of code."""


def test_an_edit_of_llama_vscode_is_accepted_with_its_bounds() -> None:
    asked = ChatRequest.model_validate({**CHAT, **LLAMA_VSCODE})
    assert (asked.top_k, asked.min_p, asked.max_tokens, asked.samplers) == (40, 0.05, -1, "edkypmxt")


@pytest.mark.parametrize(
    "field, value",
    [
        ("samplers", "tkpm"),
        ("samplers", "kpm"),
        ("samplers", "kpmti"),
        ("samplers", ""),
        ("samplers", ["top_k", "min_p", "top_p", "temperature"]),
        ("samplers", ["top_k", "top_p", "min_p", "infill", "temperature"]),
        ("dry_multiplier", 0.5),
        ("dynatemp_range", 0.1),
        ("repeat_penalty", 1.1),
        ("typical_p", 0.9),
        ("xtc_probability", 0.1),
        ("max_tokens", -2),
        ("max_tokens", 0),
        ("top_k", 1.0),
        ("top_k", -2),
        ("min_p", 1.5),
        ("min_p", True),
    ],
)
def test_what_would_change_the_text_of_such_an_edit_in_another_way_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        ChatRequest.model_validate({**CHAT, **LLAMA_VSCODE, field: value})


def test_a_gap_with_a_temperature_has_no_order_of_samplers() -> None:
    assert InfillRequest.model_validate({**GAP, "temperature": 0.5, "top_k": 40, "min_p": 0.1}).top_k == 40
    with pytest.raises(ValidationError, match="samplers: not supported by this server together with a temperature"):
        InfillRequest.model_validate({**GAP, "temperature": 0.5, "samplers": ["top_k", "infill"]})


def test_a_message_of_a_tool_is_refused_in_one_sentence() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    for message in (
        call,
        {"role": "tool", "tool_call_id": "1", "content": "a"},
        {**CHAT["messages"][0], "name": "bob"},
    ):
        with pytest.raises(ValidationError) as caught:
            ChatRequest.model_validate({"messages": [message]})
        (problem,) = caught.value.errors()
        assert problem["msg"].endswith("not supported by this server. Leave it out")
