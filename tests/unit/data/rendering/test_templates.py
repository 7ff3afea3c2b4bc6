"""Each template against its golden file (trained text is in ⟦ ⟧), and properties of all templates."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mftcoder.config.data import DataConfig, RoleMarkers
from mftcoder.data.records.conversation import Conversation, Message
from mftcoder.data.rendering.jinja_template import JinjaTemplate
from mftcoder.data.rendering.templates import TEMPLATES, Template, TrainOn, load_template, render
from mftcoder.data.rendering.tokenization import Segment
from mftcoder.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from mftcoder.errors import ConfigError, DataError

GOLDEN = Path(__file__).parents[3] / "golden" / "templates"
MARKERS = {"system": "### System:\n", "user": "### Instruction:\n", "assistant": "### Response:\n"}
CONFIGS = {
    **{name: DataConfig(chat_template=name) for name in [*TEMPLATES, "auto"]},
    "role_markers": DataConfig(role_markers=RoleMarkers(**MARKERS)),
    "role_markers_lines": DataConfig(role_markers=RoleMarkers(**MARKERS, after_content="\n")),
}
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'] | trim"
    " + ' [/INST]' }}{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TAGGED = (
    "{% for message in messages %}{% if message.role == 'assistant' %}A:{% generation %}{{ message.content | upper }}<|im_end|>"
    "{% endgeneration %}{{ '\\n' }}{% else %}U:{{ message.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' and loop.last %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

SYSTEM = Message("system", "Be brief.", False)
TURNS = (
    Message("user", "Add 1 and 1.\nIn Python.", False),
    Message("assistant", "1 + 1", True),
    Message("user", "And 2?", False),
    Message("assistant", "one + 1 + 2\n", True),
)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir: Path) -> Tokenizer:
    return load_tokenizer(str(tiny_tokenizer_dir))


def chat(*messages: Message) -> Conversation:
    return Conversation("", "sums", messages, "x.jsonl:1")


def marked(segments: list[Segment]) -> str:
    return "".join(f"⟦{segment.text}⟧" if segment.trained else segment.text for segment in segments)


def plain(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def jinja(source: str, tokenizer: Tokenizer) -> JinjaTemplate:
    return JinjaTemplate(source, tokenizer.named_tokens, tokenizer.special_tokens, tokenizer.eos_token)


@pytest.mark.parametrize("name", CONFIGS)
def test_rendered_text_and_trained_spans_are_those_of_the_golden_file(name: str, tokenizer: Tokenizer) -> None:
    template = load_template(CONFIGS[name], tokenizer)
    parts = {
        "with a system message": marked(render(chat(SYSTEM, *TURNS), template, tokenizer)),
        "without": marked(render(chat(*TURNS[:2]), template, tokenizer)),
        "prompt": template.render_prompt((SYSTEM, *TURNS[:3])),
    }
    found = "".join(f"=== {title}\n{text}\n=== end\n" for title, text in parts.items())
    golden = GOLDEN / f"{name}.txt"
    assert golden.is_file(), f"read this text, mark by mark, and save it as {golden} if it is right:\n{found}"
    assert found == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_prompt_is_the_text_before_the_answer(name: str, tokenizer: Tokenizer) -> None:
    template = load_template(CONFIGS[name], tokenizer)
    for turn in (1, 3):
        untrained = [replace(message, trained=False) for message in TURNS[:turn]]
        segments = template.render_chat([*untrained, TURNS[turn]])
        assert segments[0].text == template.render_prompt(TURNS[:turn])
        assert segments[1].text == TURNS[turn].content + template.end


@pytest.mark.parametrize("name", CONFIGS)
def test_the_jinja_form_of_a_template_renders_the_same(name: str, tokenizer: Tokenizer) -> None:
    row = load_template(CONFIGS[name], tokenizer)
    twin = jinja(row.as_jinja(), tokenizer)
    for messages in ((SYSTEM, *TURNS), TURNS, TURNS[:3]):
        assert plain(twin.render_chat(messages)) == plain(row.render_chat(messages))
        assert twin.render_prompt(messages) == row.render_prompt(messages)
    assert marked(twin.render_chat(TURNS)) == marked(row.render_chat(TURNS))


def test_transformers_renders_the_jinja_form_in_the_same_way(tiny_tokenizer_dir: Path, tokenizer: Tokenizer) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    messages = [{"role": message.role, "content": message.content} for message in (SYSTEM, *TURNS)]
    for source in (tokenizer.chat_template, LLAMA_2, THINKING, TAGGED):
        assert source is not None
        expected = theirs.apply_chat_template(messages, chat_template=source, tokenize=False)
        assert plain(jinja(source, tokenizer).render_chat((SYSTEM, *TURNS))) == expected


def test_a_template_that_trims_contents_and_moves_the_system_message_is_supported(tokenizer: Tokenizer) -> None:
    assert marked(jinja(LLAMA_2, tokenizer).render_chat((SYSTEM, *TURNS))) == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nAdd 1 and 1.\nIn Python. [/INST]⟦ 1 + 1 <|im_end|>⟧"
        "<s>[INST] And 2? [/INST]⟦ one + 1 + 2 <|im_end|>⟧"
    )


def test_text_that_the_model_has_to_write_before_the_answer_is_trained(tokenizer: Tokenizer) -> None:
    segments = jinja(THINKING, tokenizer).render_chat(TURNS[:2])
    assert segments[1] == Segment("<think>\n\n</think>\n\n1 + 1<|im_end|>", True)


def test_generation_tags_mark_trained_text_even_in_rewritten_contents(tokenizer: Tokenizer) -> None:
    messages = (TURNS[0], Message("assistant", "no", False), TURNS[2], Message("assistant", "yes", True))
    assert marked(jinja(TAGGED, tokenizer).render_chat(messages)) == (
        "U:Add 1 and 1.\nIn Python.\nA:NO<|im_end|>\nU:And 2?\nA:⟦YES<|im_end|>⟧\n"
    )


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (TAGGED.replace("{% generation %}", "").replace("{% endgeneration %}", ""), "message 4: .* rewrites its content"),
        (LLAMA_2.replace(" + eos_token", ""), "message [24]: .* writes no EOS token after it"),
        ("{% for m in messages %}{{ m.content | replace('1', 'one') }}<|im_end|>{% endfor %}", "message 1: .* rewrites its content"),
        ("{% for m in messages %}{{ m.content ~ m.content }}<|im_end|>{% endfor %}", "message 2: .* does not write its content exactly once"),
        ("{{ raise_exception('no chats today') }}", "refuses this conversation: no chats today"),
        ("{{ messages[9].content.missing() }}", "refuses this conversation"),
        ("{{ messages + 1 }}", "fails on this conversation"),
    ],
)  # fmt: skip
def test_a_template_whose_spans_cannot_be_found_is_a_clear_error(
    source: str, problem: str, tokenizer: Tokenizer
) -> None:
    with pytest.raises(DataError, match=problem):
        jinja(source, tokenizer).render_chat(TURNS)


def test_a_broken_or_missing_or_unknown_template_is_a_config_error(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_tokenizer_dir, tmp_path / "tokenizer")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for source, problem in ((None, "has no template of its own"), ("{% if %}", "is broken")):
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": source}))
        with pytest.raises(ConfigError, match=problem):
            load_template(DataConfig(), load_tokenizer(str(folder)))
    with pytest.raises(ConfigError, match="Did you mean 'chatml'"):
        load_template(DataConfig(chat_template="chatlm"), load_tokenizer(str(folder)))


@pytest.mark.parametrize(
    ("train_on", "expected"),
    [("assistant", ["1 + 1<|im_end|>", "one + 1 + 2\n<|im_end|>"]), ("last_assistant", ["one + 1 + 2\n<|im_end|>"])],
)
def test_train_on_chooses_the_trained_answers(train_on: TrainOn, expected: list[str], tokenizer: Tokenizer) -> None:
    template = load_template(CONFIGS["chatml"], tokenizer)
    segments = render(chat(SYSTEM, *TURNS), template, tokenizer, train_on)
    assert [segment.text for segment in segments if segment.trained] == expected


def test_train_on_all_trains_everything_and_a_text_is_unchanged(tokenizer: Tokenizer) -> None:
    template = load_template(CONFIGS["chatml"], tokenizer)
    assert [segment.trained for segment in render(chat(SYSTEM, *TURNS), template, tokenizer, "all")] == [True]
    text = chat(Message("text", "def f(): pass", True))
    for train_on in ("assistant", "last_assistant", "all"):
        assert render(text, template, tokenizer, train_on) == [Segment("def f(): pass<|im_end|>", True)]  # type: ignore[arg-type]


contents = st.text(min_size=1).filter(str.strip)


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), contents, st.booleans()), min_size=1, max_size=5))
def test_any_conversation_keeps_its_text_and_trains_only_its_answers(turns: list[tuple[str, str, bool]]) -> None:
    tokenizer = load_tokenizer_once()
    messages = [Message(role, content, trained and role == "assistant") for role, content, trained in turns]  # type: ignore[arg-type]
    for name in ("chatml", "auto"):
        template: Template = load_template(CONFIGS[name], tokenizer)
        segments = template.render_chat(messages)
        assert plain(segments) == "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in messages)
        trained = [m.content + "<|im_end|>" for m in messages if m.trained]
        assert [segment.text for segment in segments if segment.trained] == trained


_loaded: list[Tokenizer] = []


def load_tokenizer_once() -> Tokenizer:
    return _loaded[0]


@pytest.fixture(autouse=True, scope="module")
def _for_properties(tokenizer: Tokenizer) -> None:
    """hypothesis refuses a function-scoped fixture in a test that it runs many times, so the tokenizer is passed here."""
    _loaded[:] = [tokenizer]
