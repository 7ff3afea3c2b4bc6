"""`python docs/pictures.py demo`: make the pictures of README.md from the folder that `mft demo` wrote. Needs chromium.

report.png is the top of the demo's report; console.svg is what `mft inspect` prints for one sample of the demo's data.
"""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME
from rich.text import Text

PICTURES = Path(__file__).parent / "pictures"
COLUMNS = 100
LINES = 30


def main(demo: Path) -> None:
    """Write both pictures; exit with a line if the demo's folder or chromium is missing."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    missing = [str(path) for path in (demo / "report.html", demo / "train.yaml") if not path.is_file()]
    if missing or browser is None:
        sys.exit(
            f"missing: {', '.join(missing) or 'chromium'}. `make demo` writes the folder; chromium is a package of the system."
        )
    PICTURES.mkdir(exist_ok=True)
    page = (demo / "report.html").resolve().as_uri()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1100,1150"]
    subprocess.run(
        [browser, *options, f"--screenshot={PICTURES / 'report.png'}", page], check=True, stderr=subprocess.DEVNULL
    )
    command = ["mft", "inspect", str(demo / "train.yaml"), "--task", "repair_function", "--count", "1"]
    (PICTURES / "console.svg").write_text(_drawn(command), encoding="utf-8")


def _drawn(command: list[str]) -> str:
    """The first lines that `command` prints, as an SVG of a terminal."""
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(COLUMNS)}
    program = [sys.executable, "-m", "mftcoder", *command[1:]]
    printed = subprocess.run(program, env=environment, capture_output=True, text=True, check=True).stdout
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text.from_ansi("\n".join(printed.splitlines()[:LINES])))
    return console.export_svg(title=" ".join(command), theme=DEFAULT_TERMINAL_THEME)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
