"""What a model behind an endpoint gives in each method of `mft data synthesize`, on a few inputs: requests, records, drops, by method.

    mft serve MODEL --name NAME --port 8123
    python performance/synthesis.py --endpoint http://localhost:8123/v1 --model NAME --out /tmp/synthesis

Each command runs twice; the second run must send no request. docs/synthesis.md shows the table for a small model.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RIGHT = {
    "Write a Python function `larger(a, b)` that returns the larger of two numbers.": "def larger(a, b):\n    return a if a > b else b",
    "Write a Python function `count_vowels(text)` that counts the vowels of a text.": "def count_vowels(text):\n    return sum(letter in 'aeiouAEIOU' for letter in text)",
    "Write a Python function `is_even(number)`.": "def is_even(number):\n    return number % 2 == 0",
    "Write a Python function `reverse(text)` that reverses a text.": "def reverse(text):\n    return text[::-1]",
    "Write a Python function `factorial(n)`.": "def factorial(n):\n    result = 1\n    for i in range(2, n + 1):\n        result *= i\n    return result",
    "Write a Python function `add(a, b)` that returns the sum.": "def add(a, b):\n    return a + b",
}  # fmt: skip
WRONG = {
    "Write a Python function `add(a, b)` that returns the sum.": ("def add(a, b):\n    return a - b", "assert add(2, 3) == 5\nassert add(0, 4) == 4"),
    "Write a Python function `is_even(number)`.": ("def is_even(number):\n    return number % 2 == 1", "assert is_even(2)\nassert not is_even(3)"),
    "Write a Python function `reverse(text)` that reverses a text.": ("def reverse(text):\n    return text", "assert reverse('abc') == 'cba'"),
    "Write a Python function `largest(items)`.": ("def largest(items):\n    return min(items)", "assert largest([1, 3, 2]) == 3"),
}  # fmt: skip


def fenced(code: str) -> str:
    """The code as a Markdown block."""
    return f"```python\n{code}\n```"


def write(path: Path, records: list[dict[str, Any]]) -> str:
    """The records as JSONL."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def run(arguments: list[str], out: Path, shared: list[str]) -> tuple[dict[str, Any], float]:
    """The manifest after a command, and its seconds. Exit code 2 says that no record was left."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "mftcoder", "data", "synthesize", *arguments, *shared, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 2) or not (out / "manifest.json").exists():
        sys.exit(done.stderr)
    return json.loads((out / "manifest.json").read_text()), time.perf_counter() - started


def main() -> None:
    """Run all methods and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--endpoint", "--model", "--out"):
        parser.add_argument(name, required=True)
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True)
    right = write(out / "right.jsonl", [{"prompt": one, "completion": fenced(code)} for one, code in RIGHT.items()])
    wrong = [{"prompt": one, "completion": fenced(code), "tests": tests} for one, (code, tests) in WRONG.items()]
    methods = {
        "exercises": [str(ROOT / "recipes/exercises_topics.txt"), "--exercises", "1", "--limit", "12"],
        "evol": [right, "--rounds", "2"],
        "oss": [str(ROOT / "src/mftcoder"), "--snippets", "10"],
        "tests": [right, "--count", "3"],
        "repair": [write(out / "wrong.jsonl", wrong)],
    }
    shared = ["--endpoint", options.endpoint, "--model", options.model, "--max-tokens", "400", "--temperature", "0.6"]
    print("| method | requests | tokens in, out | seconds | records | dropped |\n|---|---:|---:|---:|---:|---|")
    for method, arguments in methods.items():
        made, seconds = run([method, *arguments], out / method, shared)
        used = made["requests"]["models"][options.model]
        again, _ = run([method, *arguments], out / method, shared)
        assert again["requests"] == made["requests"], f"{method}: the second run sent a request"
        drops = sum((Counter(step["dropped"]) for step in made["steps"]), Counter())
        records = ", ".join(f"{task['kept']} {name}" for name, task in made["tasks"].items()) or "0"
        print(
            f"| {method} | {used['attempts']} | {used['prompt_tokens']:,}, {used['completion_tokens']:,} | {seconds:.0f} | {records} | "
            f"{', '.join(f'{rule} {count}' for rule, count in drops.most_common())} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
