"""The entry point of `mft`: the commands in the order of the journey, and the exit code of every kind of end.

Exit codes: 0 done, 2 a user's mistake, 3 a budget is spent, 130 interrupted, 75 stopped by a scheduler after a clean save, 1 a bug of ours, an
evaluation that could not judge every answer, an assistant whose model gave no answer that holds, or a quantized model that lost too
much. Of several processes, rank 0 prints; another rank prints only an error that it alone has.
"""

import errno
import io
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from mftcoder import __version__
from mftcoder.cli.data.group import group as data
from mftcoder.cli.data.inspect import command as inspect
from mftcoder.cli.data.prepare import command as prepare
from mftcoder.cli.demo import command as demo
from mftcoder.cli.doctor import command as doctor
from mftcoder.cli.results.export import command as export
from mftcoder.cli.results.report import command as report
from mftcoder.cli.scoring.benchmarks import command as benchmarks
from mftcoder.cli.scoring.evaluate import command as evaluate
from mftcoder.cli.scoring.generate import command as generate
from mftcoder.cli.scoring.submit import command as submit
from mftcoder.cli.serving.assist import group as assist
from mftcoder.cli.serving.chat import command as chat
from mftcoder.cli.serving.serve import command as serve
from mftcoder.cli.training.compare import command as compare
from mftcoder.cli.training.convert_config import command as convert_config
from mftcoder.cli.training.improve import command as improve
from mftcoder.cli.training.train import command as train
from mftcoder.cli.training.validate import command as validate
from mftcoder.errors import (
    BudgetSpent,
    ConfigError,
    Interrupted,
    MftError,
    UnsuccessfulError,
)
from mftcoder.processes import follow_parent, let_waiting_threads_sleep

COMMANDS = (
    demo,
    doctor,
    data,
    convert_config,
    validate,
    prepare,
    inspect,
    train,
    compare,
    improve,
    export,
    benchmarks,
    generate,
    evaluate,
    submit,
    report,
    chat,
    serve,
    assist,
)
"""In the order of `mft --help`: the order in which a user needs them."""
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True}
MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
"""A full disk, a limit on the size of files, a folder without write permission: the user can mend these, whichever file they hit."""
NO_FOLDER = (errno.EEXIST, errno.ENOTDIR)
HOMELESS = "home directory"
"""What pathlib says of `~nobody/x`."""
LOOP = "Symlink loop from "
"""What pathlib says of such a link, before Python 3.13."""
TRAIN_PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "tensorboard")
"""What the extra `train` installs; evaluation needs none of them."""


class Journey(click.Group):
    """A group that lists its commands in the order in which they were added."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=Journey, commands={str(command.name): command for command in COMMANDS}, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="mft")
def cli() -> None:
    """Fine-tune one code model on many tasks, keep the tasks in balance, and prove it.

    \b
    mft validate my.yaml                 check everything, print the plan
    mft train my.yaml                    train; the same command resumes
    mft export runs/my models/my         merge and write a Hugging Face folder
    mft generate models/my --task mini   write completions
    mft evaluate generations_mini_my.json --task mini
    mft report runs/my                   one HTML page with curves and tables
    mft demo                             all of it on a small real model
    """


def main(arguments: list[str] | None = None) -> None:
    """Run `mft` and exit with its code."""
    follow_parent()
    let_waiting_threads_sleep()
    _print_any_character()
    try:
        _refuse_half_characters(sys.argv[1:] if arguments is None else arguments)
        cli.main(arguments, prog_name="mft", standalone_mode=False)
    except MftError as error:
        reported_by_rank0 = _is_other_rank() and (error.reported or isinstance(error, ConfigError))
        for problem in () if reported_by_rank0 else error.problems:
            _print_error(problem)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except UnsuccessfulError as error:
        for problem in error.problems:
            _print_error(problem)
        sys.exit(error.exit_code)
    except BudgetSpent as stop:
        click.echo(f"stopped: {stop.hint}", err=True)
        sys.exit(stop.exit_code)
    except Interrupted as stop:
        if not _is_other_rank():
            click.echo(f"interrupted. {stop.hint}", err=True)
        sys.exit(stop.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted. Type the same command again to go on.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except ModuleNotFoundError as error:
        if error.name not in TRAIN_PACKAGES:
            raise
        _print_error(
            f"this command needs {error.name}, which is not installed. Install it with: pip install 'mftcoder[train]'"
        )
        sys.exit(2)
    except (OSError, MemoryError, RuntimeError) as error:
        line = _machine_problem(error)
        if line is None:
            raise
        _print_error(line)
        sys.exit(2)


def _machine_problem(error: Exception) -> str | None:
    """One line for what the machine refuses and the user can mend; None for a bug of ours."""
    from mftcoder.jsonl import SHORT_WRITE

    if isinstance(error, MemoryError):
        return f"not enough memory: {error}. Choose smaller rows or batches; `mft validate` estimates what a run needs"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"{str(error.filename)[:60]}...: is longer than a file name can be"
    if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
        return f"{error.filename or 'a file'}: {error.strerror}. Make room or choose another folder."
    if isinstance(error, OSError) and error.errno is None and SHORT_WRITE.fullmatch(str(error)):
        return "a file could not be written in full. Make room or choose another folder."
    if isinstance(error, OSError) and error.errno in NO_FOLDER and error.filename:
        return f"{error.filename}: {error.strerror}. Give a folder that is there or can be made"
    if isinstance(error, FileNotFoundError) and error.filename and _has_no_room(Path(os.fsdecode(error.filename))):
        return f"{error.filename}: nothing can be written there. Choose another folder"
    if isinstance(error, RuntimeError) and HOMELESS in str(error):
        return "a path begins with ~ and a user whose home folder is not known. Write it in full"
    if getattr(error, "errno", None) == errno.ELOOP or (isinstance(error, RuntimeError) and LOOP in str(error)):
        return (
            f"{getattr(error, 'filename', None) or str(error).removeprefix(LOOP)}: is a link that leads back to itself"
        )
    return None


def _has_no_room(path: Path) -> bool:
    """Whether it lies in a file system without blocks, such as /proc: there the kernel says of a new file that it does not exist."""
    nearest = next((folder for folder in path.absolute().parents if folder.is_dir()), None)
    return nearest is not None and os.statvfs(nearest).f_blocks == 0


def _print_any_character() -> None:
    """Print a question mark for a character that the terminal's encoding does not have, instead of ending there."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


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


def _print_error(problem: str) -> None:
    """Print one line, even if a value in it has line breaks or control characters."""
    from mftcoder.config.problems import one_line

    click.echo(f"error: {one_line(problem, 2000)}", err=True)


def _is_other_rank() -> bool:
    return os.environ.get("RANK", "0") != "0"
