"""Reports of runs that are over: rendered again, or two side by side."""

from pathlib import Path

from kernelsimp.files import write_text
from kernelsimp.records.report import Report
from kernelsimp.report import (
    load_gallery,
    pair_html,
    pair_markdown,
    read_report,
)
from kernelsimp.report.run_folder import RunFolder
from kernelsimp.report.tables.pair import pair_tables
from kernelsimp.report.tables.table import Table


def render_again(folder: Path) -> Report:
    """Write report.md and report.html of a run again; its report.json may stand for it."""
    report = read_report(folder)
    folder = folder.parent if folder.is_file() else folder
    RunFolder(folder).write_pages(report, load_gallery(folder / "pictures.npz"))
    return report


def short_names(folders: tuple[Path, Path]) -> tuple[str, str]:
    """Return the last part of each path, and as many before it as it takes to tell the two apart."""
    parts = [folder.absolute().parts for folder in folders]
    for count in range(1, max(map(len, parts))):
        tails = [str(Path(*part[-count:])) for part in parts]
        if tails[0] != tails[1]:
            return tails[0], tails[1]
    return str(folders[0]), str(folders[1])


def render_pair(folders: tuple[Path, Path], out: Path) -> tuple[Table, ...]:
    """Write pair.md and pair.html of two runs into `out`, and return their tables."""
    reports = (read_report(folders[0]), read_report(folders[1]))
    names = short_names(folders)
    write_text(out / "pair.md", pair_markdown(reports, names))
    write_text(out / "pair.html", pair_html(reports, names))
    return pair_tables(reports, names)
