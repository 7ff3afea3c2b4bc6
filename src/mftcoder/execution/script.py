"""Run a Python script in the sandbox for what it prints: nothing is tested, nothing is judged."""

import json

from mftcoder.errors import ExecutionError
from mftcoder.execution.run_programs import Sandbox
from mftcoder.execution.sandbox import ExecutionResult, Limits, Program

_RUNNER = """
def printed():
    import contextlib, io, json, traceback
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            exec(compile({code!r}, "answer.py", "exec"), {{"__name__": "__main__"}})
        except SystemExit:
            pass
        except BaseException as error:
            frames = traceback.extract_tb(error.__traceback__)
            error.__traceback__ = None
            lines = [frame for frame in frames if frame.filename == "answer.py"]
            print("Traceback (most recent call last):")
            for frame in lines:
                print(f'  File "answer.py", line {{frame.lineno}}, in {{frame.name}}')
            print("".join(traceback.format_exception_only(error)), end="")
    return json.dumps(output.getvalue()[:{most}])
"""
_TESTS = "class Printed(Exception): pass\nraise Printed(printed())\n"
_MARK = "Printed: "
MOST = 20_000  # characters that are shown


def run_script(sandbox: Sandbox, code: str, limits: Limits | None = None) -> str:
    """What a script prints, its traceback included. ExecutionError if it was stopped, with the reason."""
    program = Program(
        "python",
        {"candidate": _RUNNER.format(code=code, most=MOST), "tests": _TESTS, "entry_point": "printed", "report": "yes"},
    )
    result = sandbox.run(program, limits or Limits(output_kb=16 * MOST // 1024))
    if result.status != "failed" or not result.stderr.startswith(_MARK):
        raise ExecutionError(f"the script was stopped: {_why(result)}")
    return str(json.loads(result.stderr.removeprefix(_MARK)))


def _why(result: ExecutionResult) -> str:
    return f"{result.status}{f': {result.stderr}' if result.stderr else ''}"
