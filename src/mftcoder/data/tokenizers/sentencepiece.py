"""A sentencepiece model (tokenizer.model) as tokenizer.json, with the same ids as the sentencepiece library.

The result is a byte-pair tokenizer whose merges are the cuts of the pieces, best score first. The pieces come from a
tokenizer.model, read by the sentencepiece library, or from a .gguf file. A converted tokenizer.model is compared with the library
on real text and on its own pieces; a difference is an error.
"""

import importlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from mftcoder.data.tokenizers.byte_level import add_tokens, begin_with, token_texts
from mftcoder.errors import ModelError
from mftcoder.jsonl import read_json

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of pieces, with the numbers of sentencepiece and GGUF."""

SPACE = "\u2581"
"""The visible character that stands for a space in pieces."""
FAMILIES = ("llama", "mistral", "mixtral", "phi3", "gemma", "gemma2", "gemma3", "gemma3_text", "baichuan", "chatglm")
"""model_type of the folders whose tokenizer.model is supported."""

CLASSES = {
    "LlamaTokenizer": "llama", "CodeLlamaTokenizer": "llama", "GemmaTokenizer": "gemma", "BaichuanTokenizer": "baichuan",
    "BaiChuanTokenizer": "baichuan", "ChatGLMTokenizer": "chatglm",
}  # fmt: skip
"""tokenizer_class to the family, for folders without a config.json."""

CHATGLM_COMMANDS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
CHATGLM3_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
PROBES = (
    "def add(a: int, b: int) -> int:\n    return a + b\n",
    "  two blanks,   three,\ttabs\t\tand\r\nline\n\n\nbreaks \n",
    "class A:\n\tdef __init__(self, **kwargs):\n\t\tself.x = {k: v[1:-1] for k, v in kwargs.items()}\n",
    "0 12 345 6789 3.1415e-10 0xFF 1_000_000",
    "请写一个函数，返回两个数的和。// 注释 123",
    "Füße, déjà vu, наука, かな漢字, 한국어, עברית, 🙂👩‍👩‍👧",
    "\u00e9 e\u0301 \ufb01 \u2126 \uff21 \u00a0 \u3000 \u200b \u2581 x",
    "a" * 50 + " " * 40 + "=" * 80,
    "<a href='x'>[x] {{ }} </a> <|x|> \\n %s $1",
)


@dataclass(frozen=True)
class Pieces:
    """A sentencepiece vocabulary and how it prepares text."""

    texts: Sequence[str]
    scores: Sequence[float]
    kinds: Sequence[int]
    space_first: bool  # a space is put before the text
    single_spaces: bool = False  # several spaces become one, leading and trailing ones are removed
    normal_form: bytes = b""  # sentencepiece's compiled table of characters

    def of_kind(self, *kinds: int) -> list[str]:
        """The pieces of these kinds, by their ids."""
        return [text for text, kind in zip(self.texts, self.kinds, strict=True) if kind in kinds]


def build(pieces: Pieces, *, space_after_special: bool = True) -> tokenizers.Tokenizer:
    """The tokenizer of these pieces. With `space_after_special`, a space is also put after each special token.

    That is `legacy: true` in tokenizer_config.json, and the library's result for the parts of a text one by one. Without it, a
    text that begins with a space gets no second one, as in the published tokenizer.json of Mistral 0.3.
    """
    vocabulary = {text: number for number, text in enumerate(pieces.texts)}
    unknown = next(iter(pieces.of_kind(UNKNOWN)), None)
    bpe = models.BPE(vocabulary, merges(pieces), unk_token=unknown, fuse_unk=True, byte_fallback=BYTE in pieces.kinds)
    backend = tokenizers.Tokenizer(bpe)
    steps: list[normalizers.Normalizer] = []
    if pieces.normal_form:
        steps.append(normalizers.Precompiled(pieces.normal_form))
    if pieces.single_spaces:
        steps += [normalizers.Strip(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    own = pieces.of_kind(USER_DEFINED)
    if pieces.space_first and space_after_special:
        steps.append(_space_before_all_but(own) if own else normalizers.Prepend(SPACE))
    if pieces.space_first and not space_after_special:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="first", split=False)
    else:
        steps.append(normalizers.Replace(" ", SPACE))
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    strip = [decoders.Strip(" ", 1, 0)] if pieces.space_first else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    special = [AddedToken(text, normalized=False, special=True) for text in pieces.of_kind(UNKNOWN, CONTROL)]
    # Sentencepiece looks for user-defined pieces in the normalized text, where spaces are already SPACE.
    prepared = bool(steps) and backend.pre_tokenizer is None
    own_tokens = [AddedToken(text, normalized=prepared) for text in own]
    add_tokens(backend, [*special, *own_tokens])
    return backend


def _space_before_all_but(pieces: Sequence[str]) -> normalizers.Normalizer:
    """Put a space before every text except these pieces, because the tokenizer normalizes them before it looks for them."""
    alone = "|".join(re.escape(piece) for piece in pieces)
    return normalizers.Replace(tokenizers.Regex(rf"\A(?=[\s\S])(?!(?:{alone})\z)"), SPACE)


def merges(pieces: Pieces) -> list[tuple[str, str]]:
    """Every cut of every piece into two pieces, best score first: `ab` 0, `abc` -1 -> (a, b), (ab, c).

    Of equally good pairs sentencepiece joins the leftmost, which makes the left part longer; so the longest left part comes first.
    """
    scores = {
        text: score
        for text, score, kind in zip(pieces.texts, pieces.scores, pieces.kinds, strict=True)
        if kind == NORMAL
    }
    cuts = [
        (-score, -cut, cut - len(text), text[:cut], text[cut:])
        for text, score in scores.items()
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]
    return [(left, right) for *_, left, right in sorted(cuts)]


def read_folder(folder: Path, settings: Mapping[str, Any]) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """The tokenizer of a folder with tokenizer.model, and its named tokens (eos_token, ...).

    ModelError if its family is unknown, or if it would give other ids than the library.
    """
    file = folder / "tokenizer.model"
    family = _family(folder, settings)
    if family not in FAMILIES:
        why = "are in its own Python code, which is not run" if "auto_map" in settings else "are unknown"
        raise ModelError(
            f"{file}: the rules of model type '{family}' {why}. Set model.tokenizer_name_or_path to a folder with the same "
            "tokenizer in its fast form (tokenizer.json)"
        )
    processor, pieces = _load(file)
    ids = {
        "bos_token": processor.bos_id(),
        "eos_token": processor.eos_id(),
        "unk_token": processor.unk_id(),
        "pad_token": processor.pad_id(),
    }
    named = {name: pieces.texts[number] for name, number in ids.items() if number >= 0} | token_texts(settings)
    if family == "chatglm":
        pieces = _with_commands(pieces, folder)
        named |= {"pad_token": named["unk_token"]}
    legacy = bool(settings.get("legacy", True))
    backend = build(pieces, space_after_special=legacy)
    compare(backend, processor, pieces, file, legacy=legacy)
    if settings.get("add_bos_token", family != "chatglm") and "bos_token" in named:
        begin_with(backend, named["bos_token"])
    return backend, named


def _family(folder: Path, settings: Mapping[str, Any]) -> str | None:
    if (folder / "config.json").is_file():
        raw = read_json(folder / "config.json")
        return raw.get("model_type") if isinstance(raw, dict) else None
    return CLASSES.get(str(settings.get("tokenizer_class", "")).removesuffix("Fast"))


def _load(file: Path) -> tuple[Any, Pieces]:
    try:
        import sentencepiece

        formats: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    except ImportError as error:
        raise ModelError(
            f"{file}: reading it needs the sentencepiece package: pip install 'mftcoder[sentencepiece]'. Or put the tokenizer.json "
            "of the same tokenizer beside it"
        ) from error
    model = formats.ModelProto()
    try:
        model.ParseFromString(file.read_bytes())
        processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
        assert model.pieces
    except Exception as error:  # protobuf and sentencepiece raise errors of their own
        raise ModelError(f"{file}: is not a sentencepiece model, or is truncated. Download it again") from error
    if model.trainer_spec.model_type != formats.TrainerSpec.BPE or model.trainer_spec.treat_whitespace_as_suffix:
        raise ModelError(
            f"{file}: is not a byte-pair model, as in all supported families. Set model.tokenizer_name_or_path to a folder with "
            "the same tokenizer as tokenizer.json"
        )
    spec = model.normalizer_spec
    pieces = Pieces(
        [piece.piece for piece in model.pieces],
        [piece.score for piece in model.pieces],
        [piece.type for piece in model.pieces],
        space_first=spec.add_dummy_prefix,
        single_spaces=spec.remove_extra_whitespaces,
        normal_form=spec.precompiled_charsmap,
    )
    return processor, pieces


def _with_commands(pieces: Pieces, folder: Path) -> Pieces:
    """The pieces, then ChatGLM's own tokens. Encoding a text never gives [gMASK] and the like, but it gives ChatGLM3's roles."""
    code = folder / "tokenization_chatglm.py"
    if not code.is_file():
        raise ModelError(
            f"{folder}: has no tokenization_chatglm.py, which tells whether <|user|> is a token (it is read, never run). Download it, too"
        )
    roles = CHATGLM3_ROLES if "<|user|>" in code.read_text(encoding="utf-8", errors="replace") else ()
    known = set(pieces.texts)
    commands = [f"{text} (command)" if text in known else text for text in CHATGLM_COMMANDS]
    return replace(
        pieces,
        texts=[*pieces.texts, *commands, *roles],
        scores=[*pieces.scores, *[0.0] * len([*commands, *roles])],
        kinds=[*pieces.kinds, *[UNUSED] * len(commands), *[CONTROL] * len(roles)],
    )


def compare(backend: tokenizers.Tokenizer, processor: Any, pieces: Pieces, file: Path, *, legacy: bool) -> None:
    """ModelError if a probe gets other ids than from the sentencepiece library, which finds no special tokens in a text."""
    special = pieces.of_kind(UNKNOWN, CONTROL)
    probes = [
        text
        for text in (*PROBES, *_own_probes(pieces))
        if not any(token in text for token in special) and (legacy or not text.startswith(" "))
    ]
    wrong = [text for text in probes if backend.encode(text, add_special_tokens=False).ids != processor.encode(text)]
    if wrong:
        raise ModelError(
            f"{file}: as a fast tokenizer it would give other ids than sentencepiece on {len(wrong)} of {len(probes)} texts, "
            f"for example {wrong[0][:40]!r}. Set model.tokenizer_name_or_path to a folder with the same tokenizer as tokenizer.json"
        )


def _own_probes(pieces: Pieces) -> Iterator[str]:
    """400 texts of the vocabulary's own pieces in a fixed random order."""
    ordinary = [text.replace(SPACE, " ") for text in pieces.of_kind(NORMAL, USER_DEFINED)]
    choose = random.Random(0)
    for _ in range(400 if ordinary else 0):
        yield "".join(choose.choices(ordinary, k=12))
