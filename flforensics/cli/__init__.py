"""The command line: introduces the rooms to each other, and turns what happened into an exit status."""

import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from flforensics import __version__
from flforensics.cli.memory import keep_freed
from flforensics.errors import EvidenceError, FLForensicsError, ProcessError, UsageError
from flforensics.report.words import shown

COMMANDS: dict[str, tuple[str, str]] = {
    "inspect": ("flforensics.cli.inspect:command", "What is in this archive, and what is wrong with it."),
    "replay": ("flforensics.cli.replay:command", "Is each global the fusion of its clients?"),
    "trace": ("flforensics.cli.trace:command", "Who is responsible for these predictions?"),
    "lineage": ("flforensics.cli.lineage:command", "Who is responsible, over all stored rounds?"),
    "localize": ("flforensics.cli.localize:command", "Which client of a round is faulty?"),
}

WELL, FINDING, USAGE, UNDECIDED, INTERNAL, INTERRUPTED = 0, 1, 2, 3, 70, 130
STATUS: tuple[tuple[type[FLForensicsError], int], ...] = (
    (UsageError, USAGE),
    (EvidenceError, UNDECIDED),
    (ProcessError, INTERNAL),
)

EPILOG = """
Exit status: 0 all is well; 1 a finding (a round is inconsistent, a client sent non-finite numbers);
2 wrong usage; 3 evidence missing, rejected or not decidable; 70 an internal error; 130 interrupted.
"""


class _Commands(click.Group):
    """Loads a command only when it is asked for, so that help answers at once."""

    def list_commands(self, context: click.Context) -> list[str]:
        """The names in the table, in its order."""
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command called `name`, or None."""
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(cls=_Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="flforensics")
def group() -> None:
    """Says which client of a federated-learning round is responsible for a prediction.

    Works on saved checkpoints alone, from any framework; an archive.toml describes them. Nothing in an archive
    is ever executed, and nothing is fetched.
    """
    keep_freed()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the only place where errors become messages and exit statuses.

    click's own `main` would end some failures with status 1, which means a finding here.
    """
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        with group.make_context("flforensics", given) as context:
            status = group.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return USAGE
    except FLForensicsError as error:
        _say(error.message, error.hint)
        return next(status for kind, status in STATUS if isinstance(error, kind))
    except (click.Abort, KeyboardInterrupt):
        _say("interrupted; nothing was written")
        return INTERRUPTED
    except BrokenPipeError:
        _stop_writing()
        return WELL
    except (Exception, SystemExit) as error:  # noqa: BLE001  the one boundary: a user never sees a traceback
        _say(
            f"internal error ({type(error).__name__}); the traceback is in {_keep_traceback()}",
            "please report it",
        )
        return INTERNAL
    return int(status or WELL)


def _say(message: str, hint: str = "") -> None:
    """One sentence on stderr and one with the way out; what evidence put into them cannot steer a terminal."""
    click.echo(f"flforensics: {_sentence(message)}", err=True)
    if hint:
        click.echo(f"  {_sentence(hint[0].upper() + hint[1:])}", err=True)


def _sentence(text: str) -> str:
    return shown(text if text.endswith(("?", ".")) else f"{text}.")


def _keep_traceback() -> str:
    descriptor, name = tempfile.mkstemp(prefix="flforensics-", suffix=".txt")
    os.close(descriptor)
    Path(name).write_text(traceback.format_exc(), encoding="utf-8")
    return name


def _stop_writing() -> None:
    """Whoever read our output has gone: keep the interpreter from complaining when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
