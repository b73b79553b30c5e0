"""Two networks on the same images: which layers stand side by side, and how alike they are."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from kernelsimp.analysis.activations import (
    BY,
    Activations,
    ActivationSubject,
    LayerShape,
    PositionSampling,
    beside,
    collect,
    shapes_of,
)
from kernelsimp.analysis.select import match_names
from kernelsimp.analysis.similarity import FEWEST, MEASURES, ActivationPair, Features, compute_measures
from kernelsimp.errors import KernelsimpError, did_you_mean
from kernelsimp.records.comparison import Comparison, LayerSimilarity, Matrix, Predictions
from kernelsimp.settings import CompareSettings
from kernelsimp.watch import SILENT, Watcher

MATCH = ("auto", "name", "depth")
COLLECT_BYTES = 1 << 30
"""What the activations of both networks may take at once; more layers wait for another pass."""
MATRIX_BYTES = 4 << 30
"""All against all needs all layers at once: more than this is refused."""
MOST_NAMED = 4

Couple = tuple[LayerShape, LayerShape]
Shapes = Sequence[LayerShape]


@dataclass(frozen=True, eq=False)
class ComparedPair:
    """Two networks, on one device and in evaluation mode, and the batches (n, C, H, W) both are given.

    `batches` can be gone through again; `images` is how many there are.
    """

    a: nn.Module
    b: nn.Module
    batches: Iterable[Tensor]
    images: int
    seed: int = 0


def compare(pair: ComparedPair, settings: CompareSettings, watcher: Watcher = SILENT) -> Comparison:
    """Compare two networks layer by layer; with `settings.matrix` also all layers against all.

    Raises `KernelsimpError` for unknown settings and layers, too few images, a network that refuses the
    images, and where measures were asked for by name that the samples are too few for.
    """
    run = _Comparing(pair, settings, watcher)
    layers = tuple(run.rows())
    predictions = run.predictions()
    matrix = run.matrix() if settings.matrix else None
    notes = (*run.told, *run.defects(), *_too_few(layers, settings), *_no_classes(predictions))
    return Comparison(layers, predictions, pair.images, settings.by, run.sampling.words, matrix, notes)


def check_settings(settings: CompareSettings) -> None:
    """Raise `KernelsimpError` for a word that no setting knows."""
    for option, word, known in (("by", settings.by, BY), ("match", settings.match, MATCH)):
        if word not in known:
            raise KernelsimpError(f"--{option} is '{word}'{did_you_mean(word, known)}")
    for name in settings.measures or ():
        if name not in MEASURES:
            raise KernelsimpError(f"--measures: no measure '{name}'{did_you_mean(name, MEASURES)}")


def match_layers(a: Shapes, b: Shapes, how: str) -> list[Couple]:
    """Return the layers that stand side by side, in the order of A.

    By name: those that both have. By depth: for layer i of n the layer of B at the same share of its
    depth. `auto` goes by name where the smaller network has no name that the other lacks.
    """
    known = {shape.name: shape for shape in b}
    common = [(shape, known[shape.name]) for shape in a if shape.name in known]
    if how == "auto":
        how = "name" if len(common) == min(len(a), len(b)) else "depth"
    if how == "depth":
        step = (len(b) - 1) / max(len(a) - 1, 1)
        return [(shape, b[round(place * step)]) for place, shape in enumerate(a)]
    if not common:
        names = f"A has {_few(a)}; B has {_few(b)}"
        raise KernelsimpError(f"no layer of A has the name of a layer of B ({names}); pass --match depth")
    return common


def _few(shapes: Shapes) -> str:
    more = ", ..." if len(shapes) > MOST_NAMED else ""
    return ", ".join(shape.name for shape in shapes[:MOST_NAMED]) + more


@dataclass(eq=False)
class _Comparing:
    """One comparison under way: what was chosen before it, and what the passes brought."""

    pair: ComparedPair
    settings: CompareSettings
    watcher: Watcher
    outputs: tuple[list[object], list[object]] = field(default_factory=lambda: ([], []))
    bad: dict[str, list[str]] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_settings(self.settings)
        if self.pair.images < FEWEST:
            found = f"{self.pair.images} images to compare on"
            raise KernelsimpError(f"{found}; expected at least {FEWEST}: see --images")
        if self.settings.samples < 1:
            raise KernelsimpError(f"--samples is {self.settings.samples}; expected at least 1")
        self.sampling = PositionSampling(
            self.settings.by, self.pair.images, self.settings.samples, self.pair.seed
        )
        self.a, self.b = ActivationSubject(self.pair.a, "A"), ActivationSubject(self.pair.b, "B")
        images = next(iter(self.pair.batches))
        self.shapes = shapes_of(self.a, images), shapes_of(self.b, images)
        self.couples = self._choose_couples(match_layers(*self.shapes, self.settings.match))
        self.names = self.settings.measures or tuple(MEASURES)
        self._tell_alone()

    def _choose_couples(self, couples: list[Couple]) -> list[Couple]:
        """Return the couples of which one layer is among those asked for."""
        if not self.settings.layers:
            return couples
        names = list(dict.fromkeys(shape.name for shapes in self.shapes for shape in shapes))
        wanted = match_names(names, self.settings.layers, "--layers")
        kept = [couple for couple in couples if {couple[0].name, couple[1].name} & wanted]
        if not kept:
            raise KernelsimpError(
                f"--layers {','.join(self.settings.layers)}: none of these has a layer beside it; "
                "see --match depth"
            )
        return kept

    def _tell_alone(self) -> None:
        if self.settings.layers:
            return
        for side, name in enumerate("AB"):
            paired = {couple[side].name for couple in self.couples}
            alone = [shape for shape in self.shapes[side] if shape.name not in paired]
            if alone:
                self.told.append(f"{len(alone)} layers of {name} stand beside none: {_few(alone)}")

    def rows(self) -> Iterator[LayerSimilarity]:
        """Yield one record a couple, pass by pass."""
        for couples in _groups(self.couples, self.sampling):
            a, b = self._collect_activations(couples)
            self.watcher.start("comparing layers", len(couples))
            for first, second in couples:
                yield self._row(a[first.name], b[second.name])
                self.watcher.step()

    def _collect_activations(
        self, couples: list[Couple]
    ) -> tuple[dict[str, Activations], dict[str, Activations]]:
        """Run both networks over all images for the layers of these couples."""
        sides = []
        for side, subject in enumerate((self.a, self.b)):
            self.watcher.start(f"running {subject.name}")
            shapes = list(dict.fromkeys(couple[side] for couple in couples))
            outputs: list[object] = []
            sides.append(collect(subject, shapes, self.pair.batches, self.sampling, outputs.append))
            self.outputs[side][:] = self.outputs[side] or outputs
        return sides[0], sides[1]

    def _row(self, a: Activations, b: Activations) -> LayerSimilarity:
        x, y, what = beside(a, b)
        pair = self._pair(a.shape, b.shape, (Features(x), Features(y)))
        figures = compute_measures(pair, self.names)
        return LayerSimilarity(
            a.shape.name, b.shape.name, pair.n, what, (pair.a.p, pair.b.p), **figures, **self._weights(a, b)
        )

    def _pair(self, a: LayerShape, b: LayerShape, features: tuple[Features, Features]) -> ActivationPair:
        for side, shape, one in zip("AB", (a, b), features, strict=True):
            if one.defect and shape.name not in self.bad.setdefault(f"{side} {one.defect}", []):
                self.bad[f"{side} {one.defect}"].append(shape.name)
        same = (a.channels, a.grid) == (b.channels, b.grid)
        return ActivationPair(*features, aligned=same, force=self.settings.force)

    def _weights(self, a: Activations, b: Activations) -> dict[str, float | None]:
        """Return ||Wb - Wa|| / ||Wa|| of two layers, where their weights have one shape."""
        weights = [subject.layers()[layer.shape.name].weight for subject, layer in ((self.a, a), (self.b, b))]
        x, y = (weight.detach().double() if isinstance(weight, Tensor) else None for weight in weights)
        if x is None or y is None or x.shape != y.shape or not float(x.norm()) > 0:
            return {"weight_error": None}
        return {"weight_error": float((y - x).norm() / x.norm())}

    def defects(self) -> Iterator[str]:
        """Yield one warning a kind of layer for which similarity is not defined."""
        for what, names in self.bad.items():
            side, defect = what.split(" ", 1)
            listed = ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")
            yield f"{listed} of {side} {defect}: its measures are null"

    @torch.no_grad()
    def predictions(self) -> Predictions:
        """Return how the answers agree, where both networks give scores of as many classes."""
        a, b = (_scores(parts) for parts in self.outputs)
        if a is None or b is None or a.shape != b.shape:
            return Predictions()
        agreement = float((a.argmax(1) == b.argmax(1)).double().mean())
        p, q = log_softmax(a, 1), log_softmax(b, 1)
        kl = float(kl_div(q, p, reduction="batchmean", log_target=True))
        return Predictions(agreement, max(kl, 0.0), a.shape[1])

    def matrix(self) -> Matrix:
        """Return every layer of A against every layer of B, by the measures that need no alignment."""
        rows, columns = self._sides()
        need = sum(self.sampling.bytes_of(shape) for shape in (*rows, *columns))
        if need > MATRIX_BYTES:
            raise KernelsimpError(
                f"--matrix needs all layers at once, {need / 1e9:.1f} GB of activations; "
                "choose fewer --layers, --images or --samples"
            )
        a, b = self._collect_activations(
            [(one, columns[0]) for one in rows] + [(rows[0], one) for one in columns]
        )
        names = tuple(name for name in self.names if not MEASURES[name].aligned)
        cells: dict[str, list[tuple[float | None, ...]]] = {name: [] for name in names}
        averaged = len({shape.grid for shape in (*rows, *columns)}) > 1 and self.settings.by == "channels"
        store = _Store(averaged=averaged)
        self.watcher.start("all layers against all", len(rows))
        for row in rows:
            line = [self._cell(store, a[row.name], b[column.name], names) for column in columns]
            for name in names:
                cells[name].append(tuple(cell[name] for cell in line))
            store.forget_a()
            self.watcher.step()
        found = {name: tuple(lines) for name, lines in cells.items()}
        what = "images" if averaged or self.settings.by == "flat" else "positions"
        return Matrix(tuple(s.name for s in rows), tuple(s.name for s in columns), found, what)

    def _cell(
        self, store: "_Store", a: Activations, b: Activations, names: tuple[str, ...]
    ) -> dict[str, float | None]:
        return compute_measures(self._pair(a.shape, b.shape, store.features(a, b)), names)

    def _sides(self) -> tuple[list[LayerShape], list[LayerShape]]:
        """Return the layers of A and of B that were asked for."""
        if not self.settings.layers:
            return list(self.shapes[0]), list(self.shapes[1])
        rows = list(dict.fromkeys(couple[0] for couple in self.couples))
        return rows, list(dict.fromkeys(couple[1] for couple in self.couples))


class _Store:
    """Keeps what was computed of each layer while it stands against all others.

    `averaged` takes means over positions everywhere: cells of different samples could not be compared.
    """

    def __init__(self, *, averaged: bool) -> None:
        self._averaged = averaged
        self._a: dict[str, Features] = {}
        self._b: dict[str, Features] = {}

    def features(self, a: Activations, b: Activations) -> tuple[Features, Features]:
        return self._of(self._a, a), self._of(self._b, b)

    def _of(self, known: dict[str, Features], layer: Activations) -> Features:
        rows = layer.means if self._averaged and layer.means is not None else layer.rows
        return known.setdefault(layer.shape.name, Features(rows))

    def forget_a(self) -> None:
        self._a.clear()


def _groups(couples: list[Couple], sampling: PositionSampling) -> Iterator[list[Couple]]:
    """Yield runs of couples whose activations fit in memory together."""
    group: list[Couple] = []
    size = 0
    for couple in couples:
        new = sum(sampling.bytes_of(shape) for shape in couple)
        if group and size + new > COLLECT_BYTES:
            yield group
            group, size = [], 0
        group.append(couple)
        size += new
    if group:
        yield group


def _scores(parts: list[object]) -> Tensor | None:
    """Return outputs as scores (n, classes), float64 on the CPU, or None where they are none."""
    tensors = [part for part in parts if isinstance(part, Tensor) and part.ndim == 2 and part.shape[1] > 1]
    if len(tensors) < len(parts) or not tensors:
        return None
    scores = torch.cat([part.detach().double().cpu() for part in tensors])
    return scores if bool(scores.isfinite().all()) else None


def _no_classes(predictions: Predictions) -> Iterator[str]:
    if predictions.classes is None:
        yield "agreement and KL are null: they need finite scores (images, classes) of as many classes"


def _too_few(layers: Sequence[LayerSimilarity], settings: CompareSettings) -> Iterator[str]:
    """Say where samples are too few for correlations of subspaces.

    Raises `KernelsimpError` where nothing but such measures was asked for, and none could be computed.
    """
    short = [row for row in layers if row.n <= sum(row.columns)]
    if not short:
        return
    worst = max(short, key=lambda row: sum(row.columns) - row.n)
    found = f"{worst.n} samples for {worst.columns[0]} + {worst.columns[1]} columns at {worst.a}"
    advice = "take more --images or --samples"
    asked = settings.measures or ()
    if settings.force:
        yield f"cca and pwcca stand on too few samples in {len(short)} layers ({found}): chance gives near 1"
        return
    subspaces = [name for name in asked if MEASURES[name].correlates]
    if asked and len(subspaces) == len(asked) and _all_null(layers, subspaces):
        raise KernelsimpError(
            f"{', '.join(asked)}: {found}; expected more samples than columns: {advice}, or pass --force"
        )
    yield f"cca and pwcca are null in {len(short)} of {len(layers)} layers ({found}); {advice}, or --force"


def _all_null(layers: Sequence[LayerSimilarity], names: Sequence[str]) -> bool:
    counts = Counter(getattr(row, name) is None for row in layers for name in names)
    return counts[False] == 0
