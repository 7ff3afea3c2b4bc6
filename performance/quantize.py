"""`python performance/quantize.py RUN FOLDER --methods gguf:Q8_0,gptq`: quantize a model by several methods, and print one table.

Each release is written, loaded back and measured by `mft export --quantize`. With `--llama-python`, an interpreter that has xllamacpp (which holds
llama.cpp), every .gguf file is also read by llama.cpp, and the greedy text of some prompts is compared with that of transformers on the same file.
"""

import argparse
import json
import subprocess
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mftcoder.app.results.quantize import quantize
from mftcoder.errors import MftError
from mftcoder.models.export.quantized.release import Release

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


def alike_in_llama_cpp(python: str, file: Path) -> str:
    """How many prompts llama.cpp and transformers go on with in the same way, both reading this file."""
    command = [python, "-c", LLAMA_CPP, str(file), json.dumps(PROMPTS), str(TOKENS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    theirs = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("ANSWERS"))[7:])
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    alike = 0
    for prompt, text in zip(PROMPTS, theirs, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        new = model.generate(**ids, max_new_tokens=TOKENS, do_sample=False)[0, ids.input_ids.shape[1] :]
        alike += tokenizer.decode(new, skip_special_tokens=True) == text
    return f"{alike} of {len(PROMPTS)}"


def row(release: Release, seconds: float, alike: str) -> str:
    """One line of the table; losses are means over all measured tokens."""
    tokens = sum(one.tokens for one in release.after.values())
    before, after = (
        sum(one.loss * one.tokens for one in losses.values()) / tokens for losses in (release.before, release.after)
    )
    size = release.bytes_after / 1e6
    return f"| {release.method.name} | {before:.3f} | {after:.3f} | {size:,.0f} | {seconds:.0f} | {alike} |"


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
    print("| method | loss before | after | MB | s | greedy text as in llama.cpp |\n|---|---:|---:|---:|---:|---:|")
    for method in given.methods.split(","):
        options: dict[str, object] = {"validation_samples": given.validation_samples}
        if not method.startswith("gguf"):
            options["python"] = given.python
        if method in ("gptq", "awq"):
            options |= {"calibration_samples": given.calibration_samples, "answer_tokens": given.answer_tokens}
        if "K_" in method or "IQ" in method:
            options["llama_quantize"] = given.llama_quantize
        started = time.perf_counter()
        try:
            release = quantize(given.model, given.folder / method.replace(":", "-"), method, **options)
        except MftError as error:
            print(f"| {method} | {error.problems[0]} |", flush=True)
            continue
        seconds = time.perf_counter() - started
        file = given.folder / method.replace(":", "-") / release.files[0]
        is_read = given.llama_python and method.startswith("gguf")
        print(row(release, seconds, alike_in_llama_cpp(given.llama_python, file) if is_read else "-"), flush=True)


if __name__ == "__main__":
    main()
