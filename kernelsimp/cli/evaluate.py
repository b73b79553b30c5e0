"""`kernelsimp evaluate`: accuracy with its interval, robustness, and what channels answer to."""

from pathlib import Path
from typing import Annotated

import typer

from kernelsimp.cli.console import emit_json, out, watch_command
from kernelsimp.cli.options import ConfigOption, JsonOption, QuietOption, RunOrModel, put, with_settings
from kernelsimp.settings import DataSettings, Given, ModelSettings, RobustnessSettings, RunSettings
from kernelsimp.settings_file import settle

MetricOption = Annotated[
    str | None,
    typer.Option(
        "--metric", metavar="CODE", help="file.py:callable (model, batches) -> float, in place of accuracy"
    ),
]

ExplainOption = Annotated[
    bool,
    typer.Option(
        "--explain",
        help="also say what channels answer to: how much their named kernels explain, how alike "
        "their top patches are",
    ),
]


@with_settings(model=ModelSettings, data=DataSettings, robustness=RobustnessSettings, run=RunSettings)
def evaluate(
    model: RunOrModel,
    given: Given,
    config: ConfigOption = None,
    metric: MetricOption = None,
    explain: ExplainOption = False,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Measure accuracy on the test split; with --robustness or --explain, more than that."""
    from kernelsimp.commands import outputs

    said = outputs.EVALUATES
    outputs.check_can_run([str(model)], settle(given, config), said)  # before torch, which takes seconds
    from kernelsimp.cli.present import say_done
    from kernelsimp.commands import evaluate as command
    from kernelsimp.commands import inputs
    from kernelsimp.report.evaluation import evaluation_json, evaluation_tables, evaluation_words
    from kernelsimp.report.terminal import draw

    given = put(given, "plan", "metric", metric)
    settings = inputs.settle_for_place(given, config, Path(model))
    path = inputs.model_file(Path(model))
    outputs.check_outputs([("--json", json)], (path,), settings, config)
    with watch_command(quiet=quiet, json=json) as watcher:
        found = command.evaluate(path, settings, watcher, explain=explain)
    if json:
        emit_json(evaluation_json(found), json)
    if not quiet and json != "-":
        for table in evaluation_tables(found):
            out.print(draw(table))
        say_done(evaluation_words(found), (json,))
