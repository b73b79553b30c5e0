"""`kernelsimp scan`: what structure is in there; needs weights only."""

from pathlib import Path
from typing import Annotated

import typer

from kernelsimp.cli.console import TerminalWatcher, emit_json, out, watch_command
from kernelsimp.cli.options import ConfigOption, JsonOption, QuietOption, put, with_settings
from kernelsimp.errors import KernelsimpError
from kernelsimp.settings import Given, ModelSettings, ScanSettings, Settings
from kernelsimp.settings_file import settle

ScanModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="a checkpoint, a folder of them, or torchvision:, timm: or hf-hub:NAME"
    ),
]
CsvOption = Annotated[str | None, typer.Option("--csv", metavar="PATH", help="write one row a kernel here")]
HtmlOption = Annotated[str | None, typer.Option("--html", metavar="PATH", help="write one page here")]
ExplainOption = Annotated[
    str | None, typer.Option("--explain", metavar="LAYER[OUT,IN]", help="show one kernel and its candidates")
]
DeepOption = Annotated[bool, typer.Option("--deep", help="look for everything, however large the network")]
JobsOption = Annotated[
    int, typer.Option("--jobs", metavar="N", help="checkpoints of a folder that are scanned at once")
]


@with_settings(model=ModelSettings, scan=ScanSettings)
def scan(
    model: ScanModel,
    given: Given,
    config: ConfigOption = None,
    json: JsonOption = None,
    csv: CsvOption = None,
    html: HtmlOption = None,
    explain: ExplainOption = None,
    deep: DeepOption = False,
    jobs: JobsOption = 1,
    quiet: QuietOption = False,
) -> None:
    """Count the kernels near each family, layer by layer, beside what chance would give."""
    from kernelsimp.commands import outputs

    outputs.check_is_there(model)  # before torch is imported, which takes seconds
    from kernelsimp.models.folders import is_in_parts

    settings = settle(put(given, "scan", "depth", "deep") if deep else given, config)
    outputs.check_outputs([("--json", json), ("--csv", csv), ("--html", html)], (model,), settings, config)
    with watch_command(quiet=quiet, json=json) as watcher:
        if Path(model).is_dir() and not is_in_parts(Path(model)):
            _refuse_for_folder(csv=csv, html=html, explain=explain)
            _folder(Path(model), settings, watcher, (json, jobs, quiet))
        elif explain is not None:
            _explain((model, explain), settings, watcher, json)
        else:
            _one(model, settings, watcher, {"json": json, "csv": csv, "html": html, "quiet": quiet})


def _one(model: str, settings: Settings, watcher: TerminalWatcher, to: dict[str, str | bool | None]) -> None:
    """Scan one checkpoint and write what was asked for."""
    from kernelsimp.cli.present import say_written
    from kernelsimp.commands import scan as command
    from kernelsimp.files import write_text
    from kernelsimp.report import scan_html, scan_json
    from kernelsimp.report.scan_csv import scan_csv
    from kernelsimp.report.terminal import scan_tables

    result = command.scan(Path(model), settings, watcher)
    watcher.stop()
    if to["json"]:
        emit_json(scan_json(result), str(to["json"]))
    if to["csv"]:
        scan_csv(result, Path(str(to["csv"])))
    if to["html"]:
        write_text(Path(str(to["html"])), scan_html(result))
    if not to["quiet"] and to["json"] != "-":
        for table in scan_tables(result):
            out.print(table)
        say_written([str(to[name] or "") for name in ("json", "csv", "html")])


def _explain(what: tuple[str, str], settings: Settings, watcher: TerminalWatcher, json: str | None) -> None:
    """Print one kernel, or write it as JSON where asked."""
    from kernelsimp.commands import scan as command
    from kernelsimp.records.serialise import to_plain
    from kernelsimp.report.terminal import explanation_tables

    model, place = what
    explained = command.scan_explained(Path(model), place, settings, watcher)
    watcher.stop()
    if json:
        emit_json(to_plain(explained), json)
    if json != "-":
        for part in explanation_tables(explained):
            out.print(part)


def _folder(
    folder: Path, settings: Settings, watcher: TerminalWatcher, to: tuple[str | None, int, bool]
) -> None:
    """Scan every checkpoint of a folder: one line each, one JSON each, failures listed."""
    from kernelsimp.commands import scan as command
    from kernelsimp.report.terminal import folder_tables

    json, jobs, quiet = to
    if json == "-":
        raise KernelsimpError("--json -: a folder gives one JSON a checkpoint; name a folder for them")
    lines = command.scan_folder(folder, settings, (Path(json) if json else None, jobs), watcher)
    watcher.stop()
    if not quiet:
        for part in folder_tables(lines):
            out.print(part)
    if all(line.error for line in lines):
        raise KernelsimpError(f"{folder}: none of its {len(lines)} checkpoints could be scanned")


def _refuse_for_folder(**asked: str | None) -> None:
    for name, value in asked.items():
        if value is not None:
            raise KernelsimpError(f"--{name} is for one checkpoint, not for a folder of them; name the file")
