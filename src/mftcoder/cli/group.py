"""The command `mft`: options in, one call into app/ out. User errors become lines and exit code 2.

Nothing heavy is imported here: each command imports its verb when it runs, so `mft --help` answers at once.
Exit codes: 0 done, 2 a user's mistake, 130 interrupted, 75 stopped by a scheduler after a clean save, 1 a bug of ours or an
evaluation that could not judge every answer.
Of several processes the first one speaks; another only if something is wrong with it alone.
"""

import errno
import math
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from mftcoder import __version__
from mftcoder.errors import ConfigError, Interrupted, MftError, UnjudgedError
from mftcoder.processes import follow_parent

MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
NO_FOLDER = (errno.EEXIST, errno.ENOTDIR)
"""A full disk, a folder that may not be written: the user's to mend, whichever file it hits."""
HOMELESS = "home directory"
"""What pathlib says of `~nobody/x`."""
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
LARGEST = 2**31 - 1
COUNT = click.IntRange(1, LARGEST)
SEED = click.IntRange(-(2**63), 2**63 - 1)


class Finite(click.FloatRange):
    """A number within a range, and neither infinite nor nan."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        """The number, or click's error."""
        number = float(super().convert(value, parameter, context))
        if not math.isfinite(number) or abs(number) > LARGEST:
            self.fail(f"{value} is out of range.", parameter, context)
        return number


def main(arguments: list[str] | None = None) -> None:
    """Run `mft` and exit with its code."""
    follow_parent()
    if "OMP_WAIT_POLICY" not in os.environ:
        # A waiting thread of GNU's OpenMP spins for milliseconds by default: with other work on the processor, ten times the time of a step.
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        _refuse_half_characters(sys.argv[1:] if arguments is None else arguments)
        cli.main(arguments, prog_name="mft", standalone_mode=False)
    except MftError as error:
        reported_by_rank0 = _other_rank() and (error.reported or isinstance(error, ConfigError))
        for problem in () if reported_by_rank0 else error.problems:
            _say(problem)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except UnjudgedError as error:
        for problem in error.problems:
            click.echo(f"error: {problem}", err=True)
        sys.exit(error.exit_code)
    except Interrupted as stop:
        if not _other_rank():
            click.echo(f"interrupted. {stop.hint}", err=True)
        sys.exit(stop.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted. Type the same command again to go on.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except (OSError, MemoryError, RuntimeError) as error:
        line = _machine_problem(error)
        if line is None:
            raise
        _say(line)
        sys.exit(2)


def _machine_problem(error: Exception) -> str | None:
    """What the machine refuses and the user can mend, in a line; None for a bug of ours."""
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}. Choose smaller rows or batches; `mft validate` estimates what a run needs"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"{str(error.filename)[:60]}...: is longer than a file name can be"
    if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
        return f"{error.filename or 'a file'}: {error.strerror}. Make room or choose another folder."
    if isinstance(error, OSError) and error.errno in NO_FOLDER and error.filename:
        return f"{error.filename}: {error.strerror}. Give a folder that is there or can be made"
    if isinstance(error, RuntimeError) and HOMELESS in str(error):
        return "a path begins with ~ and a user whose home folder is not known. Write it in full"
    return None


def _refuse_half_characters(words: Iterable[str]) -> None:
    """MftError for arguments that are not UTF-8: no file that mft writes could hold them."""
    problems = []
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            problems.append(f"argument {word!r}: is not UTF-8")
    if problems:
        raise MftError(*problems)


def _say(problem: str) -> None:
    """Print one line, whatever a user's value has brought into it."""
    from mftcoder.config.problems import one_line

    click.echo(f"error: {one_line(problem, 2000)}", err=True)


def _other_rank() -> bool:
    return os.environ.get("RANK", "0") != "0"


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="mft")
def cli() -> None:
    """Fine-tune one code model on many tasks, keep them in balance, prove it.

    \b
    mft validate my.yaml                 check everything, print the plan
    mft train my.yaml                    train; the same command resumes
    mft export runs/my models/my         merge and write a Hugging Face folder
    mft generate models/my --task mini   write completions
    mft evaluate generations_mini_my.json --task mini
    mft report runs/my                   one HTML page with curves and tables
    mft demo                             all of it on a small real model
    """


def config_command(command: Callable[..., Any]) -> Callable[..., Any]:
    """Arguments shared by the commands that start from a config."""
    command = click.argument("overrides", nargs=-1, metavar="[SECTION.FIELD=VALUE]...")(command)
    return click.argument("config", type=click.Path(path_type=Path))(command)
