"""The coded export: a network in as few bytes as a budget allows, judged on what the file decodes to."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from kernelsimp.commands.coded_record import CodedMade, record_coded
from kernelsimp.commands.inputs import open_data
from kernelsimp.commands.measure import classifies, measure_module
from kernelsimp.commands.planner import budget_judge, calibrate
from kernelsimp.commands.run import ExportSource
from kernelsimp.commands.task import Task
from kernelsimp.data.sources import Data
from kernelsimp.errors import KernelsimpError
from kernelsimp.evaluation.accuracy import stage
from kernelsimp.models.coded import Coded, CodedFile, Layout, code_state, numbers_of
from kernelsimp.models.contents import plan_in_file
from kernelsimp.models.network import Network, open_network
from kernelsimp.models.stages import groups_of, is_transposed, layer_modules, matrix_of
from kernelsimp.models.stored_order import tensor_name
from kernelsimp.records.report import CodedPoint, Stage
from kernelsimp.settings import Settings
from kernelsimp.shelf import check_disk
from kernelsimp.solver.coding_kernels import PlannedMenu, planned_menus
from kernelsimp.solver.coding_moments import images_enough
from kernelsimp.solver.coding_search import Budget, first_price, prepare_ground, search_price
from kernelsimp.solver.coding_walk import Coding, Ground, code_network, code_tensors
from kernelsimp.solver.distance import DistanceJudge
from kernelsimp.solver.layerwise import CalibratedNetwork
from kernelsimp.solver.search import BudgetJudge
from kernelsimp.watch import SILENT, Watcher

USUAL_DROP = 0.5

DATA_FREE_PRICE = 2e-6
"""The price of a bit where nothing else is known, in relative squared error of a layer's filters."""

LIVE = 4
"""Outputs that a pass which has stopped still needs, each counted as the largest."""

NAMED = 8
"""How many tensors that go in whole are named."""


@dataclass(frozen=True, eq=False)
class CodedExport:
    """What a coded export came to: the file, whether it keeps its budget, and what is worth saying."""

    file: CodedFile
    met: bool
    notes: tuple[str, ...]


def export_coded(source: ExportSource, path: Path, watcher: Watcher = SILENT) -> CodedExport:
    """Write the smallest coded file within the budget of the settings; where none is, the nearest to it.

    Without a network and images weights alone are coded, by their relative errors. Raises `KernelsimpError`
    for two budgets, one that needs images and has none, and where numba is missing.
    """
    settings = source.settings
    _check_budgets(settings)
    if settings.data.data is None:
        watcher.warn("no images were given: coding by relative error of weights, and nothing answers for it")
        made = _without_images(source, watcher)
    else:
        model = replace(settings.model, sha256=None)
        network = open_network(source.path, replace(settings, model=model), watcher)
        data = open_data(settings, watcher)
        assert data is not None
        made = _on_images(network, data, source, watcher)
    made.file.save(path)
    told = [*made.notes, *_kept(made.file)]
    if source.run is not None and source.plan is not None:
        told.append(record_coded(source.run, path, source.plan, made))
    tried = "; ".join(f"{size:,} bytes: {spent:.4g}" for _, size, spent in sorted(made.found.tried))
    return CodedExport(made.file, made.found.met, (*told, f"tried: {tried}"))


def _check_budgets(settings: Settings) -> None:
    coding = settings.coding
    given = [
        f"--{name}".replace("_", "-")
        for name in ("max_drop", "kl", "size")
        if getattr(coding, name) is not None
    ]
    if len(given) > 1:
        raise KernelsimpError(f"choose one budget, not {' and '.join(given)}")
    if given and given[0] != "--size" and settings.data.data is None:
        raise KernelsimpError(f"{given[0]} needs a network and images: pass --arch and --data")


def _kept(filed: CodedFile) -> tuple[str, ...]:
    if not filed.kept:
        return ()
    more = f" and {len(filed.kept) - NAMED} more" if len(filed.kept) > NAMED else ""
    return (f"kept whole, or in 16 bits: {', '.join(filed.kept[:NAMED])}{more}",)


# ---------------------------------------------------------------- with images


class CodingJob:
    """A network, the ground that its coding stands on, and how a coding becomes a file."""

    def __init__(self, network: Network, ground: Ground) -> None:
        self.network, self.ground = network, ground
        self.original = ground.model.state_dict()
        self.layouts = {
            tensor_name(name): Layout(transposed=is_transposed(items[0]), groups=groups_of(items[0]))
            for name, items in layer_modules(ground.model).items()
        }

    def decoded(self, coding: Coding) -> Network:
        """Return the network that a coding decodes to, in the dtypes of the checkpoint."""
        assert coding.model is not None
        changed = {
            name: item for name, item in coding.model.state_dict().items() if self._moved(name, coding)
        }
        return self.network.with_weights(changed)

    def _moved(self, name: str, coding: Coding) -> bool:
        return name in coding.tensors or name in self.ground.absorbed

    def file(self, coding: Coding) -> CodedFile:
        """Return the file of a coding."""
        checkpoint = self.decoded(coding).checkpoint
        coded = {
            checkpoint.name_in_file(name): (item, self.layouts.get(name, Layout()))
            for name, item in coding.tensors.items()
            if checkpoint.name_in_file(name) in checkpoint.current_state
        }
        return code_state(checkpoint.current_state, coded, checkpoint.found.keys, halve=True)


def _on_images(network: Network, data: Data, source: ExportSource, watcher: Watcher) -> CodedMade:
    settings = source.settings
    task = Task(network, data, settings)
    calibrated = calibrate(task, data.calibration(settings.data.calibration, settings.run.seed), watcher)
    _check_disk(calibrated)
    limit = calibrated.limit
    held = DistanceJudge(calibrated.model, calibrated.held_back, limit=limit)
    trials = _Trials(held, task, watcher)
    dtypes = {name: item.dtype for name, item in network.checkpoint.tensors.items()}
    ground = limit.in_batches(
        lambda images: prepare_ground(calibrated.model, images, dtypes, calibrated.seed, watcher),
        calibrated.images,
    )
    if source.plan is not None:
        planned = planned_menus(source.plan.layers, source.plan.structures)
        ground = replace(ground, menus={**ground.menus, **planned})
    ground = replace(ground, room=calibrated.room)
    job = CodingJob(network, ground)
    budget = Budget(trials.limit, first_price(ground), by_size=settings.coding.size is not None)
    measure = partial(trials.measure, job)

    def make(price: float) -> Coding:
        return limit.in_batches(
            lambda images: code_network(replace(ground, images=images), price, watcher), ground.images
        )

    found = search_price(make, measure, budget, watcher)
    best = found.best.coding
    assert best.model is not None
    far = trials.held.distance(best.model).divergence
    told = [f"KL {far:.4f} on {trials.held.count} images held back"]
    stages = _tested((network, job.decoded(best)), data, settings, watcher)
    if stages:
        before, after = stages
        told.append(f"test images: {after.correct} of {after.total} right, the original {before.correct}")
    return CodedMade(found, job.file(best), trials.words, tuple(trials.points), stages, tuple(told))


class _Trials:
    """How codings are measured against the budget; `points` are all that were.

    Raises `KernelsimpError` where an accuracy budget has no images to be judged on.
    """

    def __init__(self, held: DistanceJudge, task: Task, watcher: Watcher) -> None:
        coding = task.settings.coding
        self.held, self.points = held, list[CodedPoint]()
        drop = coding.max_drop
        if coding.kl is None and coding.size is None and drop is None:
            drop = USUAL_DROP
        given = {"--max-drop": drop, "--kl": coding.kl, "--size": coding.size}
        name, self.limit = next((name, float(item)) for name, item in given.items() if item is not None)
        self.words = f"{name} {self.limit:g}"
        self.judge: BudgetJudge | None = None
        if drop is not None:
            watcher.note(f"judging by {self.words}")
            self.judge = budget_judge(task, watcher)

    def measure(self, job: CodingJob, made: Coding) -> tuple[int, float]:
        """Return the bytes of a coding, and what the budget is held against."""
        assert made.model is not None
        size, far = job.file(made).size, self.held.distance(made.model).divergence
        self.points.append(CodedPoint(made.price, size, far))
        return size, far if self.judge is None else self.judge.drop(job.decoded(made).module())


def _check_disk(calibrated: CalibratedNetwork) -> None:
    """Raise `KernelsimpError` where the disk has no room for what the passes of both networks still need."""
    layers = layer_modules(calibrated.model)
    waiting = np.zeros(calibrated.count)  # bytes of an image, at the largest layer that is read of it
    for use in calibrated.traced.uses:
        module = layers[use.name][0]
        read = waiting[: images_enough(module, use.positions)]
        np.maximum(read, 4 * use.positions * len(matrix_of(module)), out=read)
    wanted = 2 * (LIVE * int(waiting.sum()) - calibrated.room.kept // 2)
    check_disk(calibrated.room.folder, max(0, wanted))


def _tested(
    networks: tuple[Network, Network], data: Data, settings: Settings, watcher: Watcher
) -> tuple[Stage, ...]:
    """Return how the original and the decoded network do on test images, which chose nothing."""
    if not len(data.test) or not classifies(networks[0], data, settings):
        return ()
    found = (measure_module(item.module(), data, settings, watcher) for item in networks)
    return tuple(stage(name, item) for name, item in zip(("original", "decoded"), found, strict=True))


# ---------------------------------------------------------------- without


def _without_images(source: ExportSource, watcher: Watcher) -> CodedMade:
    checkpoint, size = source.checkpoint, source.settings.coding.size
    state, menus = checkpoint.current_state, _menus_in_file(source)
    layouts = {
        name: Layout(transposed=menu.kind == "transposed", groups=menu.groups) for name, menu in menus.items()
    }

    def make(price: float) -> Coding:
        return code_tensors(state, price, menus)

    def file(coding: Coding) -> CodedFile:
        coded: Coded = {name: (item, layouts.get(name, Layout())) for name, item in coding.tensors.items()}
        decoded: Mapping[str, Tensor] = {name: numbers_of(*coded[name], state[name]) for name in coded}
        return code_state({**state, **decoded}, coded, checkpoint.found.keys, halve=True)

    def measure(coding: Coding) -> tuple[int, float]:
        filed = file(coding)
        points.append(CodedPoint(coding.price, filed.size))
        return filed.size, _relative_error(coding, state, layouts)

    points: list[CodedPoint] = []
    wanted = float(file(make(DATA_FREE_PRICE)).size) if size is None else float(size)
    found = search_price(make, measure, Budget(wanted, DATA_FREE_PRICE, by_size=True), watcher)
    words = "the usual price of a bit, without images" if size is None else f"--size {size}"
    told = ("coded without images: what it costs in accuracy was not measured",)
    return CodedMade(found, file(found.best.coding), words, tuple(points), notes=told)


def _menus_in_file(source: ExportSource) -> dict[str, PlannedMenu]:
    """Return the menus of a run's plan by the file's names of weights."""
    if source.plan is None:
        return {}
    plan = plan_in_file(source.plan, source.checkpoint)
    menus = planned_menus(plan.layers, plan.structures)
    return {tensor_name(name): menu for name, menu in menus.items()}


def _relative_error(coding: Coding, state: Mapping[str, Tensor], layouts: Mapping[str, Layout]) -> float:
    error = whole = 0.0
    for name, item in coding.tensors.items():
        old = state[name].double()
        error += float((numbers_of(item, layouts.get(name, Layout()), old) - old).square().sum())
        whole += float(old.square().sum())
    return (error / whole) ** 0.5 if whole else 0.0
