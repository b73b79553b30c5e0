"""Reports of runs that are over: rendered again, two side by side, or any number in one table."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kernelsimp.error_text import kind_and_words
from kernelsimp.errors import KernelsimpError
from kernelsimp.files import write_text
from kernelsimp.records.report import Report
from kernelsimp.report import (
    load_gallery,
    pair_html,
    pair_markdown,
    read_report,
    runs_html,
    runs_markdown,
)
from kernelsimp.report.fmt import short_names
from kernelsimp.report.run_folder import RunFolder
from kernelsimp.report.tables.pair import pair_tables
from kernelsimp.report.tables.runs import runs_table, warnings_of
from kernelsimp.report.tables.table import Table


def render_again(folder: Path) -> Report:
    """Write report.md and report.html of a run again; its report.json may stand for it."""
    report = read_report(folder)
    folder = _folder_of(folder)
    with drawing(folder):
        RunFolder(folder).write_pages(report, load_gallery(folder / "pictures.npz"))
    return report


def _folder_of(run: Path) -> Path:
    return run.parent if run.is_file() else run


@contextmanager
def drawing(*places: Path) -> Iterator[None]:
    """Draw reports that were read from files.

    Robustness, similarity and pictures have no schema of their own; where a file was altered there, it shows
    only when they are drawn. Raises `KernelsimpError` for it.
    """
    try:
        yield
    except (AttributeError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        said = ", ".join(map(str, places))
        raise KernelsimpError(
            f"{said}: cannot be drawn ({kind_and_words(error, 80)}); the report was altered or is of another "
            "version, run simplify again"
        ) from error


def render_runs(folders: Sequence[Path], out: Path) -> tuple[Table, tuple[str, ...]]:
    """Write runs.md and runs.html of any number of runs into `out`; return their table and the warnings.

    Raises `KernelsimpError` for a run that cannot be read and for one that is named twice.
    """
    _check_once(folders)
    names = short_names([folder.absolute() for folder in folders])
    runs = tuple(zip(names, map(read_report, folders), strict=True))
    with drawing(*folders):
        write_text(out / "runs.md", runs_markdown(runs))
        write_text(out / "runs.html", runs_html(runs))
        return runs_table(runs), warnings_of(runs)


def render_pair(folders: tuple[Path, Path], out: Path) -> tuple[Table, ...]:
    """Write pair.md and pair.html of two runs into `out`, and return their tables.

    Raises `KernelsimpError` for a run that cannot be read and for one that is named twice.
    """
    _check_once(folders)
    reports = (read_report(folders[0]), read_report(folders[1]))
    one, other = short_names([folder.absolute() for folder in folders])
    names = (one, other)
    galleries = [load_gallery(_folder_of(folder) / "pictures.npz") for folder in folders]
    with drawing(*folders):
        write_text(out / "pair.md", pair_markdown(reports, names))
        write_text(out / "pair.html", pair_html(reports, names, galleries))
    return pair_tables(reports, names)


def _check_once(folders: Sequence[Path]) -> None:
    if len({_folder_of(folder).resolve() for folder in folders}) < len(folders):
        raise KernelsimpError("report: one run is named twice; name each once")
