"""`kernelsimp scan`: what structure is in there; needs weights only."""

from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kernelsimp.cli.console import TerminalWatcher, emit_json, out, watch_command
from kernelsimp.cli.options import ConfigOption, JsonOption, QuietOption, put, with_settings
from kernelsimp.errors import KernelsimpError
from kernelsimp.settings import Given, ModelSettings, ScanSettings, Settings
from kernelsimp.settings_file import settle

if TYPE_CHECKING:
    from kernelsimp.commands.scan_many import ManyJob

Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE...",
        help="checkpoints, folders, globs, addresses (https://, s3://, hf://...), .txt lists of them, or "
        "torchvision:, timm: or hf-hub:NAME",
    ),
]
CsvOption = Annotated[str | None, typer.Option("--csv", metavar="PATH", help="write one row a kernel here")]
HtmlOption = Annotated[str | None, typer.Option("--html", metavar="PATH", help="write one page here")]
ExplainOption = Annotated[
    str | None, typer.Option("--explain", metavar="LAYER[OUT,IN]", help="show one kernel and its candidates")
]
DeepOption = Annotated[bool, typer.Option("--deep", help="look for everything, however large the network")]
JobsOption = Annotated[int, typer.Option("--jobs", metavar="N", help="checkpoints that are scanned at once")]
SchedulerOption = Annotated[
    str | None,
    typer.Option("--scheduler", metavar="ADDRESS", help="scan with the workers of this Dask scheduler"),
]
MemoryOption = Annotated[
    float | None,
    typer.Option(
        "--memory",
        metavar="X",
        help="gigabytes that the scan may take, all --jobs together [what is free; half of it for --jobs]",
    ),
]


DatasetOption = Annotated[
    str | None, typer.Option("--dataset", metavar="DIR", help="add the scans to this Parquet data set")
]
KernelsOption = Annotated[bool, typer.Option("--kernels", help="with --dataset: a row a kernel too")]


@with_settings(model=ModelSettings, scan=ScanSettings)
def scan(
    source: Sources,
    given: Given,
    config: ConfigOption = None,
    json: JsonOption = None,
    csv: CsvOption = None,
    html: HtmlOption = None,
    explain: ExplainOption = None,
    deep: DeepOption = False,
    jobs: JobsOption = 1,
    scheduler: SchedulerOption = None,
    memory: MemoryOption = None,
    dataset: DatasetOption = None,
    kernels: KernelsOption = False,
    quiet: QuietOption = False,
) -> None:
    """Count the kernels near each family, layer by layer, beside what chance would give."""
    from kernelsimp.commands import outputs

    for place in source:
        if not has_magic(place):
            outputs.check_is_there(place)  # before torch is imported, which takes seconds
    from kernelsimp.commands.cluster import Cluster, check_cluster
    from kernelsimp.commands.scan_many import ManyJob
    from kernelsimp.commands.scan_sources import is_many

    settings = settle(put(given, "scan", "depth", "deep") if deep else given, config)
    cluster = Cluster(jobs, scheduler, memory)
    check_cluster(cluster)
    to = [("--json", json), ("--csv", csv), ("--html", html), ("--dataset", dataset)]
    outputs.check_outputs(to, source, settings, config)
    with watch_command(quiet=quiet, json=json) as watcher:
        if len(source) > 1 or is_many(source[0]) or dataset or kernels or scheduler:
            _refuse_for_many(csv=csv, html=html, explain=explain)
            places = [Path(place) if place else None for place in (json, dataset)]
            job = ManyJob(settings, places[0], cluster, places[1], kernels)
            _many(source, job, watcher, quiet=quiet)
        elif explain is not None:
            _explain((source[0], explain), settings, watcher, json)
        else:
            to_one = {"json": json, "csv": csv, "html": html, "quiet": quiet}
            _one((source[0], memory), settings, watcher, to_one)


def _one(
    what: tuple[str, float | None],
    settings: Settings,
    watcher: TerminalWatcher,
    to: dict[str, str | bool | None],
) -> None:
    """Scan one checkpoint, within gigabytes of memory, and write what was asked for."""
    from kernelsimp.cli.present import say_done
    from kernelsimp.commands import scan as command
    from kernelsimp.files import write_text
    from kernelsimp.report import scan_html, scan_json
    from kernelsimp.report.scan_csv import scan_csv
    from kernelsimp.report.tables.scan import scan_words
    from kernelsimp.report.terminal import scan_tables

    model, memory = what
    result = command.scan(Path(model), settings, watcher, memory)
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
        say_done(scan_words(result), [str(to[name] or "") for name in ("json", "csv", "html")])


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


def _many(sources: list[str], job: "ManyJob", watcher: TerminalWatcher, *, quiet: bool) -> None:
    """Scan every network of the sources: one line each, what else was asked for, failures listed."""
    from kernelsimp.cli.present import say_done
    from kernelsimp.commands.scan_many import scan_many
    from kernelsimp.report import fmt
    from kernelsimp.report.tables.folder import folder_words
    from kernelsimp.report.terminal import folder_tables

    if job.json == Path("-"):
        raise KernelsimpError("--json -: a folder gives one JSON a checkpoint; name a folder for them")
    lines = scan_many(sources, job, watcher)
    watcher.stop()
    if not quiet:
        for part in folder_tables(lines):
            out.print(part)
        say_done(folder_words(lines), (job.json, job.dataset))
    if all(line.error for line in lines):
        raise KernelsimpError(
            f"{', '.join(sources)}: none of {fmt.counted(len(lines), 'checkpoint')} could be scanned"
        )


def _refuse_for_many(**asked: str | None) -> None:
    for name, value in asked.items():
        if value is not None:
            raise KernelsimpError(f"--{name} is for one checkpoint, not for a folder of them; name the file")
