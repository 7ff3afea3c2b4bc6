"""The tokenizer of the first Qwen as tokenizer.json. Its Python code is not run.

`qwen.tiktoken` has one byte sequence (in base64) and its rank per line. The pattern, the normal form and the special tokens after
the last rank are those of the published tokenization_qwen.py.
"""

import base64
from pathlib import Path

from tokenizers import AddedToken

from mftcoder.data.tokenizers import byte_level
from mftcoder.errors import ModelError
from mftcoder.jsonl import read_json, write_json

FILE = "qwen.tiktoken"
PATTERN = byte_level.QWEN2
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205)))
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_tokenizer(source: Path, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json for `source`, the qwen.tiktoken file, into `folder`."""
    ranks = _read(source)
    _check_end(source, len(ranks))
    splitting = byte_level.Splitting((PATTERN,), composed=True, ignore_merges=True)
    special = [AddedToken(token, normalized=False, special=True) for token in SPECIAL]
    tokenizer = byte_level.build(*_vocabulary_and_merges(ranks), splitting, added=special)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[0], "pad_token": SPECIAL[0]}
    write_json(folder / "tokenizer_config.json", {**settings, "chat_template": CHATML})


def _check_end(source: Path, ranks: int) -> None:
    """ModelError if the model's EOS token is not one of those after the ranks: in a truncated file they have other ids."""
    beside = source.with_name("generation_config.json")
    settings = read_json(beside) if beside.is_file() else {}
    end = settings.get("eos_token_id") if isinstance(settings, dict) else None
    if isinstance(end, int) and end not in range(ranks, ranks + len(SPECIAL)):
        raise ModelError(
            f"{source}: has {ranks:,} ranks, but {beside.name} has the EOS token at {end:,}. Download it again"
        )


def _read(source: Path) -> dict[bytes, int]:
    ranks = {}
    for number, line in enumerate(source.read_bytes().splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError as error:
            raise ModelError(f"{source}:{number}: is not 'base64 rank'") from error
    if sorted(ranks.values()) != list(range(len(ranks))):  # the special tokens follow the last rank
        raise ModelError(f"{source}: its ranks are not 0, 1, 2, ... without gaps. Download it again")
    return ranks


def _vocabulary_and_merges(ranks: dict[bytes, int]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """BPE's tables. The merges are every cut of every entry into two entries, lowest rank first.

    `{a: 0, b: 1, c: 2, ab: 3, abc: 4}` -> merges (a, b), (ab, c); not (a, bc), because bc is not an entry.
    """
    merges = [
        (rank, token[:cut], token[cut:])
        for token, rank in ranks.items()
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    merges.sort(key=lambda merge: (merge[0], ranks[merge[1]], ranks[merge[2]]))
    return {_letters(token): rank for token, rank in ranks.items()}, [(_letters(a), _letters(b)) for _, a, b in merges]


_LETTERS = byte_level.byte_letters()


def _letters(token: bytes) -> str:
    return "".join(_LETTERS[byte] for byte in token)
