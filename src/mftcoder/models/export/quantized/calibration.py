"""The texts that calibrate a quantization: prompts with answers, as they are written beside the release and read from a user's file."""

from dataclasses import dataclass
from pathlib import Path

from mftcoder.data.tokenizers.tokenizer import Tokenizer
from mftcoder.errors import DataError
from mftcoder.jsonl import read_jsonl

CALIBRATION = "calibration.jsonl"


@dataclass(frozen=True)
class Calibrated:
    """One text: the prompt as the model reads it, in its chat template, and an answer with the text that ends it, if it was ended."""

    task: str
    origin: str
    prompt: str
    answer: str

    def ids(self, tokenizer: Tokenizer) -> list[int]:
        """Its tokens. No token crosses the border, as in training."""
        return [*tokenizer.encode(self.prompt), *tokenizer.encode(self.answer)]


def read_calibration(path: Path) -> list[Calibrated]:
    """The records of a file; each has `prompt` (in the model's template) and `answer`. DataError with a line for each bad record."""
    found, problems = [], []
    for number, record in read_jsonl(path):
        values = record if isinstance(record, dict) else {}
        texts = [values.get(name) for name in ("prompt", "answer")]
        if all(isinstance(text, str) for text in texts) and any(texts):
            found.append(Calibrated(str(values.get("task", "")), f"{path}:{number}", *map(str, texts)))
        else:
            problems.append(f"{path}:{number}: has no 'prompt' and 'answer' that are texts")
    if problems:
        raise DataError.collect(problems)
    if not found:
        raise DataError(f"{path}: holds no record; each line is a JSON object with 'prompt' and 'answer'")
    return found
