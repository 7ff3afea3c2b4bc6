"""`python performance/quantize.py RUN FOLDER --methods gguf:Q8_0,gptq`: quantize a model by several methods, and print one table.

Each release is written, loaded back and measured by `mft export --quantize`: the loss of each task, in float32. Then transformers alone
loads it and continues some prompts greedily. With `--llama-python`, an interpreter that has xllamacpp (which holds llama.cpp), llama.cpp
does the same with every .gguf file, and the texts of both are compared.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from mftcoder.app.results.quantize import quantize
from mftcoder.errors import MftError
from mftcoder.models.export.quantized.environment import python_of_llmcompressor
from mftcoder.models.export.quantized.release import Release
from mftcoder.models.export.quantized.texts import Measured

PROMPTS = (
    "def fibonacci(n):\n    ",
    "import os\n\ndef read_lines(path):\n",
    "public static int max(int a, int b) {\n",
    "def is_prime(n):\n    if n < 2:\n",
    "# Reverse a string\ndef",
    "The capital of France is",
    "for i in range(10):\n",
    "class Stack:\n    def __init__(self):\n",
)
TOKENS = 32
LLAMA_CPP = """
import json, sys, xllamacpp as x
p = x.CommonParams(); p.model.path = sys.argv[1]; p.n_ctx = 512; p.warmup = False; p.verbosity = -1
server = x.Server(p)
asked = {"n_predict": int(sys.argv[3]), "temperature": 0, "cache_prompt": False}
answers = [server.handle_completions({"prompt": text, **asked}) for text in json.loads(sys.argv[2])]
answers = [answer if isinstance(answer, dict) else json.loads(answer) for answer in answers]
print("ANSWERS" + json.dumps([answer["choices"][0]["text"] for answer in answers]))
"""


TRANSFORMERS = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, file, prompts, tokens = json.loads(sys.argv[1])
of_file = {"gguf_file": file} if file else {}
tokenizer = AutoTokenizer.from_pretrained(folder, **of_file)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **of_file)
answers = []
for prompt in prompts:
    ids = tokenizer(prompt, return_tensors="pt")
    new = model.generate(**ids, max_new_tokens=tokens, do_sample=False)[0, ids.input_ids.shape[1] :]
    answers.append(tokenizer.decode(new, skip_special_tokens=True))
print("ANSWERS" + json.dumps(answers))
"""


def answers(python: str, program: str, *arguments: str) -> list[str] | None:
    """The texts that a program of another process wrote; None if it could not read the release."""
    done = subprocess.run([python, "-P", "-c", program, *arguments], capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS")]
    if done.returncode or not found:
        print(done.stderr[-2000:], file=sys.stderr)
        return None
    written: list[str] = json.loads(found[-1][len("ANSWERS") :])
    return written


def read_by(release: Release, python: str, llama_python: str | None) -> tuple[str, str]:
    """Whether transformers reads the release, and in how many texts llama.cpp agrees."""
    file = release.files[0] if release.method.gguf_type else ""
    asked = json.dumps([str(release.folder), file, PROMPTS, TOKENS])
    ours = answers(python, TRANSFORMERS, asked)
    if not file or not llama_python:
        return "yes" if ours else "no", "-"
    theirs = answers(llama_python, LLAMA_CPP, str(release.folder / file), json.dumps(PROMPTS), str(TOKENS))
    if ours is None or theirs is None:
        return "yes" if ours else "no", "no" if theirs is None else "yes"
    alike = sum(one == other for one, other in zip(ours, theirs, strict=True))
    return "yes", f"yes, {alike} of {len(PROMPTS)} texts alike"


def row(name: str, losses: Mapping[str, Measured], size: int, read: tuple[str, str]) -> str:
    """One line of the table."""
    cells = [name, *(f"{one.loss:.4f}" for one in losses.values()), f"{size / 1e6:,.0f}", *read]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Parse the arguments and print the table line by line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--methods", default="gguf:F16,gguf:Q8_0,gguf:Q4_0")
    parser.add_argument("--python", help="an interpreter with llmcompressor")
    parser.add_argument("--llama-quantize", help="llama.cpp's program")
    parser.add_argument("--llama-python", help="an interpreter with xllamacpp")
    parser.add_argument("--validation-samples", type=int, default=20)
    parser.add_argument("--calibration-samples", type=int, default=32)
    parser.add_argument("--answer-tokens", type=int, default=64)
    given = parser.parse_args()
    titled = False
    for method in given.methods.split(","):
        options: dict[str, object] = {"validation_samples": given.validation_samples}
        if not method.startswith("gguf"):
            options["python"] = given.python
        if method in ("gptq", "awq"):
            options |= {"calibration_samples": given.calibration_samples, "answer_tokens": given.answer_tokens}
        if "K_" in method or "IQ" in method:
            options["llama_quantize"] = given.llama_quantize
        try:
            release = quantize(given.model, given.folder / method.replace(":", "-"), method, **options)
        except MftError as error:
            print(f"| {method} | {error.problems[0]} |", flush=True)
            continue
        if not titled:
            title(release)
            titled = True
        python = sys.executable if method.startswith("gguf") else str(python_of_llmcompressor(given.python))
        print(row(method, release.after, release.bytes_after, read_by(release, python, given.llama_python)), flush=True)


def title(release: Release) -> None:
    """The head of the table, and the row of the model before."""
    columns = [f"{task} ({one.tokens:,} tokens)" for task, one in release.before.items()]
    print(f"| | {' | '.join(columns)} | MB | transformers | llama.cpp |")
    print(f"|---|{'---:|' * (len(columns) + 1)}---|---|")
    print(row("before", release.before, release.bytes_before, ("yes", "-")), flush=True)


if __name__ == "__main__":
    main()
