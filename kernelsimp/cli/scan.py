"""`kernelsimp scan`: what structure is in there; needs weights only."""

from pathlib import Path

from kernelsimp.cli.console import TerminalWatcher, emit_json, out
from kernelsimp.cli.options import ConfigOption, JsonOption, ModelArgument, QuietOption, with_settings
from kernelsimp.settings import Given, ModelSettings, ScanSettings, settle


@with_settings(model=ModelSettings, scan=ScanSettings)
def scan(
    model: ModelArgument,
    given: Given,
    config: ConfigOption = None,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Count the kernels near each family, layer by layer, beside what chance would give."""
    from kernelsimp import pipeline
    from kernelsimp.cli.tables import scan_tables
    from kernelsimp.report import scan_json

    settings = settle(given, config)
    watcher = TerminalWatcher(quiet=quiet or json == "-")
    try:
        result = pipeline.scan(Path(model), settings, watcher)
    finally:
        watcher.stop()
    if json:
        emit_json(scan_json(result), json)
    if not quiet and json != "-":
        for table in scan_tables(result):
            out.print(table)
