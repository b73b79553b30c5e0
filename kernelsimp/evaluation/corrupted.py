"""Accuracy on corrupted pictures, and what a change of it is worth.

All networks see the same pictures, so every comparison is paired. Accuracies are in percent, changes in
percentage points (pp) after minus before.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from scipy.special import bdtr
from torch import nn

from kernelsimp.data.splits import Split
from kernelsimp.errors import KernelsimpError
from kernelsimp.evaluation.accuracy import Bools, evaluation_mode, logits_within, mcnemar, paired_interval
from kernelsimp.evaluation.stability import Bench
from kernelsimp.watch import SILENT, Watcher

Cell = tuple[str, int]
"""A corruption and its severity."""


@dataclass(frozen=True, eq=False)
class CorruptionTrial:
    """Which images a network gets right: unchanged (n,), and in every cell (m,)."""

    name: str
    clean: Bools
    cells: Mapping[Cell, Bools]


@dataclass(frozen=True)
class CorruptedTop1:
    """Accuracy under one corruption at each severity, and their mean."""

    corruption: str
    severities: tuple[int, ...]
    top1: tuple[float, ...]
    mean: float


@dataclass(frozen=True)
class PairedChange:
    """One comparison on the same images: accuracies, change with 95 % interval, exact McNemar p."""

    name: str
    severity: int | None
    before: float
    after: float
    change_pp: float
    ci95: tuple[float, float]
    mcnemar_p: float


@dataclass(frozen=True)
class CorruptionChange:
    """Two networks on the same corrupted pictures.

    `mce` is in percent, 100 where `after` errs as often as `before`: the mean over corruptions of the errors
    of after, summed over severities, divided by those of before (Hendrycks and Dietterich 2019, with the
    original as reference network); null where before makes no error under some corruption.
    `images_better` and `images_worse` count images of which after gets more, or fewer, of the corrupted
    pictures right; `sign_p` is the exact two-sided sign test on them, where an image counts once.
    """

    before: str
    after: str
    clean: PairedChange
    cells: tuple[PairedChange, ...]
    mean_change_pp: float
    mce: float | None
    images_better: int
    images_worse: int
    sign_p: float


def measure_corrupted(
    models: Mapping[str, nn.Module],
    suite: Iterable[tuple[str, int, Split]],
    bench: Bench,
    watcher: Watcher = SILENT,
) -> dict[str, dict[Cell, Bools]]:
    """Return for each network which images it gets right in each cell of the suite.

    Each picture is corrupted once for all networks. Raises `KernelsimpError` as `measure` does, and for an
    empty suite.
    """
    found: dict[str, dict[Cell, Bools]] = {name: {} for name in models}
    for corruption, severity, split in suite:
        for name, correct in _correct(models, split, bench).items():
            found[name][corruption, severity] = correct
        watcher.step()
    if not all(found.values()):
        raise KernelsimpError("no corruption to measure under; expected at least one")
    return found


def _correct(models: Mapping[str, nn.Module], split: Split, bench: Bench) -> dict[str, Bools]:
    """Return which images of a split each network gets right, reading the images once."""
    parts: dict[str, list[Bools]] = {name: [] for name in models}
    for images, labels in bench.batches(split):
        there, truth = images.to(bench.device), labels.to(bench.device)
        for name, model in models.items():
            with evaluation_mode(model), torch.no_grad():
                right = logits_within(bench.limit, model, there, truth).argmax(1) == truth
            parts[name].append(right.cpu().numpy())
    if len(split) == 0:
        raise KernelsimpError("no images to measure on; expected at least one batch")
    return {name: np.concatenate(part) for name, part in parts.items()}


def scores(cells: Mapping[Cell, Bools]) -> tuple[CorruptedTop1, ...]:
    """Return accuracy under each corruption, in the order of the cells."""
    rows = []
    for corruption in dict.fromkeys(name for name, _ in cells):
        severities = tuple(severity for name, severity in cells if name == corruption)
        top1 = tuple(_percent(cells[corruption, severity]) for severity in severities)
        rows.append(CorruptedTop1(corruption, severities, top1, fmean(top1)))
    return tuple(rows)


def corruption_change(before: CorruptionTrial, after: CorruptionTrial) -> CorruptionChange:
    """Compare two networks image by image; raises `KernelsimpError` where their cells differ."""
    if list(before.cells) != list(after.cells):
        raise KernelsimpError(f"{before.name} and {after.name} saw different corruptions; expected the same")
    cells = tuple(pair_changes(cell, before.cells[cell], after.cells[cell]) for cell in before.cells)
    better, worse = _count_moved(list(before.cells.values()), list(after.cells.values()))
    return CorruptionChange(
        before.name,
        after.name,
        pair_changes(("clean", None), before.clean, after.clean),
        cells,
        _mean(after.cells) - _mean(before.cells),
        relative_mce(before.cells, after.cells),
        better,
        worse,
        min(1.0, 2 * float(bdtr(min(better, worse), better + worse, 0.5))),
    )


def pair_changes(cell: tuple[str, int | None], before: Bools, after: Bools) -> PairedChange:
    """Return one comparison; raises `KernelsimpError` where the numbers of images differ."""
    interval, p = paired_interval(before, after), mcnemar(before, after)
    change = 100 * (int(after.sum()) - int(before.sum())) / before.size
    return PairedChange(*cell, _percent(before), _percent(after), change, interval, p)


def relative_mce(before: Mapping[Cell, Bools], after: Mapping[Cell, Bools]) -> float | None:
    """Return the mean over corruptions of errors after / before, in percent; null where before has none."""
    ratios = []
    for corruption in dict.fromkeys(name for name, _ in before):
        errors = [
            sum(int((~correct).sum()) for (name, _), correct in cells.items() if name == corruption)
            for cells in (before, after)
        ]
        if errors[0] == 0:
            return None
        ratios.append(errors[1] / errors[0])
    return 100 * fmean(ratios)


def _count_moved(before: Sequence[Bools], after: Sequence[Bools]) -> tuple[int, int]:
    """Return how many images are right in more cells after than before, and in fewer."""
    difference = np.sum(after, axis=0, dtype=int) - np.sum(before, axis=0, dtype=int)
    return int((difference > 0).sum()), int((difference < 0).sum())


def _mean(cells: Mapping[Cell, Bools]) -> float:
    """Return the mean over corruptions of their mean accuracy over severities."""
    return fmean(row.mean for row in scores(cells))


def _percent(correct: Bools) -> float:
    return 100 * int(correct.sum()) / correct.size
