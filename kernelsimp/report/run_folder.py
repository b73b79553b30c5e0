"""The run directory: everything that one `simplify` produced, each file written whole or not at all."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kernelsimp.errors import KernelsimpError
from kernelsimp.files import remove_partials, write_text
from kernelsimp.models.folders import written_name
from kernelsimp.records.plan import Plan
from kernelsimp.records.plan_file import save_plan
from kernelsimp.records.report import Report
from kernelsimp.records.serialise import json_text
from kernelsimp.report.html import report_html
from kernelsimp.report.markdown import report_markdown
from kernelsimp.report.pictures.gallery import Gallery
from kernelsimp.report.pictures.gallery_file import save_gallery
from kernelsimp.report.store import report_json
from kernelsimp.run_lock import take_lock
from kernelsimp.settings import Settings
from kernelsimp.settings_file import as_toml
from kernelsimp.shelf import sweep_shelves
from kernelsimp.watch import Watcher


class RunFolder:
    """A run directory at `path`; `checkpoint` is where the simplified network goes."""

    def __init__(self, path: Path, name: str | Path = "") -> None:
        self.path = path
        self.checkpoint = path / name

    @classmethod
    def new(cls, path: Path, source: Path) -> "RunFolder":
        """Begin a run of the checkpoint `source`, and prove that the directory can be written.

        Raises `KernelsimpError` where it cannot, or where the simplified checkpoint would overwrite `source`.
        """
        run = cls(path, written_name(source))
        if run.checkpoint.resolve() == source.resolve():
            raise KernelsimpError(f"--out {path} would overwrite {source}; choose another directory")
        run.prepare()
        return run

    def prepare(self) -> None:
        """Prove that the directory can be written, hold it, and remove what a killed run left half written.

        Raises `KernelsimpError` where it cannot, and where another process is at work in it.
        """
        write_text(self.path / ".writable", "")
        (self.path / ".writable").unlink()
        take_lock(self.path, self)
        remove_partials(self.path)
        sweep_shelves(self.path / "resume")

    def write_settings(self, settings: Settings) -> None:
        """Write settings.toml, which runs again as `--config`."""
        write_text(self.path / "settings.toml", as_toml(settings))

    def write_plan(self, plan: Plan) -> None:
        """Write plan.safetensors."""
        save_plan(plan, self.path / "plan.safetensors")

    def write_report(self, report: Report, gallery: Gallery) -> None:
        """Write report.json, and what renders it: the pictures and the pages."""
        write_text(self.path / "report.json", json_text(report_json(report)))
        save_gallery(gallery, self.path / "pictures.npz")
        self.write_pages(report, gallery)

    def write_pages(self, report: Report, gallery: Gallery) -> None:
        """Write report.md and report.html."""
        write_text(self.path / "report.md", report_markdown(report))
        write_text(self.path / "report.html", report_html(report, gallery))


class JsonLog(Watcher):
    """Passes everything on to another watcher and appends notes, warnings and figures to log.jsonl.

    The file begins anew where `fresh`; a run that is resumed adds to it.
    """

    def __init__(self, path: Path, inner: Watcher, *, fresh: bool = True) -> None:
        self._path, self._inner, self._stage = path, inner, ""
        if fresh:
            write_text(path, "")

    def expect(self, phases: Sequence[str]) -> None:
        """Pass on what the command will go through."""
        self._inner.expect(phases)

    def start(self, stage: str, total: int | None = None) -> None:
        """Begin a stage; one line."""
        self._stage = stage
        self._append("start", {"total": total})
        self._inner.start(stage, total)

    def step(self, amount: int = 1, **figures: float) -> None:
        """Advance; a line only where there are figures."""
        if figures:
            self._append("step", figures)
        self._inner.step(amount, **figures)

    def row(self, **figures: float) -> None:
        """Log and pass on a row of a table; a figure that is missing is null in the log."""
        self._append("row", {name: None if value != value else value for name, value in figures.items()})
        self._inner.row(**figures)

    def note(self, text: str) -> None:
        """Log and pass on a note."""
        self._append("note", {"text": text})
        self._inner.note(text)

    def warn(self, text: str) -> None:
        """Log and pass on a warning."""
        self._append("warning", {"text": text})
        self._inner.warn(text)

    def _append(self, event: str, values: Mapping[str, Any]) -> None:
        now = {"time": round(time.time(), 3), "cpu": round(time.process_time(), 2)}
        line = {**now, "stage": self._stage, "event": event, **values}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise KernelsimpError(f"{self._path}: cannot write: {error.strerror}") from error
