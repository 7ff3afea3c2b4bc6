"""`mft serve` as a process, asked by the official client: with each engine that is installed."""

import concurrent.futures
import json
import shutil
import socket
import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mftcoder.cli import cli
from tests.forked import PATIENCE, finish
from tests.forked import run as mft
from tests.served import Server, served

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
get, post = partial(httpx.get, timeout=PATIENCE), partial(httpx.post, timeout=PATIENCE)

PROMPT = "def add(a, b):\n"
CHAT = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Write a loop."}]


def client_of(server: Server, key: str = "none") -> Any:
    return pytest.importorskip("openai").OpenAI(
        base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE
    )


@pytest.fixture(scope="module", params=["transformers", *(name for name in ("openvino", "vllm") if find_spec(name))])
def engine(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The options that choose the engine; they are the last ones."""
    return ("--engine", request.param, *(["--", "--enforce-eager"] if request.param == "vllm" else []))


@pytest.fixture(scope="module")
def tiny_llama_dir(tiny_llama_dir: Path, engine: tuple[str, ...], request: pytest.FixtureRequest) -> Path:
    """A model that the engine has an attention for."""
    return request.getfixturevalue("wide_headed_llama_dir") if "vllm" in engine else tiny_llama_dir


@pytest.fixture(scope="module")
def server(tiny_llama_dir: Path, engine: tuple[str, ...]) -> Iterator[Server]:
    with served(tiny_llama_dir, "--name", "tiny", "--dtype", "float32", "--max-requests", 70, *engine) as one:
        yield one


@pytest.fixture(scope="module")
def openai() -> Any:
    """The client's package, imported where it is needed: all workers import this file, and one runs it."""
    return pytest.importorskip("openai")


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    return client_of(server)


def greedy(client: Any, **more: Any) -> Any:
    asked = {"model": "tiny", "prompt": PROMPT, "temperature": 0, "max_tokens": 20, **more}
    return client.completions.create(**{"extra_body": {"complete_word": False}, **asked})


def sampled_chat(client: Any, **more: Any) -> Any:
    asked = {"model": "tiny", "messages": CHAT, "max_tokens": 20, "seed": 5, **more}
    return client.chat.completions.create(**asked)


def test_greedy_completions_are_the_texts_of_mft_generate(client: Any, tiny_llama_dir: Path, tmp_path: Path) -> None:
    words = ["generate", str(tiny_llama_dir), "--task", "mini", "--limit", "3", "--out", str(tmp_path)]
    CliRunner().invoke(cli, [*words, "--max-new-tokens", "20", "--dtype", "float32"], catch_exceptions=False)
    lines = next(tmp_path.glob("completions_mini_*.jsonl")).read_text().splitlines()[1:]
    written = {line["problem_id"]: line["text"] for line in map(json.loads, lines)}
    from mftcoder.benchmarks.catalogue import load
    from mftcoder.benchmarks.problem import Asking

    mini, asking = load("mini", None, 3), Asking()
    prompts = [mini.prompt(problem, asking) for problem in mini.problems]
    stops = mini.stop(mini.problems[0], asking)
    asked = greedy(client, prompt=prompts, stop=list(stops)[:16])
    assert {problem.id: choice.text for problem, choice in zip(mini.problems, asked.choices, strict=True)} == written


def test_bounds_that_leave_one_token_give_the_greedy_text(client: Any, engine: tuple[str, ...]) -> None:
    orders = [{}] if "vllm" in engine else [{}, {"samplers": "edkypmxt"}]
    for bounds in ({"top_k": 1}, {"min_p": 1.0}):
        for order in orders:
            found = greedy(client, temperature=2, extra_body={"complete_word": False, **bounds, **order})
            assert found.choices[0].text == greedy(client).choices[0].text
    assert greedy(client, temperature=2, seed=1).choices[0].text != greedy(client).choices[0].text


def test_a_temperature_that_an_engine_does_not_take_is_refused_and_ends_no_other_text(
    openai: Any, server: Server, client: Any, engine: tuple[str, ...]
) -> None:
    whole, stream = greedy(client, max_tokens=200), greedy(client, max_tokens=200, stream=True)
    first = next(iter(stream))
    if "vllm" in engine:
        with pytest.raises(openai.BadRequestError, match="takes temperatures up to 2"):
            greedy(client, temperature=2.5)
        body = {"input_prefix": "a", "input_suffix": "b", "temperature": 2.5}
        assert "takes temperatures up to 2" in post(f"{server.url}/infill", json=body).json()["error"]["message"]
    else:
        assert greedy(client, temperature=2.5).choices
    text = first.choices[0].text + "".join(chunk.choices[0].text for chunk in stream)
    assert text == whole.choices[0].text


def test_minus_one_token_is_the_rest_of_the_context(client: Any) -> None:
    asked = {"messages": CHAT, "model": "tiny", "temperature": 0}
    ends = [client.chat.completions.create(**asked, **most).usage for most in ({}, {"max_tokens": -1})]
    assert ends[0] == ends[1]
    assert greedy(client, max_tokens=-1).usage.completion_tokens > 20


def test_a_stream_of_a_chat_has_the_text_and_the_end_of_the_whole_answer(client: Any) -> None:
    whole = sampled_chat(client)
    chunks = list(sampled_chat(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert chunks[-1].usage == whole.usage
    assert whole.usage.completion_tokens == 20
    assert len({chunk.id for chunk in chunks}) == 1


def test_seed_and_n_give_choices_of_their_own_that_repeat(client: Any) -> None:
    one, again, other = (sampled_chat(client, n=3, seed=seed) for seed in (5, 5, 6))
    texts = [choice.message.content for choice in one.choices]
    assert len(set(texts)) == 3
    assert texts == [choice.message.content for choice in again.choices]
    assert set(texts).isdisjoint(choice.message.content for choice in other.choices)
    assert sampled_chat(client).choices[0].message.content == texts[0]
    assert len({sampled_chat(client, seed=None).choices[0].message.content for _ in range(3)}) == 3


def test_streamed_choices_are_told_apart_by_their_index(client: Any) -> None:
    whole = sampled_chat(client, n=3)
    texts = ["", "", ""]
    for chunk in sampled_chat(client, n=3, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_a_prompt_may_be_a_text_token_ids_or_a_list_of_either(client: Any, tiny_llama_dir: Path) -> None:
    from mftcoder.data.tokenizers.tokenizer import load_tokenizer

    ids = load_tokenizer(str(tiny_llama_dir)).encode(PROMPT)
    expected = greedy(client).choices[0].text
    assert greedy(client, prompt=ids).choices[0].text == expected
    for prompts in ([PROMPT, "x = "], [ids, ids[:2]]):
        found = greedy(client, prompt=prompts, n=2)
        assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
        assert [choice.text == expected for choice in found.choices] == [True, True, False, False]


def test_a_stop_word_ends_the_text_before_it(client: Any) -> None:
    whole = greedy(client).choices[0].text
    word = whole[5:8]
    for stream in (False, True):
        found = greedy(client, stop=[word, "never"], stream=stream)
        choices = [chunk.choices[0] for chunk in found] if stream else found.choices
        assert "".join(choice.text for choice in choices) == whole[: whole.index(word)]
        assert choices[-1].finish_reason == "stop"


def test_log_probabilities_of_a_completion_and_of_a_chat_name_every_token(client: Any) -> None:
    found = greedy(client, logprobs=2).choices[0]
    noted = found.logprobs
    assert len(noted.tokens) == len(noted.token_logprobs) == len(noted.top_logprobs) == 20
    assert all(value == max(top.values()) for value, top in zip(noted.token_logprobs, noted.top_logprobs, strict=True))
    assert noted.text_offset[0] == 0
    content = sampled_chat(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    text = sampled_chat(client).choices[0].message.content
    assert bytes(byte for token in content for byte in token.bytes).decode(errors="replace") == text
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in content)


REFUSED = {
    "an unknown model": ({"model": "gpt-7"}, 404, "model_not_found", "Known: tiny."),
    "a prompt as long as the context": ({"prompt": [5] * 512}, 400, "context_length_exceeded", "512 tokens"),
    "an empty prompt": ({"prompt": ""}, 400, None, "The prompt is empty"),
    "a token id that is none": ({"prompt": [10**6]}, 400, None, "Token ids must be from 0 to 999"),
    "a suffix without a format for it": ({"suffix": "return c"}, 400, None, "cannot fill in the middle"),
    "a setting that would be ignored": ({"frequency_penalty": 1.5}, 400, None, "frequency_penalty: not supported"),
    "a field that does not exist": ({"extra_body": {"tempratur": 1}}, 400, None, "tempratur: Extra inputs"),
    "a wrong type": ({"max_tokens": "many"}, 400, None, "max_tokens: Input should be a valid integer"),
    "no temperature": ({"temperature": -1}, 400, None, "temperature: Input should be greater"),
    "more choices than a request may have": ({"prompt": ["a"] * 100, "n": 2}, 400, None, "at most 128"),
    "more texts than the server ever takes": ({"prompt": ["a"] * 71}, 400, None, "this server takes at most 70"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused_in_the_words_of_the_protocol(openai: Any, client: Any, name: str) -> None:
    fields, status, code, message = REFUSED[name]
    with pytest.raises(openai.APIStatusError) as caught:
        greedy(client, **fields)
    assert caught.value.status_code == status
    assert caught.value.body["code"] == code
    assert message in caught.value.body["message"]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
        [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}],
        [{"role": "tool", "content": "y", "tool_call_id": "1"}],
        [],
    ],
)
def test_chats_that_the_template_was_not_trained_on_are_refused(
    openai: Any, client: Any, messages: list[dict[str, Any]]
) -> None:
    with pytest.raises(openai.BadRequestError):
        sampled_chat(client, messages=messages)


def test_models_are_listed_and_found_by_name(openai: Any, client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_64_clients_at_once_lose_no_request_and_get_the_texts_of_one(client: Any) -> None:
    prompts = [f"def f{number}(x):\n" for number in range(64)]
    alone = [greedy(client, prompt=prompt, max_tokens=8).choices[0].text for prompt in prompts[:8]]
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        together = list(pool.map(lambda prompt: greedy(client, prompt=prompt, max_tokens=8).choices[0].text, prompts))
    assert together[:8] == alone
    assert len(together) == 64


def test_more_texts_than_the_server_takes_get_429_and_the_others_their_answers(openai: Any, client: Any) -> None:
    def ask(number: int) -> int:
        try:
            return len(greedy(client, prompt=f"x{number} = ", n=10, max_tokens=60, temperature=1).choices)
        except openai.RateLimitError as error:
            assert error.response.headers["Retry-After"] == "1"
            return 0

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, range(16)))
    assert set(found) == {0, 10}
    assert len(greedy(client).choices) == 1


def test_a_prompt_that_ends_inside_a_word_is_completed_from_there(client: Any, tiny_llama_dir: Path) -> None:
    """The log probabilities name the tokens, the first of which may begin in the prompt."""
    prompt = "from pathlib import Pa"
    found = greedy(client, prompt=prompt, extra_body={}, logprobs=1, max_tokens=5).choices[0]
    plain = greedy(client, prompt=prompt, max_tokens=5).choices[0]
    written = "".join(found.logprobs.tokens)
    assert written.endswith(found.text)
    assert "import Pa".endswith(written.removesuffix(found.text))
    assert found.text != plain.text
    assert len(found.logprobs.tokens) == 5


@pytest.fixture(scope="module")
def filling(
    tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory, engine: tuple[str, ...]
) -> Iterator[Server]:
    """A server whose vocabulary has the tokens of StarCoder, with two adapters."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    from mftcoder.config.schema import AdapterConfig
    from mftcoder.models.layers.adapters import attach, save_adapter

    folder = tmp_path_factory.mktemp("filling")
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    tokens = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    tokenizer.save_pretrained(folder / "base")
    model = LlamaForCausalLM.from_pretrained(tiny_llama_dir)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder / "base")
    for number, name in enumerate(("one", "two")):
        torch.manual_seed(number)
        base = LlamaForCausalLM.from_pretrained(folder / "base")
        adapted = attach(base, AdapterConfig(lora_rank=4))
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.2)
        save_adapter(adapted, folder / name)
    adapters = ("--adapter", f"one={folder / 'one'}", "--adapter", f"v.2={folder / 'two'}")
    options = ("--name", "base", "--dtype", "float32", *(() if "openvino" in engine else adapters))
    with served(folder / "base", *options, *engine) as one:
        one.told.append(str(folder))
        yield one


def test_a_suffix_and_infill_give_the_text_of_the_rendered_prompt(filling: Server) -> None:
    from mftcoder.data.tokenizers.tokenizer import load_tokenizer

    client = client_of(filling)
    tokenizer = load_tokenizer(f"{filling.told[-1]}/base")
    rendered = tokenizer.encode("<fim_prefix>a = (<fim_suffix>)\n<fim_middle>")
    expected = greedy(client, model="base", prompt=rendered).choices[0].text
    assert greedy(client, model="base", prompt="a = (", suffix=")\n").choices[0].text == expected
    body = {"input_prefix": "a = (", "input_suffix": ")\n", "n_predict": 20, "complete_word": False}
    llama_vscode = {
        "samplers": ["top_k", "infill"],
        "top_k": 40,
        "top_p": 0.99,
        "cache_prompt": True,
        "t_max_prompt_ms": 500,
    }
    answer = post(f"{filling.url}/infill", json={**body, **llama_vscode}).json()
    assert (answer["content"], answer["stop"], answer["tokens_predicted"]) == (expected, True, 20)
    assert answer["tokens_evaluated"] == len(rendered)
    lines = post(f"{filling.url}/infill", json={**body, "stream": True}).text.splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    assert "".join(event["content"] for event in events) == expected
    begun = post(f"{filling.url}/infill", json={**body, "prompt": expected[:3], "input_extra": []}).json()
    assert begun["content"]


def test_the_word_before_a_gap_is_completed(filling: Server) -> None:
    """The prefix is sent without its last word, and the text is held to it."""
    found = greedy(
        client_of(filling), model="base", prompt="x = retur", suffix="\n", extra_body={}, logprobs=1, max_tokens=1
    ).choices[0]
    written = "".join(found.logprobs.tokens)
    assert written.endswith(found.text)
    assert " retur".endswith(written.removesuffix(found.text))


def test_adapters_answer_by_name_with_their_own_texts_also_at_the_same_time(
    filling: Server, engine: tuple[str, ...]
) -> None:
    import torch
    from transformers import LlamaForCausalLM

    from mftcoder.data.tokenizers.tokenizer import load_tokenizer
    from mftcoder.models.layers.adapters import load_adapter

    if "openvino" in engine:
        pytest.skip("runs one model; tests/unit/app/serving/test_serve.py has its refusal")
    client = client_of(filling)
    folder = Path(filling.told[-1])
    assert [model.id for model in client.models.list()] == ["base", "one", "v.2"]
    ids = load_tokenizer(str(folder / "base")).encode(PROMPT)
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        found = list(
            pool.map(lambda name: greedy(client, model=name, logprobs=0).choices[0], ["base", "one", "v.2"] * 4)
        )
    for number, adapter in enumerate((None, "one", "two")):
        model: Any = LlamaForCausalLM.from_pretrained(folder / "base")
        model = load_adapter(model, folder / adapter) if adapter else model
        with torch.no_grad():
            first = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1).max().item()
        for choice in found[number::3]:
            assert choice.logprobs.token_logprobs[0] == pytest.approx(first, abs=1e-3 if "vllm" in engine else 1e-4)
            assert choice.text == found[number].text
    assert len({choice.text for choice in found}) == 3


def metric(server: Server, name: str) -> float:
    lines = get(f"{server.url}/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def until(condition: Any) -> None:
    """Wait for what another process does."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_generation(server: Server, client: Any, stream: bool) -> None:
    # Greedy texts of known length: chance could end them early, and a few of them end before anyone looks.
    body = {"prompt": PROMPT, "max_tokens": 480, "temperature": 0, "n": 64, "stream": stream}
    whole = 64 * greedy(client, max_tokens=480).usage.completion_tokens
    before = metric(server, "mft_generated_tokens_total")
    with socket.create_connection(server.url.removeprefix("http://").split(":")) as connection:
        content = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content)
        until(lambda: metric(server, "mft_running") > 0)
    until(lambda: metric(server, "mft_running") == 0)
    assert metric(server, "mft_generated_tokens_total") - before < whole


def test_a_request_that_is_too_large_is_refused_before_it_is_read(server: Server) -> None:
    for content in (b'{"prompt": "' + b"x" * (9 << 20), iter([b" " * (1 << 20)] * 9)):
        answer = post(f"{server.url}/v1/completions", content=content)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"


def test_broken_json_and_unknown_paths_get_an_error_object(server: Server) -> None:
    headers = {"Content-Type": "application/json"}
    broken = post(f"{server.url}/v1/completions", content=b"{", headers=headers)
    assert (broken.status_code, broken.json()["error"]["type"]) == (400, "invalid_request_error")
    assert httpx.head(f"{server.url}/health", timeout=PATIENCE).status_code == 200
    unknown = get(f"{server.url}/v2/x")
    assert (unknown.status_code, "GET /v2/x" in unknown.json()["error"]["message"]) == (404, True)


@pytest.mark.parametrize(
    "path, body, message",
    [
        ("/v1/completions", b"[1,", "The body is not JSON"),
        ("/v1/completions", b'{"prompt": "a", "n": 1, "n": 2}', "key 'n' appears twice"),
        (
            "/v1/chat/completions",
            b'{"messages": [{"role": "system", "role": "user", "content": "a"}]}',
            "'role' appears",
        ),
        ("/v1/completions", b"[" * 200_000, "the body cannot be read as JSON"),
        ("/v1/completions", b'{"prompt": "\xff"}', "the body cannot be read as JSON"),
        ("/v1/completions", b'{"prompt": "a\\ud800b"}', "surrogate"),
        ("/v1/completions", b'{"prompt": "a", "stop": ["\\udfff"]}', "surrogate"),
        ("/v1/completions", b'{"prompt": "a", "model": "\\ud800"}', "surrogate"),
        ("/v1/completions", b'{"prompt": "a", "\\ud800": 1}', "surrogate"),
        ("/v1/completions", b'{"prompt": "a", "tools": ' + b"[" * 900 + b"]" * 900 + b"}", "tools: not supported"),
        ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', "surrogate"),
        ("/infill", b'{"input_prefix": "\\ud800", "input_suffix": ""}', "surrogate"),
        ("/infill", b'{"input_prefix": "", "input_suffix": "", "temperature": 1, "top_k": "x"}', "top_k"),
    ],
)
def test_a_hostile_body_gets_400_and_the_reason(server: Server, path: str, body: bytes, message: str) -> None:
    answer = post(server.url + path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_a_body_without_the_type_of_json_is_told_so(server: Server) -> None:
    answer = post(f"{server.url}/v1/completions", content=b'{"prompt": "a"}')
    assert (answer.status_code, "Content-Type" in answer.json()["error"]["message"]) == (400, True)


def test_keys_of_file_and_environment_open_the_server_and_nothing_else_does(
    openai: Any, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("# of the editors\nfirst-key-123\n")
    options = ("--api-key-file", tmp_path / "keys", "--host", "0.0.0.0", "--name", "tiny")
    with served(tiny_llama_dir, *options, MFTCODER_API_KEY="second-key-456") as locked:
        locked.url = locked.url.replace("0.0.0.0", "127.0.0.1")
        for key in ("first-key-123", "second-key-456"):
            assert [model.id for model in client_of(locked, key).models.list()] == ["tiny"]
        with pytest.raises(openai.AuthenticationError):
            client_of(locked, "first-key-12").models.list()
        assert get(f"{locked.url}/metrics").status_code == 401
        assert get(f"{locked.url}/health").json() == {"status": "ok"}


def test_sigterm_lets_streams_finish_refuses_new_ones_and_exits_with_0(
    client: Any, tiny_llama_dir: Path, engine: tuple[str, ...]
) -> None:
    with served(tiny_llama_dir, "--name", "tiny", "--dtype", "float32", *engine) as one:
        stream = greedy(client_of(one), max_tokens=400, stream=True)
        first = next(iter(stream))
        one.process.terminate()
        until(lambda: refused(one))
        text = first.choices[0].text + "".join(chunk.choices[0].text for chunk in stream)
        assert finish(one.process) == 0
    assert greedy(client, max_tokens=400).choices[0].text == text


def refused(server: Server) -> bool:
    try:
        httpx.get(f"{server.url}/health")
    except httpx.ConnectError:
        return True
    except httpx.TransportError:  # it was accepted before the server stopped listening
        return False
    return False


@pytest.mark.parametrize(
    "options, message",
    [
        (["--host", "0.0.0.0"], "other machines could use this model without a key"),
        (["--template", "chatlm"], "unknown template 'chatlm'. Did you mean 'chatml'?"),
        (["--adapter", "x"], "give NAME=FOLDER"),
        (["--adapter", "x=nowhere"], "is not an adapter folder"),
        (["--adapter", "x=a", "--adapter", "x=b"], "the name is given twice"),
        (["--api-key-file", "nowhere"], "cannot be read"),
        (["--checkpoint", "latest"], "is no run folder"),
    ],
)
def test_a_server_that_cannot_start_says_why_in_one_line(
    tiny_llama_dir: Path, options: list[str], message: str
) -> None:
    ended = mft("serve", tiny_llama_dir, "--port", "0", *options)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow(reason="a second server; compressed-tensors takes seconds to import")
@pytest.mark.parametrize("method", ["int8", "gptq"])
def test_a_release_in_fewer_bits_is_served_with_the_texts_of_the_weights_that_its_bits_stand_for(
    tiny_llama_dir: Path, tmp_path: Path, method: str
) -> None:
    """A folder as llmcompressor writes it: completions, chats and streams over the official client."""
    pytest.importorskip("compressed_tensors", reason="the extra `compressed` brings it")
    from safetensors.torch import load_file, save_file

    from tests.unit.models.loading.test_stored_bits import release

    meant = release(tiny_llama_dir, tmp_path / "release", method)
    shutil.copytree(tiny_llama_dir, tmp_path / "whole")
    weights = load_file(tmp_path / "whole" / "model.safetensors") | {
        name: one.contiguous() for name, one in meant.items()
    }
    save_file(weights, tmp_path / "whole" / "model.safetensors", {"format": "pt"})
    texts, chats = [], []
    for folder in ("release", "whole"):
        with served(tmp_path / folder, "--name", "tiny", "--dtype", "float32") as server:
            asking = client_of(server)
            texts.append(greedy(asking).choices[0].text)
            chats.append(sampled_chat(asking, temperature=0).choices[0].message.content)
            parts = sampled_chat(asking, temperature=0, stream=True)
            assert "".join(part.choices[0].delta.content or "" for part in parts) == chats[-1]
    assert texts[0] == texts[1] != ""
    assert chats[0] == chats[1] != ""


@pytest.mark.slow(reason="a second server; compressed-tensors takes seconds to import")
def test_an_fp8_release_is_served_with_the_texts_of_transformers_and_says_what_it_rounds(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors", reason="the extra `compressed` brings it")
    import torch
    from transformers import AutoModelForCausalLM

    from mftcoder.data.tokenizers.tokenizer import load_tokenizer
    from tests.unit.models.loading.test_stored_bits import release

    release(tiny_llama_dir, tmp_path / "release", "fp8")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "release", dtype=torch.float32)
    tokenizer = load_tokenizer(str(tmp_path / "release"))
    with served(tmp_path / "release", "--name", "tiny", "--dtype", "float32") as server:
        assert any("a text may change with the texts that are generated beside it" in line for line in server.told)
        for prompt in (PROMPT, "import os\n", "x = "):
            ids = torch.tensor([tokenizer.encode(prompt)])
            written = model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :].tolist()
            assert greedy(client_of(server), prompt=prompt).choices[0].text == tokenizer.decode(written)
