"""Is training right on this GPU, and how fast is it? Runs tests/gpu, then a table of training speeds; ends within nine minutes.

    make gpu                                            # or: python performance/gpu.py
    python performance/gpu.py --go-on                    # the rows that the time did not suffice for
    python performance/gpu.py --only lora --skip-tests --minutes 20
    python performance/gpu.py --profile --only "full, defaults"
    python performance/gpu.py --device cpu --tiny        # a dry run: does everything run?

Needs a GPU and the project's packages; no hub, no data, no installed project. The model has Qwen2.5-Coder-1.5B's shape and random
weights. Its samples are random words, log-normal in length around 350 tokens, packed into 8 rows of 4,096 a step. Every row of the
table runs in a process of its own: one that fails, hangs or runs out of memory costs its row, and the table says so. The JSON is
written anew after each row.

Columns: real tokens/s (padding is not counted); the share of what the bf16 matrix products alone would allow, with the speed of
a large product measured in the same run (6 FLOP a weight and token for full fine-tuning, 4 where the base is frozen; the head's
for trained tokens only; attention and LoRA's own products not counted); peak GiB of the GPU's allocator (of the process on a
CPU); loss of the first and the last step; and how long the device waited for the host between two steps.
"""

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
ROW_SCRIPT = Path(__file__).with_name("gpu_row.py")
NEEDED = (
    "torch", "transformers", "peft", "tokenizers", "safetensors", "accelerate", "numpy", "pydantic", "orjson", "ruamel.yaml",
    "xxhash", "jinja2", "psutil", "rich", "click",
)  # fmt: skip
MINUTES = 9.0
TEST_SECONDS, ROW_SECONDS, LEAST_SECONDS = 170.0, 110.0, 25.0
FAST = {"train": {"torch_compile": True, "gradient_checkpointing": False}}


@dataclass(frozen=True)
class Row:
    """One line of the table: what runs, on which mask, and what its config says beyond the defaults."""

    name: str
    runs: str = "steps"  # bare steps; `mft train` with its loader, log and records; or a peer
    trained: str = "all"  # of the tokens: all, or 46%
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What it is called in the table and in --only."""
        return f"{self.name} [{self.trained}]"


def merged(*parts: dict[str, Any]) -> dict[str, Any]:
    """Configs laid over each other, section by section."""
    whole: dict[str, Any] = {}
    for part in parts:
        for section, fields in part.items():
            whole[section] = {**whole.get(section, {}), **fields}
    return whole


FULL, LORA = {"adapter": {"type": "full"}}, {"adapter": {"type": "lora", "lora_rank": 32, "lora_alpha": 64}}
QLORA, FP8 = (merged(LORA, {"model": {"quantization": bits}}) for bits in ("4bit", "fp8"))
QLORA_FP8 = merged(LORA, {"model": {"quantization": "4bit-fp8"}})
FULL_FP8 = merged(FULL, {"train": {"fp8_recipe": "tensorwise"}})
MASK = "46%"
ROWS = (
    Row("full, defaults", config=FULL),
    Row("lora, defaults", config=LORA),
    Row("peer lora: transformers + peft + Liger, packed", "peer", config=LORA),
    Row("peer full: transformers + Liger, packed", "peer", config=FULL),
    Row("lora over fp8, fastest", config=merged(FP8, FAST)),
    Row("lora, mft train", "mft train", MASK, LORA),
    Row("qlora nf4, defaults", config=QLORA),
    Row("peer qlora: transformers + peft + Liger, packed", "peer", config=QLORA),
    Row("full, fastest", config=merged(FULL, FAST)),
    Row("lora, fastest", config=merged(LORA, FAST)),
    Row("full, mft train", "mft train", MASK, FULL),
    Row("full in fp8, fastest", config=merged(FULL_FP8, FAST)),
    Row("qlora nf4 in fp8, fastest", config=merged(QLORA_FP8, FAST)),
    Row("lora over fp8, defaults", config=FP8),
    Row("qlora nf4, fastest", config=merged(QLORA, FAST)),
    Row("qlora nf4, mft train", "mft train", MASK, QLORA),
    Row("lora over fp8, mft train", "mft train", MASK, FP8),
    *(
        Row(f"{name}, {how}", trained=MASK, config=merged(config, settings))
        for how, settings in (("defaults", {}), ("fastest", FAST))
        for name, config in (("full", FULL), ("lora", LORA), ("qlora nf4", QLORA), ("lora over fp8", FP8))
    ),
    Row("lora, mft train, deterministic", "mft train", MASK, merged(LORA, {"train": {"deterministic": True}})),
    Row("peer lora: TRL", "peer", config=LORA),
    Row("peer full: TRL", "peer", config=FULL),
    Row("peer lora: unsloth", "peer", config=LORA),
    Row("peer full: unsloth", "peer", config=FULL),
    Row("peer qlora: unsloth", "peer", config=QLORA),
)


def children_environment() -> dict[str, str]:
    """The caller's, with this checkout's package and tests in front, installed or not."""
    paths = [str(REPOSITORY / "src"), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    settings = {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return {**os.environ, **settings, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


@dataclass(frozen=True)
class Ended:
    """How a process ended; `code` None: it was killed when its time was over."""

    code: int | None
    output: str
    seconds: float


class Processes:
    """Starts one process at a time, in a group of its own that is killed as a whole."""

    def __init__(self) -> None:
        self._running: subprocess.Popen[bytes] | None = None

    def run(self, command: list[str], seconds: float) -> Ended:
        """The command's end and output (both streams), after `seconds` at most; nothing that it started stays."""
        started = time.monotonic()
        with tempfile.TemporaryFile() as output:
            self._running = process = subprocess.Popen(
                command, cwd=REPOSITORY, env=children_environment(), stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                code: int | None = process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                self.kill()
            output.seek(0)
            return Ended(code, output.read().decode(errors="replace"), time.monotonic() - started)

    def kill(self) -> None:
        """End what is running, with its children."""
        if self._running is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._running.pid, signal.SIGKILL)
            self._running.wait()
            self._running = None


def outcome(ended: Ended, result: Path, seconds: float) -> dict[str, Any]:
    """A row's result file with its status, or how the process ended without one."""
    if result.is_file():
        found: dict[str, Any] = json.loads(result.read_text())
        return found
    if ended.code is None:
        return {
            "status": "no time",
            "reason": f"killed after {seconds:.0f} s; the last line: {last_line(ended.output)}",
        }
    what = f"signal {-ended.code}" if ended.code < 0 else f"exit code {ended.code}"
    return {"status": "crashed", "reason": f"{what}: {last_line(ended.output)}"}


def last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def write_whole(path: Path, value: Any) -> None:
    """As JSON; the file is never seen half written."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2) + "\n")
    part.replace(path)


class Benchmark:
    """One run of the table: its clock, its folder, its report."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.args, self.folder, self.processes = args, folder, Processes()
        self.deadline = time.monotonic() + 60 * args.minutes - 5
        self.row_seconds = ROW_SECONDS * max(1.0, args.minutes / MINUTES)
        before = json.loads(args.json.read_text()) if args.go_on and args.json.is_file() else {}
        self.report: dict[str, Any] = {
            "command": sys.argv, "finished": False, "machine": {}, "tests": before.get("tests", {}),
            "rows": [row for row in before.get("rows", []) if row["status"] not in ("left out", "no time")],
        }  # fmt: skip

    def left(self) -> float:
        """Seconds until everything must have ended."""
        return self.deadline - time.monotonic()

    def write(self) -> None:
        """The report as far as it is known."""
        write_whole(self.args.json, self.report)

    def run(self) -> None:
        """Machine, tests, rows; whatever fails inside, the report is whole."""
        self.write()
        if problem := self.prepare():
            self.report["machine"] = problem
            print(f"nothing can be measured: {problem['reason']}", flush=True)
        elif not self.args.skip_tests:
            self.test()
        self.measure(problem)
        self.report["finished"] = True
        self.write()

    @property
    def exit_code(self) -> int:
        """2 if nothing could be measured, 1 if a test failed."""
        if self.report["machine"].get("status") != "ok":
            return 2
        return int(self.report["tests"].get("status") in ("failed", "crashed"))

    def prepare(self) -> dict[str, Any] | None:
        """Model, data and the speed of a product; what is wrong if that fails."""
        machine = self.child("prepare", {}, min(self.row_seconds, self.left()))
        if machine.get("status") != "ok":
            return machine
        self.report["machine"] = machine
        self.write()
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
        print(f"{machine['device']}, {machine['memory_gib']:.0f} GiB; {versions}")
        print(
            f"bf16 product: {machine['flop_per_second'] / 1e12:.3g} TFLOP/s; {machine['trained_share']:.0%} of the masked "
            f"tokens are trained; {machine['micro_batches']} x {machine['rows']} rows a step\n",
            flush=True,
        )
        return None

    def test(self) -> None:
        """tests/gpu, in their own time; on a CPU their twins are part of the test suite."""
        if importlib.util.find_spec("pytest") is None:
            self.report["tests"] = {"status": "left out", "reason": "pytest is not installed"}
        else:
            marker = "gpu" if self.args.device == "cuda" else "gpu and not gpu"
            options = [
                "-m",
                marker,
                "-v",
                "--tb=short",
                "-p",
                "no:cacheprovider",
                "-o",
                "filterwarnings=",
                "--disable-warnings",
            ]
            if self.args.device == "cuda" and importlib.util.find_spec("xdist") is not None:
                options += ["-n", "4"]
            command = [sys.executable, "-m", "pytest", *options, "tests/gpu"]
            seconds = min(TEST_SECONDS, self.left() / 2)
            self.report["tests"] = test_report(self.processes.run(command, seconds), seconds)
        self.write()
        tests = self.report["tests"]
        print(f"tests/gpu: {tests['status']}{': ' if tests.get('reason') else ''}{tests.get('reason', '')}")
        print("".join(f"  {name}\n" for name in tests.get("failed", [])), flush=True)

    def measure(self, problem: dict[str, Any] | None) -> None:
        """The table, row by row."""
        done = {row["row"] for row in self.report["rows"]}
        width = max(len(row.key) for row in ROWS)
        if not problem:
            print(
                f"{'':{width}} {'tokens/s':>9} {'of limit':>9} {'peak GiB':>9} {'first':>7} {'last':>7} {'wait ms':>8}"
            )
        for row in ROWS:
            if row.key in done or not any(part in row.key for part in self.args.only.split("|")):
                continue
            seconds = min(self.row_seconds, self.left())
            if problem:
                result = {"status": "left out", "reason": problem["reason"]}
            elif seconds < LEAST_SECONDS:
                result = {"status": "left out", "reason": "no time left; --go-on measures it"}
            else:
                result = self.child("row", asdict(row), seconds)
            self.report["rows"].append(
                entry := {"row": row.key, **asdict(row), **with_share(result, self.report["machine"])}
            )
            self.write()
            if not problem:
                print(f"{row.key:{width}} {line_of(entry)}", flush=True)

    def child(self, what: str, row: dict[str, Any], seconds: float) -> dict[str, Any]:
        """What gpu_row.py finds out in a process of its own."""
        result = self.folder / "result.json"
        result.unlink(missing_ok=True)
        spec = {
            "row": row, "folder": str(self.folder), "device": self.args.device, "tiny": self.args.tiny, "result": str(result),
            "profile": self.args.profile, "machine": self.report["machine"], "seconds": seconds, "steps": self.args.steps,
        }  # fmt: skip
        command = [sys.executable, str(ROW_SCRIPT), what, json.dumps(spec)]
        ended = self.processes.run(command, seconds)
        found = {**outcome(ended, result, seconds), "seconds": ended.seconds}
        if found["status"] != "ok":
            found["output"] = ended.output[-4000:]
        return found


def with_share(result: dict[str, Any], machine: dict[str, Any]) -> dict[str, Any]:
    """The result with its share of the limit."""
    if result["status"] != "ok":
        return result
    return {**result, "share_of_limit": result["flop_per_second"] / machine["flop_per_second"]}


def line_of(entry: dict[str, Any]) -> str:
    """The columns of a row, or why it has none; its kernels below it."""
    if entry["status"] != "ok":
        return f"{entry['status']}: {entry['reason']}"
    first, last = entry["losses"][0], entry["losses"][-1]
    wait = "-" if entry["wait_ms"] is None else f"{entry['wait_ms']:.2f}"
    notes = [
        entry.get("plan") or "",
        entry.get("attention") or "",
        {False: "without Liger"}.get(entry.get("liger"), ""),
    ]
    line = f"{entry['tokens_per_second']:9,.0f} {entry['share_of_limit']:9.1%} {entry['peak_gib']:9.1f} {first:7.3f} {last:7.3f} {wait:>8}  {', '.join(filter(None, notes))}"
    kernels = "".join(
        f"\n    {kernel['ms']:9.3f} ms {kernel['share']:6.1%} {kernel['calls']:6.0f} x  {kernel['name'][:90]}"
        for kernel in entry.get("kernels", [])
    )
    return line + kernels


def test_report(ended: Ended, seconds: float) -> dict[str, Any]:
    """Counts and the failed tests' names, from pytest's own lines; a run that was killed has those that it came to."""
    alone = re.findall(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)", ended.output, re.MULTILINE)
    by_workers = re.findall(r"^\[gw\d+\].*? (PASSED|FAILED|ERROR|SKIPPED) (\S+::.+?) *$", ended.output, re.MULTILINE)
    verdicts = [*alone, *((name, verdict) for verdict, name in by_workers)]
    counts = {
        kind.lower(): sum(verdict == kind for _, verdict in verdicts)
        for kind in ("PASSED", "FAILED", "ERROR", "SKIPPED")
    }
    failed = [name for name, verdict in verdicts if verdict in ("FAILED", "ERROR")]
    shown = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or "no test ran"
    if ended.code is None:
        status = "no time"
        shown += f"; killed after {seconds:.0f} s"
    elif ended.code < 0 or ended.code not in (0, 1, 5):
        status = "crashed"
        shown += f"; exit code {ended.code}: {last_line(ended.output)}"
    else:
        status = "failed" if failed else "ok"
    report = {"status": status, "reason": shown, **counts, "failed": failed, "seconds": ended.seconds}
    return report if status == "ok" else {**report, "output": ended.output[-12000:]}


def missing_packages() -> list[str]:
    """What the project needs and this Python does not have."""
    return [name for name in NEEDED if importlib.util.find_spec(name.split(".")[0]) is None]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", default="", help="only rows whose name holds one of these, e.g. 'lora' or 'full|peer'"
    )
    parser.add_argument("--go-on", action="store_true", help="measure what the JSON does not hold yet; no tests")
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument(
        "--profile", action="store_true", help="the ten most expensive kernels of every row of bare steps"
    )
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="everything ends within them; more than 9 give each row more"
    )
    parser.add_argument("--steps", type=int, default=15, help="timed steps of each row")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and short rows: does everything run?")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu only for a dry run")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="where the report goes")
    args = parser.parse_args()
    args.skip_tests = args.skip_tests or args.go_on
    return args


def main() -> None:
    args = arguments()
    if missing := missing_packages():
        raise SystemExit(
            f"missing packages: {', '.join(missing)}. Install them with: python -m pip install {' '.join(missing)}"
        )
    with tempfile.TemporaryDirectory(prefix="mft-gpu-") as folder:
        benchmark = Benchmark(args, Path(folder))
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
        try:
            benchmark.run()
        finally:
            benchmark.processes.kill()
            benchmark.write()
    print(f"\nwritten to {args.json}")
    raise SystemExit(benchmark.exit_code)


if __name__ == "__main__":
    main()
