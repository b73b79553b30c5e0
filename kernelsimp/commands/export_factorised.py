"""The factorised export: a network whose layers run as two thinner ones where that was measured to be faster.

Everything is written into a folder aside, run there on real inputs, and moved to its place only where its
outputs are those of the network before any layer was replaced.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from kernelsimp.analysis.layer_times import LayerTimes
from kernelsimp.commands.audit import input_shape
from kernelsimp.commands.factorise import Ground, check_budget, decide, open_ground
from kernelsimp.commands.factorised_forms import ASIDE, Forms
from kernelsimp.commands.factorised_record import record_of
from kernelsimp.commands.factorised_tuning import check_tuning, held_note, measured, training_folder, tune
from kernelsimp.commands.inputs import batches_of, open_data
from kernelsimp.commands.run import ExportSource, training_notes
from kernelsimp.commands.task import Task
from kernelsimp.data.sources import Data
from kernelsimp.errors import KernelsimpError
from kernelsimp.export_settings import ENGINES
from kernelsimp.files import temporary_folder
from kernelsimp.models.network import Network, open_network
from kernelsimp.records.factorised import Factorised
from kernelsimp.report.assemble import accuracy_of
from kernelsimp.settings import Settings
from kernelsimp.watch import SILENT, Watcher

IMAGES = 32
"""Images on which written forms are run."""


@dataclass(frozen=True, eq=False)
class FactorisedExport:
    """What came of it: the files, none where nothing was faster, and the record that describes them."""

    files: tuple[Path, ...]
    made: Factorised
    met: bool


def export_factorised(source: ExportSource, path: Path, watcher: Watcher = SILENT) -> FactorisedExport:
    """Write the network of `source` with thinner layers as `path` (.pt2) and the other forms beside it.

    With --finetune it is trained once it was timed, taught by the network of `source`, and the trained one is
    written. Raises `KernelsimpError` without an architecture, for bad budgets, for a training that
    cannot be, and where what was written does not put out what it must.
    """
    ground = _ground(source, path, watcher)
    decision = decide(ground, watcher)
    made = record_of(ground, decision)
    if not decision.plan:
        return _nothing(made, _why_nothing(ground), met=decision.met)
    with aside(path) as folder:
        forms = Forms(ground, decision, folder / path.name, watcher)
        made = replace(made, outputs=forms.write(), latency=forms.latency())
        if ground.settings.factorising.macs is None and not any(item.faster for item in made.latency):
            return _nothing(made, NO_GAIN, met=decision.met)
        if not ground.settings.finetune.finetune:
            return _written(forms, made, path, {"factorised": forms.after})
    run = training_folder(source.run, path)
    tuned, trained = tune(ground.task, forms.after, run, watcher)
    notes = (*made.notes, *training_notes(trained), TIMED_BEFORE, *held_note(source))
    stages = {"factorised": forms.after, "finetuned": tuned}
    with aside(path) as folder:
        forms = forms.tuned(tuned, folder / path.name)
        made = replace(made, outputs=forms.write(), training=trained.history, notes=notes)
        return _written(forms, made, path, stages)


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Yield a folder beside `path` that is gone afterwards, with what was not moved out of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(path.parent) as folder:
        yield folder


def _ground(source: ExportSource, path: Path, watcher: Watcher) -> Ground:
    """Open the network and its images, refuse what they cannot serve, and look at the layers."""
    settings = source.settings
    _check(settings, path)
    if settings.finetune.finetune:
        training_folder(source.run, path).check()
    network = open_network(
        source.path, replace(settings, model=replace(settings.model, sha256=None)), watcher
    )
    data = open_data(settings, watcher)
    check_tuning(network, data, settings)
    images = _images(network, data, settings)
    return open_ground(
        Task(network, data, settings), images, LayerTimes(times_file(settings), watcher=watcher)
    )


def _written(forms: Forms, made: Factorised, path: Path, stages: Mapping[str, nn.Module]) -> FactorisedExport:
    """Measure every stage, write the reports, and move all that was written to its place."""
    task = forms.ground.task
    outcomes = measured(task, {"before": task.network.module(), **stages}, forms.watcher)
    made = replace(made, accuracy=accuracy_of(outcomes), notes=(*made.notes, *forms.notes))
    forms.write_report(made)
    files = [item for item in sorted(forms.path.parent.iterdir()) if not item.name.startswith(ASIDE)]
    for item in files:
        item.replace(path.parent / item.name)
    return FactorisedExport(tuple(path.parent / item.name for item in files), made, forms.decision.met)


TIMED_BEFORE = "layers and network were timed before the training, which changes numbers and no shapes"
NO_GAIN = (
    "layers are faster by themselves, but no engine was measured to run the whole faster: nothing is written"
)


def _nothing(made: Factorised, why: str, *, met: bool) -> FactorisedExport:
    return FactorisedExport((), replace(made, notes=(*made.notes, why)), met)


def times_file(settings: Settings) -> Path:
    """Return where times of layers are kept: --times, or a file in the user's cache."""
    if settings.factorising.times is not None:
        return Path(settings.factorising.times).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "kernelsimp" / "times.json"


def _check(settings: Settings, path: Path) -> None:
    check_budget(settings)
    if settings.model.arch is None:
        raise KernelsimpError("--to factorised needs the network, not its weights alone: pass --arch")
    if path.suffix != ".pt2":
        raise KernelsimpError(
            f"--out is '{path.name}'; expected a name that ends in .pt2, others stand beside it"
        )
    unknown = set(settings.factorising.engines or ()) - set(ENGINES)
    if unknown:
        raise KernelsimpError(f"--engines has '{min(unknown)}'; expected some of {', '.join(ENGINES)}")


def _images(network: Network, data: Data | None, settings: Settings) -> Tensor:
    """Return the images that layers are timed and written forms are run on: real ones, or noise."""
    if data is not None:
        split = data.calibration(settings.data.calibration, settings.run.seed)
        batch: Tensor = next(iter(batches_of(split, settings)))[0]
        return batch[:IMAGES].to(network.device)
    shape = input_shape(network, None, settings)
    if shape is None:
        raise KernelsimpError("--to factorised needs images, or their size: pass --data or --input-size")
    return torch.randn(4, *shape, generator=torch.Generator().manual_seed(0)).to(network.device)


def _why_nothing(ground: Ground) -> str:
    if ground.known:
        return "no layer was measured to be faster as two thinner ones here: nothing is written"
    return (
        "no layer has an exact rank that would make it faster: nothing is written; pass --max-drop, "
        "--speedup or --macs with --data, or simplify with families that are ranks"
    )
