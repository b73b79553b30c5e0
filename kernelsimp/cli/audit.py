"""`kernelsimp audit`: cost and width of every layer, and what a cheaper layer would cost."""

from pathlib import Path

from kernelsimp.cli.console import emit_json, out, watch_command
from kernelsimp.cli.options import ConfigOption, JsonOption, ModelArgument, QuietOption, with_settings
from kernelsimp.settings import AuditSettings, DataSettings, Given, ModelSettings, RunSettings


@with_settings(model=ModelSettings, data=DataSettings, audit=AuditSettings, run=RunSettings)
def audit(
    model: ModelArgument,
    given: Given,
    config: ConfigOption = None,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Say what every layer costs, how wide it is, how far it sees, and what cheaper layers would cost."""
    from kernelsimp.commands import outputs

    outputs.check_is_there(model)  # before torch is imported, which takes seconds
    from kernelsimp.cli.present import say_done
    from kernelsimp.commands import audit as command
    from kernelsimp.commands import inputs
    from kernelsimp.report.tables.audit import audit_json, audit_tables, audit_words
    from kernelsimp.report.terminal import draw

    settings = inputs.settle_for_model(given, config)
    outputs.check_outputs([("--json", json)], (model,), settings, config)
    with watch_command(quiet=quiet, json=json) as watcher:
        found = command.audit(Path(model), settings, watcher)
    if json:
        emit_json(audit_json(found), json)
    if not quiet and json != "-":
        for table in audit_tables(found):
            out.print(draw(table))
        for note in found.notes:
            out.print(note, markup=False)
        say_done(audit_words(found), (json,))
