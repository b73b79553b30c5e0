"""Which layers of a network run as two thinner ones: what costs nothing, or what a budget allows.

Without a budget only layers of exact rank are taken apart, where that was measured to be faster. A budget in
accuracy or speed makes others of low rank, too, at one price of a second as measured; one in multiplications
goes by these.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from kernelsimp.analysis.latency import filled
from kernelsimp.analysis.layer_times import LayerTime, LayerTimes, Place, timed_run
from kernelsimp.analysis.timing import Measured, interleaved
from kernelsimp.commands.planner import budget_judge, calibrate
from kernelsimp.commands.task import Task
from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.separable import rank_that_pays
from kernelsimp.models.factorised import LayerShape, exact_plan, factorise, layer_shapes, separable_layers
from kernelsimp.models.footprint import footprints
from kernelsimp.models.thin import Thin
from kernelsimp.settings import Settings
from kernelsimp.solver.fisher import Sensitivity, survey
from kernelsimp.solver.layerwise import CalibratedNetwork, in_float32, reconstruct
from kernelsimp.solver.low_rank import LowRank
from kernelsimp.solver.rank_choice import (
    Ladder,
    Rung,
    choose,
    choose_for_cost,
    cost_of,
    fisher_of,
    losses_at,
    steepest,
)
from kernelsimp.solver.targets import Target, as_they_are
from kernelsimp.watch import Watcher

BUDGETS = ("max_drop", "speedup", "macs")

RUNGS_TIMED, RUNGS_COUNTED = 8, 24
"""How many ranks of a layer are measured, and how many are offered where multiplications count."""

TRIALS, TURNS = 6, 3
"""Halvings of the search for an accuracy budget, and corrections of one for speed."""

FREE = 1e-30
"""A price of a second at which only what loses nothing is worth it."""


@dataclass(frozen=True, eq=False)
class Decision:
    """What is to be done: `whole` is the network before any layer is replaced, of the ranks of `plan`.

    `fitted` names layers that were made of low rank. `macs` are before and after, of one image.
    """

    whole: nn.Module
    plan: Mapping[str, Thin]
    fitted: frozenset[str]
    met: bool
    macs: tuple[int, int]
    notes: tuple[str, ...] = ()


@dataclass
class Ground:
    """The network as it is, in float32, its layers that may be taken apart, and their times."""

    task: Task
    model: nn.Module
    images: Tensor
    times: LayerTimes
    layers: dict[str, nn.Conv2d] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, LayerShape] = field(default_factory=dict)
    known: dict[str, dict[Thin, LayerTime]] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        return self.task.settings

    def place(self, name: str) -> Place:
        """Return where a layer is timed."""
        factorising = self.settings.factorising
        return Place((factorising.time_batch, *self.shapes[name].inputs), factorising.layout)

    def measure(self, name: str, ways: tuple[Thin, ...]) -> Mapping[Thin, LayerTime]:
        """Return the times of ways to run a layer, which are kept."""
        missing = tuple(way for way in ways if way not in self.known.get(name, {}))
        if missing:
            found = self.times.measure(self.layers[name], missing, self.place(name))
            self.known.setdefault(name, {}).update(found)
        return self.known.get(name, {})


def open_ground(task: Task, images: Tensor, times: LayerTimes) -> Ground:
    """Return the ground of a decision; layers that no image reaches, or at several sizes, stay whole."""
    model: nn.Module = in_float32(task.network.module()).to(memory_format=torch.contiguous_format)
    layers, reasons = separable_layers(model)
    shapes = layer_shapes(model, images[:1], layers)
    for name in list(layers):
        if name not in shapes:
            reasons[name] = "it is never run"
        elif not shapes[name].alike:
            reasons[name] = "it is called at several sizes"
        else:
            continue
        del layers[name]
    return Ground(task, model, images, times, layers, reasons, shapes)


def decide(ground: Ground, watcher: Watcher) -> Decision:
    """Return what to do within the budget of the settings.

    Raises `KernelsimpError` for two budgets, one out of range, one that needs images and has none, and for a
    share of the multiplications that cannot be reached.
    """
    budget = check_budget(ground.settings)
    exact = exact_plan(ground.layers)
    if budget is None:
        return _decide_exact(ground, exact, watcher)
    if ground.task.data is None:
        raise KernelsimpError(f"--{budget.replace('_', '-')} needs images to fit layers to: pass --data")
    return _Fitting(ground, exact, watcher).decide(budget)


def check_budget(settings: Settings) -> str | None:
    """Return the name of the budget, None where there is none; refuse two, and one out of range."""
    values = {
        "max_drop": settings.coding.max_drop,
        "speedup": settings.factorising.speedup,
        "macs": settings.factorising.macs,
    }
    given = [name for name in BUDGETS if values[name] is not None]
    if len(given) > 1:
        raise KernelsimpError(f"choose one budget, not --{' and --'.join(given)}".replace("_", "-"))
    ranges = {"max_drop": (0.0, 100.0), "speedup": (1.0, 1000.0), "macs": (0.0, 1.0)}
    for name in given:
        low, high = ranges[name]
        value = float(values[name] or 0)
        if not low <= value <= high:
            option = f"--{name.replace('_', '-')}"
            raise KernelsimpError(f"{option} is {value:g}; expected a number from {low:g} to {high:g}")
    if settings.factorising.time_batch < 1:
        raise KernelsimpError(f"--time-batch is {settings.factorising.time_batch}; expected 1 or more")
    return given[0] if given else None


def macs_of(ground: Ground, plan: Mapping[str, Thin]) -> tuple[int, int]:
    """Return the multiplications of one image before and after."""
    model, shape = ground.model, tuple(ground.images.shape[1:])
    before = footprints(lambda: in_float32(model), shape).macs
    saved = sum(
        ground.shapes[name].macs(ground.layers[name]) - ground.shapes[name].macs(ground.layers[name], way)
        for name, way in plan.items()
    )
    return before, before - saved


def _timed_ladder(ground: Ground, name: str, losses: Mapping[Thin, float]) -> Ladder:
    """Return the ways of a layer that were measured to be faster, in seconds over all its calls."""
    times = ground.measure(name, tuple(losses))
    whole = next(iter(times.values())).whole.median * ground.shapes[name].calls if times else 0.0
    rungs = [
        Rung(way, whole / times[way].ratio.value, loss)
        for way, loss in losses.items()
        if times[way].ratio.faster
    ]
    return Ladder(whole, tuple(rungs))


def _decide_exact(ground: Ground, exact: Mapping[str, tuple[Thin, ...]], watcher: Watcher) -> Decision:
    watcher.start("timing layers", len(exact))
    ladders = {}
    for name, ways in exact.items():
        ladders[name] = _timed_ladder(ground, name, dict.fromkeys(ways, 0.0))
        watcher.step()
    plan = {name: rung.way for name, rung in choose(ladders, 1.0).items()}
    return Decision(ground.model, plan, frozenset(), met=True, macs=macs_of(ground, plan))


class _Fitting:
    """A decision that makes layers of low rank, on calibration images."""

    def __init__(self, ground: Ground, exact: Mapping[str, tuple[Thin, ...]], watcher: Watcher) -> None:
        self.ground, self.exact, self.watcher = ground, exact, watcher
        task = ground.task
        assert task.data is not None
        settings = task.settings
        images = task.data.calibration(settings.data.calibration, settings.run.seed)
        self.calibrated: CalibratedNetwork = calibrate(task, images, watcher)
        self.seen: Mapping[str, Sensitivity] = survey(
            self.calibrated.model, self.calibrated.traced, self.calibrated.images, settings.run.seed, watcher
        )

    def decide(self, budget: str) -> Decision:
        """Return the decision within a budget."""
        settings = self.ground.settings
        losses = self._losses(RUNGS_COUNTED if budget == "macs" else RUNGS_TIMED)
        if budget == "macs":
            return self._by_macs(losses, float(settings.factorising.macs or 0))
        self.watcher.start("timing layers", len(losses))
        ladders = {}
        for name, known in losses.items():
            ladders[name] = _timed_ladder(self.ground, name, known)
            self.watcher.step()
        if budget == "speedup":
            return self._by_speed(ladders, float(settings.factorising.speedup or 0))
        return self._by_accuracy(ladders, float(settings.coding.max_drop or 0))

    def _losses(self, rungs: int) -> dict[str, dict[Thin, float]]:
        """Return the ways of every layer and what each loses; exact ones lose nothing."""
        ranks = {}
        for name, layer in self.ground.layers.items():
            most = rank_that_pays(tuple(layer.weight.shape), layer.groups)
            exact = [way.rank for way in self.exact.get(name, ()) if not way.channels]
            most = min([most, *(rank - 1 for rank in exact)])
            if most > 0:
                ranks[name] = sorted({max(1, round(most * (place + 1) / rungs)) for place in range(rungs)})
        found = losses_at(self.calibrated, self.seen, ranks, self.watcher)
        ways = {name: {Thin(rank): loss for rank, loss in item.items()} for name, item in found.items()}
        for name, exact_ways in self.exact.items():
            ways[name] = {**ways.get(name, {}), **dict.fromkeys(exact_ways, 0.0)}
        return ways

    def _by_macs(self, losses: Mapping[str, Mapping[Thin, float]], share: float) -> Decision:
        ground, shapes = self.ground, self.ground.shapes
        ladders = {}
        for name, known in losses.items():
            layer, whole = ground.layers[name], shapes[name].macs(ground.layers[name])
            rungs = (Rung(way, shapes[name].macs(layer, way), loss) for way, loss in known.items())
            ladders[name] = Ladder(whole, tuple(rung for rung in rungs if rung.cost < whole))
        total = macs_of(ground, {})[0]
        rest = total - cost_of(ladders, {})
        chosen = choose_for_cost(ladders, share * total - rest)
        if chosen is None:
            least = (rest + cost_of(ladders, choose(ladders, steepest(ladders)))) / total
            raise KernelsimpError(
                f"--macs {share:g}: thinner layers leave {least:.3f} of the multiplications at least"
            )
        return self._made(chosen, met=True)

    def _by_speed(self, ladders: Mapping[str, Ladder], speedup: float) -> Decision:
        """Aim at a speed by what layers save, and again by what the network as a whole was measured at."""
        aim, least = speedup, choose(ladders, steepest(ladders))
        seconds = self._measured(self.ground.model).timing(0).median
        best: Decision | None = None
        for _ in range(TURNS):
            chosen = choose_for_cost(ladders, cost_of(ladders, {}) - seconds * (1 - 1 / aim))
            made = self._made(least if chosen is None else chosen, met=False)
            ratio = self._measured(self.ground.model, factorise(made.whole, made.plan)).ratio(1)
            self.watcher.note(f"{len(made.plan)} layers thinner: {ratio.value:.2f} times as fast")
            if ratio.value >= speedup:
                return replace(made, met=True)
            best = made
            if chosen is None:
                break
            aim *= max(speedup / ratio.value, 1.01)
        assert best is not None
        return best

    def _measured(self, *models: nn.Module) -> Measured:
        """Time whole networks at the batch and in the layout of the settings."""
        factorising, times = self.ground.settings.factorising, self.ground.times
        images = filled(self.ground.images, factorising.time_batch)
        runs = [timed_run(copy.deepcopy(model), images, factorising.layout) for model in models]
        with torch.inference_mode():
            return interleaved(runs, times.effort, times.clock)

    def _by_accuracy(self, ladders: Mapping[str, Ladder], drop: float) -> Decision:
        """Halve between what costs nothing and all that was faster; images apart judge."""
        judge = budget_judge(self.ground.task, self.watcher)
        whole, least = cost_of(ladders, {}), cost_of(ladders, choose(ladders, steepest(ladders)))
        made = self._made(choose(ladders, FREE), met=True)
        low, high = 0.0, 1.0
        for _ in range(TRIALS):
            share = (low + high) / 2
            chosen = choose_for_cost(ladders, whole - share * (whole - least)) or {}
            trial = self._made(chosen, met=True)
            lost = judge.drop(trial.whole) if trial.fitted else 0.0
            told = f"{0 - lost:+.2f} pp" if judge.by_accuracy else f"lost {lost:.3g}"
            self.watcher.note(
                f"{len(chosen)} layers thinner, {100 * share:.0f} % of what can be saved: {told}"
            )
            low, high, made = (share, high, trial) if lost <= drop else (low, share, made)
        return made

    def _made(self, chosen: Mapping[str, Rung], *, met: bool) -> Decision:
        """Carry out a choice: make the layers of low rank, in the order of the network."""
        plan = {name: rung.way for name, rung in chosen.items()}
        fitted = frozenset(name for name, rung in chosen.items() if rung.way not in self.exact.get(name, ()))
        whole: nn.Module = self.ground.model
        notes: tuple[str, ...] = ()
        if fitted:
            made = reconstruct(self.calibrated, self._targets(plan, fitted), self.watcher)
            whole, notes = made.model.to(memory_format=torch.contiguous_format), made.notes
        return Decision(whole, plan, fitted, met, macs_of(self.ground, plan), notes)

    def _targets(self, plan: Mapping[str, Thin], fitted: frozenset[str]) -> dict[str, Target]:
        targets = {}
        for name, way in plan.items():
            layer = self.ground.layers[name]
            minds = fisher_of(self.seen, name, layer.out_channels)
            low_rank = LowRank(way.rank, tuple(layer.weight.shape), layer.groups, minds)
            targets[name] = low_rank.target() if name in fitted else as_they_are()
        return targets
