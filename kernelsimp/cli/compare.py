"""`kernelsimp compare`: representation similarity of two networks, layer by layer."""

from pathlib import Path
from typing import Annotated

import typer

from kernelsimp.cli.console import emit_json, out, watch_command
from kernelsimp.cli.options import ConfigOption, JsonOption, QuietOption, with_settings
from kernelsimp.settings import CompareSettings, DataSettings, Given, ModelSettings, RunSettings
from kernelsimp.settings_file import settle

HtmlOption = Annotated[str | None, typer.Option("--html", metavar="PATH", help="write one page here")]
FirstModel = Annotated[str, typer.Argument(metavar="A", help="a checkpoint file, or torchvision:NAME")]
SecondModel = Annotated[
    str, typer.Argument(metavar="B", help="another; --arch-b where it is built otherwise")
]


@with_settings(model=ModelSettings, data=DataSettings, compare=CompareSettings, run=RunSettings)
def compare(
    first: FirstModel,
    second: SecondModel,
    given: Given,
    config: ConfigOption = None,
    json: JsonOption = None,
    html: HtmlOption = None,
    quiet: QuietOption = False,
) -> None:
    """Compare what the layers of two networks give on the same test images."""
    from kernelsimp.commands import outputs

    asked = settle(given, config)
    outputs.check_can_run((first, second), asked, outputs.COMPARES)  # before torch, which takes seconds
    from kernelsimp.cli.present import say_done
    from kernelsimp.commands import compare as command
    from kernelsimp.commands import inputs
    from kernelsimp.files import write_text
    from kernelsimp.report.html import comparison_html
    from kernelsimp.report.tables.comparison import comparison_json, comparison_tables, comparison_words
    from kernelsimp.report.terminal import draw

    settings = inputs.settle_for_place(given, config, Path(first))
    one, other = inputs.model_file(Path(first)), inputs.model_file(Path(second))
    outputs.check_outputs([("--json", json), ("--html", html)], (one, other), settings, config)
    with watch_command(quiet=quiet, json=json) as watcher:
        found = command.compare((one, other), settings, watcher)
    if json:
        emit_json(comparison_json(found), json)
    if html:
        write_text(Path(html), comparison_html(found))
    if not quiet and json != "-":
        for table in comparison_tables(found):
            out.print(draw(table))
        out.print(found.sampling, markup=False)
        say_done(comparison_words(found), (json, html))
