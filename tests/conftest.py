"""What many tests share: a small real tokenizer, and data files written from plain values."""

import gc
import itertools
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

# Tiny models gain nothing from threads, and threads of tests that run side by side wait for each other. Set before torch starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine is not a failing property.
settings.register_profile("project", deadline=None)
settings.load_profile("project")

REPOSITORY = Path(__file__).parent.parent
TOKENIZER_TEXT = REPOSITORY / "tests" / "golden" / "tokenizer_text.txt"
"""An old state of this project's config section. Numbers in tests depend on it, so rewording the sources must not change it."""
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
FOLDERS = itertools.count()
"""A number for each folder that is made for one test."""
SPECIAL_TOKENS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")


@pytest.hookimpl(optionalhook=True)  # also where xdist is not loaded
def pytest_xdist_auto_num_workers() -> int:
    """One worker more than cores: tests wait for processes and timeouts about a third of the time."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A slow test says why it is."""
    unexplained = {item.name for item in items for mark in item.iter_markers("slow") if not mark.kwargs.get("reason")}
    if unexplained:
        raise pytest.UsageError(f"slow without a reason: {', '.join(sorted(unexplained))}. Write slow(reason=...)")


def pytest_collection_finish() -> None:
    """Garbage collection skips what is imported and collected by now: a million objects, several tenths of a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def toolchains(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What is compiled once for a language's programs (20 seconds for Go), for all tests of all workers of this run.

    It lies in the cache of what is made for several tests, which is not the user's either.
    """
    folder = tmp_path_factory.getbasetemp()
    cache = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "cache-of-all"
    (cache / "toolchains").mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MFTCODER_CACHE", str(cache))
        yield cache / "toolchains"


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the test's own. pytest's looks at all folders of the run for a free number, 20 seconds in thousands of tests."""
    name = re.sub(r"\W", "_", request.node.name)[:30]
    folder = tmp_path_factory.getbasetemp() / f"{name}_{next(FOLDERS)}"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tests' caches."""
    return tmp_path_factory.mktemp("caches")


@pytest.fixture(autouse=True)
def own_cache(caches: Path, monkeypatch: pytest.MonkeyPatch, toolchains: Path) -> None:
    """No test sees the user's cache or, except for toolchains, another test's."""
    cache = caches / str(next(FOLDERS))
    cache.mkdir()
    (cache / "toolchains").symlink_to(toolchains)
    monkeypatch.setenv("MFTCODER_CACHE", str(cache))


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer of about 1,000 tokens, trained on a text that stays as it is; a chatml template, eos `<|im_end|>`."""
    folder = tmp_path_factory.mktemp("tiny-tokenizer")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TOKENIZER_TEXT.read_text(encoding="utf-8")], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "pad_token": "</s>",
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def sentencepiece_like_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer as Llama 2's: a space before the first word, spaces written as \u2581, bytes for unknown characters."""
    folder = tmp_path_factory.mktemp("sentencepiece-like")
    words = ["def", "return", "value", "x", "y", "func", "tion"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    letters = [chr(code) for code in range(33, 127)]
    merges: list[tuple[str, str]] = []
    for word in words:
        merges += [(word[:end], word[end]) for end in range(1, len(word))] + [("\u2581", word)]
    merges.append(("\u2581func", "tion"))
    merges = list(dict.fromkeys(merges))
    vocabulary = list(dict.fromkeys([*pieces, *letters, *(a + b for a, b in merges)]))
    tokenizer = Tokenizer(
        models.BPE(
            {piece: number for number, piece in enumerate(vocabulary)},
            merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in pieces[:3]])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """The lines that verbs have told since the last call, one under another."""
    caplog.set_level(logging.INFO, "mftcoder")

    def lines() -> str:
        told = "\n".join(caplog.messages)
        caplog.clear()
        return told

    return lines


@pytest.fixture
def make_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """`make_jsonl("tests/part.jsonl", records)`: a file below the test's folder; a record may be a value or a raw line."""

    def write(name: str, records: Iterable[Any]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    return write


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path) -> Path:
    """A random Llama (2 layers, hidden 32, float32 weights) with the tiny tokenizer, in one folder."""
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    return _random_llama(tmp_path_factory.mktemp("tiny-llama"), tiny_tokenizer_dir, **sizes)


@pytest.fixture(scope="session")
def wide_headed_llama_dir(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path) -> Path:
    """The same with heads of 64, the smallest that vLLM has an attention for."""
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
    return _random_llama(tmp_path_factory.mktemp("wide-headed-llama"), tiny_tokenizer_dir, seed=1, **sizes)


def _random_llama(folder: Path, tokenizer_dir: Path, *, seed: int = 0, **sizes: int) -> Path:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        intermediate_size=64,
        num_hidden_layers=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def untraceable_dir(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Gemma 2, whose capped attention scores OpenVINO does not run, with the tiny tokenizer."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    folder = Path(shutil.copytree(tiny_llama_dir, tmp_path_factory.mktemp("untraceable") / "gemma"))
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 512}
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "attn_logit_softcapping": 20.0}
    Gemma2ForCausalLM(Gemma2Config(vocab_size=vocabulary, **sizes, **heads)).save_pretrained(folder)
    return folder
