"""Measuring every stage on the test split: accuracy, or what stands in its place. It chooses nothing."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from kernelsimp.commands.task import Chosen, Task
from kernelsimp.data.holdout import holdout_split
from kernelsimp.data.sources import Data
from kernelsimp.data.splits import Split
from kernelsimp.data.transforms import batches, preprocess_of
from kernelsimp.errors import KernelsimpError
from kernelsimp.evaluation.accuracy import Outcome, measure
from kernelsimp.evaluation.metric import metric_of
from kernelsimp.models.network import Network, device_of
from kernelsimp.records.report import Figure, Metric
from kernelsimp.settings import Settings
from kernelsimp.solver.distance import is_classifier, relative_error
from kernelsimp.solver.fisher import output_tensors
from kernelsimp.solver.search import BudgetJudge
from kernelsimp.watch import Watcher

OUTPUT_ERROR = "relative output error"


class StageMeasurer:
    """Measures stage after stage: `outcomes` of classifiers, `figures` of a metric or other networks."""

    def __init__(self, original: Network, data: Data | None, settings: Settings) -> None:
        self.original, self.data, self.settings = original, data, settings
        self.metric = metric_of(settings)
        self.classifier = data is None or not len(data.test) or classifies(original, data, settings)
        check_figure(settings, classifier=self.classifier)
        self.outcomes: dict[str, Outcome] = {}
        self.figures: dict[str, float] = {}

    @property
    def by_accuracy(self) -> bool:
        return self.classifier and self.metric is None

    def measure(self, stage: str, network: Network, watcher: Watcher) -> None:
        """Measure one stage, unless it was measured or there are no images."""
        if self.data is None or not len(self.data.test) or stage in self.outcomes or stage in self.figures:
            return
        if self.by_accuracy:
            self.outcomes[stage] = measure_module(network.module(), self.data, self.settings, watcher)
            return
        watcher.start("measuring on the test split")
        if self.metric is not None:
            judged = load_split(Task(network, self.data, self.settings), self.data.test)
            self.figures[stage] = self.metric(network.module(), judged)
        else:
            self.figures[stage] = self._error(network, self.data)

    def record(self) -> Metric | None:
        """Return what stands in place of accuracy, if something does."""
        if not self.figures:
            return None
        stages = tuple(Figure(name, value) for name, value in self.figures.items())
        change = stages[-1].value - stages[0].value
        name = OUTPUT_ERROR if self.metric is None else self.metric.name
        return Metric(name, stages, change, higher_is_better=self.metric is not None)

    def _error(self, network: Network, data: Data) -> float:
        loader = batches(data.test, preprocess_of(self.settings.data), self.settings.data.batch_size)
        images = (part.to(network.device) for part, _ in loader)
        return relative_error(self.original.module(), network.module(), images)


UNSEEN_GAP = 3.0
"""A network this much better (pp) on validation images than on others has probably been trained on them."""


ADVICE = "name other images with --holdout"


def budget_judge(task: Task, watcher: Watcher) -> BudgetJudge:
    """Return who judges a budget: validation images, or those of --holdout.

    The test split takes no part. Where a holdout is named, the original is measured on the validation images
    too, and a gap of more than 3 pp is told; the holdout judges either way. Without one, 99 % on the
    validation images is what shows that they were trained on, and then changed answers and KL count too. A
    gap between validation and test images counts only once everything has been chosen (`judge_memorised`).
    """
    assert task.data is not None
    settings, data = task.settings, task.data
    original, metric = task.network.module(), metric_of(settings)
    if settings.plan.holdout is None:
        return BudgetJudge(original, load_split(task, data.val), metric)
    split = holdout_split(data, settings.data, settings.plan.holdout, settings.run.seed)
    judge = BudgetJudge(original, load_split(task, split), metric, "holdout")
    if judge.top1 is not None and len(data.val):
        known = BudgetJudge(original, load_split(task, data.val)).top1
        if known is not None and known - judge.top1 > UNSEEN_GAP:
            watcher.warn(
                f"the original network has {known:.1f} % right on validation images, {judge.top1:.1f} % on "
                "those of --holdout: it was trained on the former, and only the latter judge the budget"
            )
    return judge


def load_split(task: Task, split: Split) -> list[tuple[Tensor, Tensor]]:
    """Return the images and labels of a split on the network's device, in batches."""
    settings, device = task.settings, task.network.device
    loader = batches(split, preprocess_of(settings.data), settings.data.batch_size)
    return [(images.to(device), labels.to(device)) for images, labels in loader]


@torch.no_grad()
def classifies(network: Network, data: Data, settings: Settings) -> bool:
    """Say whether a network gives one score a class and image, by its output for two test images.

    Raises `KernelsimpError` with the network's own words where it refuses them.
    """
    loader = batches(data.test.subset(range(min(2, len(data.test)))), preprocess_of(settings.data), 2)
    images, _ = next(iter(loader))
    try:
        output = network.module()(images.to(network.device))
    except Exception:  # measuring says what is wrong, in full
        return True
    return is_classifier(output_tensors(output))


def check_figure(settings: Settings, *, classifier: bool) -> None:
    """Raise `KernelsimpError` where what is asked for needs a classifier and the network is none."""
    if classifier and settings.plan.metric is None:
        return
    what = "with --metric" if classifier else "for a network that is no classifier"
    wanted = {
        "--finetune": settings.finetune.finetune and not classifier,
        "--rounds": settings.plan.rounds > 1 and not classifier,
        "--robustness": settings.robustness.robustness and not classifier,
        "--controls": settings.plan.controls,
    }
    for option, asked in wanted.items():
        if asked:
            raise KernelsimpError(f"{option} is not there {what}: it trains or tests on labels of classes")


def judge_memorised(
    settings: Settings, original: Outcome | None, chosen: Chosen
) -> tuple[Chosen, tuple[str, ...]]:
    """Judge a budget by changed answers and KL as well where validation images turn out to be known by heart.

    That shows where the original is more than 3 pp better on them than on the test split. This comes after
    everything has been chosen: the network stays, and only whether the budget was met is said anew. Return
    what was chosen and what to say. A holdout needs none of it: its labels tell networks apart.
    """
    judge = chosen.judge
    if judge is None or judge.top1 is None or original is None or settings.plan.holdout is not None:
        return chosen, ()
    if judge.top1 - original.top1 <= UNSEEN_GAP:
        return chosen, ()
    found = (
        f"the original network has {judge.top1:.1f} % right on validation images and {original.top1:.1f} % "
        "on the test split, so it was probably trained on the former"
    )
    if judge.memorised:  # counted all along
        return chosen, (f"{found}; {ADVICE}",)
    trial = judge.trial(chosen.network.module(), 0.0, "")
    within = trial.drop(memorised=True) <= float(settings.plan.max_drop or 0)
    verdict = "within" if within else "beyond"
    told = f"{trial.changed_answers:.2f} % of the answers changed, KL {trial.divergence:.4f}"
    note = f"{found} and the budget counts changed answers and KL too: {told}, {verdict} the budget; {ADVICE}"
    return replace(chosen, met=chosen.met and within), (note,)


def measure_network(
    network: Network, data: Data | None, settings: Settings, watcher: Watcher
) -> Outcome | None:
    """Return the outcome of one network on the test split, or None where there are no images."""
    if data is None:
        return None
    return measure_module(network.module(), data, settings, watcher)


def measure_module(model: nn.Module, data: Data, settings: Settings, watcher: Watcher) -> Outcome:
    """Return the outcome of a module, on the device of its settings, on the test split."""
    preprocess = preprocess_of(settings.data)
    loader = batches(data.test, preprocess, settings.data.batch_size, workers=settings.data.workers)
    watcher.start("measuring on the test split", len(loader))
    return measure(model, loader, device_of(settings), watcher)
