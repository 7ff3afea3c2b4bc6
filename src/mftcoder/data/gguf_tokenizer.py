"""What transformers leaves out when it makes a tokenizer.json of a .gguf file: the step that splits off digits.

Goes in: the file and the tokenizer.json made of it. Comes out: the same tokenizer.json, cutting numbers as the model's own does.
"""

import json
from pathlib import Path

from mftcoder.errors import ModelError
from mftcoder.jsonl import write_json

# Byte-level BPE vocabularies that split off each digit before anything else (llama.cpp, src/llama-vocab.cpp, the pre-tokenizers
# that put \p{N} first). Without that step "x  12" would be "x", "  "... and so on: blanks before a number are cut differently.
DIGITS_FIRST = ("smollm", "starcoder", "refact", "command-r", "codeshell")


def mend(tokenizer_json: Path, gguf_file: Path) -> None:
    """Put the digit step back, where the file's own `tokenizer.ggml.pre` asks for it; else change nothing."""
    if _pre_tokenizer_name(gguf_file) not in DIGITS_FIRST:
        return
    content = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    if content["pre_tokenizer"]["type"] == "ByteLevel":
        digits = {"type": "Digits", "individual_digits": True}
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, content["pre_tokenizer"]]}
        write_json(tokenizer_json, content)


def _pre_tokenizer_name(gguf_file: Path) -> str:
    try:
        import gguf
    except ImportError as error:
        raise ModelError(
            f"{gguf_file}: reading .gguf files needs the gguf package: pip install 'mftcoder[gguf]'"
        ) from error
    field = gguf.GGUFReader(gguf_file).fields.get("tokenizer.ggml.pre")
    return str(field.contents()) if field else ""
