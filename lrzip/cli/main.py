"""The `lrzip` command: its verbs, its errors and its exit codes."""

import os
import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from lrzip.cli.analyze import analyze
from lrzip.cli.commands import Stopped
from lrzip.cli.compress import compress
from lrzip.cli.console import printable
from lrzip.cli.export import export
from lrzip.cli.finetune import finetune
from lrzip.cli.help import Grouped
from lrzip.cli.messages import about_parameters, shortened, with_flags
from lrzip.cli.streams import discard_stdout, open_closed_streams, replace_unprintable
from lrzip.cli.verbs import ANALYZE, COMPRESS, EXPORT, FINETUNE
from lrzip.core.errors import LrzipError, UsageError
from lrzip.core.version import __version__

app = typer.Typer(
    name="lrzip",
    help="Make trained checkpoints smaller and faster by low-rank factorization.",
    epilog="Example: lrzip compress model.pt --energy 0.95 --skip conv1",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


for command, run in ((ANALYZE, analyze), (COMPRESS, compress), (FINETUNE, finetune), (EXPORT, export)):
    app.command(cls=Grouped, epilog=f"Example: {command.example}")(run)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"lrzip {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    del version
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> NoReturn:
    """Run the command line; print known errors in one line on standard error, and exit with their code."""
    # OpenMP threads that wait by spinning slow each other down 20 to 100 times where another process uses a
    # core: eigh of 1024² took 6 to 12 s instead of 0.07 s. Spinning less cost nothing on an idle machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    open_closed_streams()
    replace_unprintable()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _terminate)
    sys.exit(_run())


def _run() -> int:
    try:
        return int(app(standalone_mode=False) or 0)
    except typer.TyperException as error:
        return _fail(error.format_message(), error.exit_code)
    except UsageError as error:
        return _fail(about_parameters(str(error)), 2)
    except LrzipError as error:
        return _fail(with_flags(str(error)), 1)
    except MemoryError:
        return _fail("Out of memory.", 1)
    except Stopped as stopped:
        return _stop(stopped.cause)
    except OSError as error:
        discard_stdout()
        where = f"`{error.filename}`" if error.filename else "a stream or temporary file"
        return _fail(f"Could not read or write {where}: {error.strerror or error}.", 1)


def _stop(cause: BaseException) -> int:
    """Return the exit code of a shell for a process that ends by SIGINT or SIGPIPE."""
    if isinstance(cause, KeyboardInterrupt):
        return _fail("Interrupted; nothing was written.", 128 + signal.SIGINT)
    discard_stdout()
    return 128 + signal.SIGPIPE


def _fail(message: str, code: int) -> int:
    print(f"lrzip: {shortened(printable(message))}", file=sys.stderr)
    return code


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Unwind on SIGTERM, so that temporary files are removed; a second one does not interrupt that."""
    del frame
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)
