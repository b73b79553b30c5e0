"""Words in, words out: the commands, and the one funnel from exceptions to exit codes.

Exit codes: 0 done; 1 a limit crossed or a budget not met; 2 could not do it; 3 our own bug; 130 interrupted,
143 by SIGTERM, 129 by SIGHUP.
"""

import os
import sys
from collections.abc import Mapping
from shlex import join
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape

from kernelsimp import stops
from kernelsimp.cli.atlas import atlas
from kernelsimp.cli.audit import audit
from kernelsimp.cli.check import check
from kernelsimp.cli.compare import compare
from kernelsimp.cli.completion import join_colons
from kernelsimp.cli.console import Pipe, StoppedError, err
from kernelsimp.cli.demo import demo
from kernelsimp.cli.doctor import doctor
from kernelsimp.cli.evaluate import evaluate
from kernelsimp.cli.examples import EXAMPLES
from kernelsimp.cli.export import export
from kernelsimp.cli.families import families
from kernelsimp.cli.help import Command, Group, explain
from kernelsimp.cli.prune import prune
from kernelsimp.cli.report import report
from kernelsimp.cli.scan import scan
from kernelsimp.cli.simplify import simplify
from kernelsimp.cli.train import train
from kernelsimp.error_text import one_line, short
from kernelsimp.errors import KernelsimpError
from kernelsimp.training.ranks import first_process
from kernelsimp.version import __version__

INTERRUPTED = 130

NO_MEMORY = "memory does not do for this; lower --batch-size or --memory, or pass --device cpu"

app = typer.Typer(
    name="kernelsimp",
    help="Find the structure in trained convolution kernels, simplify to it, hold it, and say what it cost.",
    cls=Group,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for command in (
    demo,
    scan,
    simplify,
    train,
    prune,
    check,
    evaluate,
    compare,
    audit,
    report,
    atlas,
    export,
    families,
    doctor,
):
    app.command(cls=Command, epilog="\n".join(EXAMPLES[command.__name__]))(command)
app.command("help", cls=Command, epilog="\n".join(EXAMPLES["help"]))(explain)


def _version(value: bool) -> None:
    if value:
        sys.stdout.write(f"kernelsimp {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code, whoever has stopped reading what it says."""
    sys.stdout, sys.stderr = Pipe(sys.stdout, "standard output"), Pipe(sys.stderr)
    join_colons(os.environ)
    stops.listen()
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; every exception becomes words here."""
    try:
        command = typer.main.get_command(app)
        code: Any = command(arguments or ["--help"], prog_name="kernelsimp", standalone_mode=False)
        sys.stdout.flush()
    except StoppedError as stop:
        return _say_interrupted(arguments if stop.resumable else None)
    except KernelsimpError as error:
        return _fail(str(error), error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return _say_interrupted()
    except OSError as error:
        if error.errno is None:
            return _bug()
        return _fail(f"{error.filename or 'operating system'}: {error.strerror}", 2)
    except Exception as error:
        # typer ships its own click in some versions: know its usage errors by what they can do
        if hasattr(error, "format_message"):
            return _fail(error.format_message() + _where(error), 2)
        from kernelsimp.memory import is_out_of_memory  # here, because importing torch takes seconds

        if is_out_of_memory(error):
            return _fail(f"{NO_MEMORY} ({short(error)})", 2)
        return _bug()
    if code == INTERRUPTED:  # typer has met the interrupt before us
        return _say_interrupted()
    return code if isinstance(code, int) else 0


def _say_interrupted(resumable: list[str] | None = None) -> int:
    """Say that a request to stop was met and, for a command that can go on, the line that does.

    Once for all ranks. The code is 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.
    """
    code = stops.exit_code()
    if first_process():
        if resumable is not None:
            err.print(f"to go on: {escape(resume_line(resumable))}")
        _fail("interrupted", code)
    return code


def resume_line(arguments: list[str], environment: Mapping[str, str] = os.environ) -> str:
    """Return the shell line that goes on with an interrupted command, with torchrun where that started it."""
    more = [] if "--resume" in arguments else ["--resume"]
    words = ["kernelsimp", *arguments, *more]
    if "TORCHELASTIC_RUN_ID" not in environment:
        return join(words)
    local = int(environment["LOCAL_WORLD_SIZE"])
    nodes = int(environment["WORLD_SIZE"]) // local
    return join(["torchrun", "--nnodes", str(nodes), "--nproc-per-node", str(local), "-m", *words])


def _fail(message: str, code: int) -> int:
    err.print(f"[red]kernelsimp:[/] {escape(one_line(message))}")
    return code


def _where(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return f" (try '{context.command_path if context else 'kernelsimp'} --help')"


def _bug() -> int:
    import traceback

    traceback.print_exc()
    err.print("kernelsimp: this is a bug in kernelsimp; please report it with the lines above")
    return 3
