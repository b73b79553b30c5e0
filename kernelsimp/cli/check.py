"""`kernelsimp check`: the gate on checkpoints; exit 1 when a limit is crossed."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.markup import escape

from kernelsimp.cli.completion import completer
from kernelsimp.cli.console import emit_json, err, out, watch_command
from kernelsimp.cli.options import ConfigOption, JsonOption, QuietOption, with_settings
from kernelsimp.errors import KernelsimpError
from kernelsimp.files import write_text
from kernelsimp.settings import DataSettings, Given, ModelSettings, RunSettings

if TYPE_CHECKING:
    from kernelsimp.records.verdict import Verdict

ModelsArgument = Annotated[list[Path], typer.Argument(metavar="MODEL...", help="checkpoint files")]
BaselineOption = Annotated[
    Path, typer.Option(metavar="FILE", help="a run's report.json, or what --update-baseline made")
]
LimitsOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="limits as TOML, or a pyproject.toml with [tool.kernelsimp.check]"),
]
MaxDropOption = Annotated[
    float | None, typer.Option(metavar="X", help="accuracy that may be lost, in pp [0.5]")
]
AgainstOption = Annotated[
    str,
    typer.Option(
        metavar="STAGE",
        help="the baseline's stage: last or original",
        autocompletion=completer(("last", "original")),
    ),
]
AllowExtraOption = Annotated[
    bool, typer.Option("--allow-extra", help="tensors that the baseline does not have are no fault")
]
EditedOption = Annotated[
    bool, typer.Option("--accept-edited", help="take a baseline file that was changed by hand")
]
JunitOption = Annotated[Path | None, typer.Option(metavar="PATH", help="write JUnit XML here")]
GitlabOption = Annotated[
    Path | None, typer.Option(metavar="PATH", help="write GitLab code-quality JSON here")
]


@with_settings(model=ModelSettings, data=DataSettings, run=RunSettings)
def check(
    models: ModelsArgument,
    given: Given,
    baseline: BaselineOption,
    limits: LimitsOption = None,
    max_drop: MaxDropOption = None,
    against: AgainstOption = "last",
    allow_extra: AllowExtraOption = False,
    accept_edited: EditedOption = False,
    update_baseline: Annotated[bool, typer.Option(help="write the baseline from MODEL as it is")] = False,
    junit: JunitOption = None,
    gitlab: GitlabOption = None,
    config: ConfigOption = None,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Verify that held kernels did not move, that structures hold and, with --data, the accuracy."""
    from kernelsimp.commands import outputs

    if len(models) == 1:  # of several, one that is not there hides no verdict
        outputs.check_is_there(str(models[0]))  # before torch is imported, which takes seconds
    from kernelsimp.cli.present import say_done
    from kernelsimp.commands import check as command
    from kernelsimp.commands import inputs
    from kernelsimp.report import ci_formats

    models = [inputs.model_file(model) for model in models]
    settings = inputs.settle_for_check(given, config, baseline)
    wanted = [("--json", json), ("--junit", junit), ("--gitlab", gitlab)]
    if update_baseline:
        outputs.check_outputs([*wanted, ("--baseline", baseline)], (*models, limits), settings, config)
    else:
        outputs.check_outputs(wanted, (*models, baseline, limits), settings, config)
    make = line_that_makes(models[0], baseline, given, config)
    gate = command.Gate(baseline, limits, max_drop, against, make, allow_extra, accept_edited)
    with watch_command(quiet=quiet, json=json) as watcher:
        if update_baseline:
            _update(models, lambda model: command.update_baseline(model, gate, settings, watcher), baseline)
            return
        results = _results(models, lambda model: command.check(model, gate, settings, watcher))
    _show(results, json, quiet=quiet)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        _tell_github(results, err if json == "-" else out)
    if junit:
        write_text(junit, ci_formats.junit(_verdicts_as_text(results)))
    if gitlab:
        write_text(gitlab, ci_formats.gitlab(_verdicts_as_text(results)))
    if not quiet and json != "-":
        spoken = _verdicts_as_text(results)
        say_done(
            ci_formats.results_words(spoken), (json, junit, gitlab), good=not ci_formats.not_passed(spoken)
        )
    for result in results.values():
        if isinstance(result, KernelsimpError):
            raise result  # the others are written; this one cannot be judged, so neither can all
    raise typer.Exit(max(result.exit_code for result in results.values()))


def line_that_makes(model: Path, baseline: Path, given: Given, config: str | None) -> str:
    """Return the command that makes the baseline that a check was asked to compare with."""
    words = ["kernelsimp", "check", str(model), "--baseline", str(baseline), "--update-baseline"]
    for name, value in (item for stage in given.values() for item in stage.items()):
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif value is not None and flag not in words:
            words += [flag, str(value)]
    return join([*words, *(("--config", config) if config else ())])


def _update(models: list[Path], make: Callable[[Path], Any], baseline: Path) -> None:
    from kernelsimp.cli.present import say_done

    if len(models) > 1:
        raise KernelsimpError(f"--update-baseline goes with one MODEL; {len(models)} were given")
    source, made = make(models[0])
    held = sum(bool(layer.hold.frozen_crc32) for layer in made.layers)
    told = f"frozen kernels in {held} of them, structures from {source}" if source else "no kernel is held"
    say_done(f"baseline of {len(made.layers)} layers, {told}", [baseline])


def _results(
    models: list[Path], judge: Callable[[Path], "Verdict"]
) -> "dict[str, Verdict | KernelsimpError]":
    """Judge every checkpoint; with several, one that cannot be read does not hide the verdict on the rest."""
    if len(models) == 1:
        return {str(models[0]): judge(models[0])}
    results: dict[str, Verdict | KernelsimpError] = {}
    for model in models:
        try:
            results[str(model)] = judge(model)
        except KernelsimpError as error:
            results[str(model)] = error
    if all(isinstance(result, KernelsimpError) for result in results.values()):
        raise next(error for error in results.values() if isinstance(error, KernelsimpError))
    return results


def _show(results: "Mapping[str, Verdict | KernelsimpError]", json: str | None, *, quiet: bool) -> None:
    from kernelsimp.report import verdict_json
    from kernelsimp.report.terminal import verdict_tables

    told: list[dict[str, Any]] = []
    for model, result in results.items():
        if isinstance(result, KernelsimpError):
            told.append({"model": model, "error": str(result)})
            drawn: Iterable[RenderableType] = [escape(f"could not be checked: {result}")]
        else:
            told.append({"model": model, **verdict_json(result)})
            drawn = verdict_tables(result)
        if not quiet and json != "-":
            out.print(model, markup=False)
            for table in drawn:
                out.print(table)
    if json:
        emit_json(told if len(told) > 1 else told[0], json)


def _verdicts_as_text(results: "Mapping[str, Verdict | KernelsimpError]") -> "dict[str, Verdict | str]":
    return {name: str(item) if isinstance(item, KernelsimpError) else item for name, item in results.items()}


def _tell_github(results: "Mapping[str, Verdict | KernelsimpError]", console: Console) -> None:
    """Write annotations and the step summary for the GitHub workflow that runs this."""
    from kernelsimp.report import ci_formats

    spoken = _verdicts_as_text(results)
    for line in ci_formats.annotations(spoken):
        console.print(line, markup=False, soft_wrap=True)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(ci_formats.step_summary(spoken))
