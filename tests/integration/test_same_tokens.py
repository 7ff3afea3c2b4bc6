"""One conversation through training, export, chat, serving and evaluation has the same tokens everywhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from mftcoder import export, generate, load_config, train
from mftcoder.app.results.quantize import quantize
from mftcoder.app.serving.chat import Chat, open_chat
from mftcoder.app.serving.model_choice import choose_source, usage_of
from mftcoder.config.schema import RunConfig
from mftcoder.data.prepared.store import prepare
from mftcoder.data.records.conversation import Message
from mftcoder.generation.batch_engine import BatchEngine
from mftcoder.generation.prompt_tokens import TokenPrompt
from mftcoder.serving.catalogue import Catalogue
from mftcoder.serving.protocol import ChatRequest

pytest.importorskip("uvicorn")
pytest.importorskip("gguf")

SYSTEM = "You write code."
PLAIN = [
    ("system", SYSTEM),
    ("user", "Add two numbers."),
    ("assistant", "def add(a, b):\n    return a + b"),
    ("user", "Now three."),
    ("assistant", "def add(a, b, c):\n    return a + b + c"),
]
JOINING = [*PLAIN[:2], ("assistant", "\n\n  def add(a, b): ..."), *PLAIN[3:]]
"""An answer whose first tokens would join with the template's text before it."""


@dataclass(frozen=True)
class Trained:
    """A run, its exported model, and the ids of the chat in its training data up to the last answer."""

    config: RunConfig
    run: Path
    folder: Path
    ids: list[int]


def trained(
    tmp_path: Path, model: Path, make_jsonl: Any, template: dict[str, str], turns: Sequence[tuple[str, str]]
) -> Trained:
    record = {"messages": [{"role": role, "content": content} for role, content in turns]}
    make_jsonl("data/task/part.jsonl", [record] * 8)
    config = load_config(
        make_yaml(tmp_path, model),
        [f"data.{name}={value}" for name, value in template.items()],
    )
    samples = prepare(config).train(0)
    sample = samples.sample(0)
    trained_places = [place for place, target in enumerate(sample.targets) if target != -100]
    last = max(place for place in trained_places if place - 1 not in trained_places)
    train(config)
    folder = export(str(config.output_path), tmp_path / "exported")
    return Trained(config, config.output_path, folder, sample.input_ids[: last + 1].tolist())


def make_yaml(tmp_path: Path, model: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(
        f"model: {{model_name_or_path: {model}, dtype: float32}}\n"
        "adapter: {type: lora, lora_rank: 2}\n"
        f"tasks: {{task: {tmp_path / 'data' / 'task'}}}\n"
        "data: {max_length: 256}\n"
        "train: {max_steps: 1, per_device_train_batch_size: 1, gradient_accumulation_steps: 1}\n"
        f"output_dir: {tmp_path / 'run'}\n"
    )
    return path


def talked(model: Path, turns: Sequence[tuple[str, str]]) -> Chat:
    """A conversation in `mft chat`, as far as the last question."""
    chat = open_chat(str(model), dtype="float32", system=turns[0][1])
    chat.messages = [Message(role, content, False) for role, content in turns[1:-2]]  # type: ignore[arg-type]
    return chat


def served_ids(model: Path, turns: Sequence[tuple[str, str]]) -> list[int]:
    """The tokens that the server asks its engine for."""
    from mftcoder.app.serving.serve import served_model

    source = choose_source(str(model), checkpoint="best", trust_remote_code=False)
    catalogue = Catalogue([served_model(source, "m")], source.tokenizer, usage_of(source).end_ids, 512)
    messages = [{"role": role, "content": content} for role, content in turns[:-1]]
    (request,) = catalogue.chat(ChatRequest.model_validate({"model": "m", "messages": messages}))
    return list(request.ids)


TEMPLATES = [
    {"chat_template": "mftcoder"},
    {"chat_template": "mftcoder-v0.3"},
    {"chat_template": "chatml"},
    {"chat_template": "codefuse-codellama"},
    {"chat_template": "auto"},
]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template["chat_template"])
def test_training_export_chat_serving_and_evaluation_read_the_same_tokens(
    template: dict[str, str], tmp_path: Path, tiny_llama_dir: Path, make_jsonl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trained(tmp_path, tiny_llama_dir, make_jsonl, template, PLAIN)
    messages = [{"role": role, "content": content} for role, content in PLAIN[:-1]]
    tokenizer = AutoTokenizer.from_pretrained(made.folder)
    exported = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert list(exported) == made.ids
    release = quantize(made.run, tmp_path / "q", "gguf:Q8_0")
    file = release.folder / release.files[0]
    for model in (made.run, made.folder, file):
        assert talked(model, PLAIN).prompt_ids(PLAIN[-2][1]) == made.ids
        assert served_ids(model, PLAIN) == made.ids
    asked: list[TokenPrompt] = []
    tokenized = BatchEngine._tokenized
    monkeypatch.setattr(BatchEngine, "_tokenized", lambda *given: asked.extend(tokenized(*given)) or tokenized(*given))
    monkeypatch.chdir(tmp_path)
    for model, name in ((made.run, "run"), (file, "quantized")):
        generate(model, "mini", limit=1, mode="chat", system=SYSTEM, max_new_tokens=1, name=name)
    chat = talked(made.folder, PLAIN)
    chat.reset()
    assert chat.prompt_ids(question_in(asked[0].prompt.text, made)) == asked[0].ids == asked[1].ids


def question_in(prompt: str, made: Trained) -> str:
    """The user's message in a rendered prompt of one question."""
    template = usage_of(choose_source(str(made.run), checkpoint="best", trust_remote_code=False)).template
    assert template is not None
    mark = "\ue0ffmark\ue0ff"
    before, after = template.render_prompt([Message("system", SYSTEM, False), Message("user", mark, False)]).split(mark)
    assert prompt.startswith(before) and prompt.endswith(after)
    return prompt[len(before) : len(prompt) - len(after)]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template["chat_template"])
def test_the_border_of_an_earlier_answer_is_that_of_training(
    template: dict[str, str], tmp_path: Path, tiny_llama_dir: Path, make_jsonl: Any
) -> None:
    made = trained(tmp_path, tiny_llama_dir, make_jsonl, template, JOINING)
    for model in (made.run, made.folder):
        assert talked(model, JOINING).prompt_ids(JOINING[-2][1]) == made.ids
        assert served_ids(model, JOINING) == made.ids


def test_the_line_break_that_a_template_ends_an_answer_with_is_not_part_of_it(
    tmp_path: Path, tiny_llama_dir: Path, make_jsonl: Any
) -> None:
    """Else the next question would be read after two line breaks, where training has one."""
    made = trained(tmp_path, tiny_llama_dir, make_jsonl, TEMPLATES[1], PLAIN)
    for model in (made.run, made.folder):
        assert usage_of(choose_source(str(model), checkpoint="best", trust_remote_code=False)).tail == "\n"
