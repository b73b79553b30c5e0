"""`kernelsimp check`: the gate on checkpoints; exit 1 when a limit is crossed."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kernelsimp.cli.console import emit_json, out, watching
from kernelsimp.cli.options import ConfigOption, JsonOption, QuietOption, with_settings
from kernelsimp.errors import KernelsimpError
from kernelsimp.files import write_text
from kernelsimp.settings import DataSettings, Given, ModelSettings, RunSettings

if TYPE_CHECKING:
    from kernelsimp.records.verdict import Verdict

ModelsArgument = Annotated[list[Path], typer.Argument(metavar="MODEL...", help="checkpoint files")]


@with_settings(model=ModelSettings, data=DataSettings, run=RunSettings)
def check(
    models: ModelsArgument,
    given: Given,
    baseline: Annotated[Path, typer.Option(help="a run's report.json, or what --update-baseline made")],
    limits: Annotated[
        Path | None, typer.Option(help="limits as TOML, or a pyproject.toml with [tool.kernelsimp.check]")
    ] = None,
    max_drop: Annotated[float | None, typer.Option(help="accuracy that may be lost, in pp [0.5]")] = None,
    against: Annotated[str, typer.Option(help="the baseline's stage: last or original")] = "last",
    update_baseline: Annotated[bool, typer.Option(help="write the baseline from MODEL as it is")] = False,
    junit: Annotated[Path | None, typer.Option(help="write JUnit XML here")] = None,
    gitlab: Annotated[Path | None, typer.Option(help="write GitLab code-quality JSON here")] = None,
    config: ConfigOption = None,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Verify that held kernels did not move, that structures hold and, with --data, the accuracy."""
    from kernelsimp import pipeline
    from kernelsimp.cli.tables import verdict_tables
    from kernelsimp.report import faces, verdict_json

    settings = pipeline.settle_for_check(given, config, baseline)
    gate = pipeline.Gate(baseline, limits, max_drop, against)
    for option, asked in (("--update-baseline", update_baseline), ("--junit", junit), ("--gitlab", gitlab)):
        if asked and len(models) > 1:
            raise KernelsimpError(f"{option} goes with one MODEL; {len(models)} were given")
    with watching(quiet=quiet, json=json) as watcher:
        if update_baseline:
            pipeline.update_baseline(models[0], gate, settings, watcher)
            out.print(f"baseline: {baseline}", markup=False)
            return
        verdicts = {str(model): pipeline.check(model, gate, settings, watcher) for model in models}
    for model, verdict in verdicts.items():
        if not quiet and json != "-":
            out.print(model, markup=False)
            for table in verdict_tables(verdict):
                out.print(table)
        _tell_github(verdict, model)
    first, name = next(iter(verdicts.values())), str(models[0])
    if json:
        several = [verdict_json(item) for item in verdicts.values()]
        emit_json(several if len(models) > 1 else several[0], json)
    if junit:
        write_text(junit, faces.junit(first, name))
    if gitlab:
        write_text(gitlab, faces.gitlab(first, name))
    raise typer.Exit(max(verdict.exit_code for verdict in verdicts.values()))


def _tell_github(verdict: "Verdict", model: str) -> None:
    """Write annotations and the step summary where a GitHub workflow runs this."""
    from kernelsimp.report import faces

    if os.environ.get("GITHUB_ACTIONS") != "true":
        return
    for line in faces.annotations(verdict):
        out.print(line, markup=False, soft_wrap=True)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(faces.step_summary(verdict, model))
