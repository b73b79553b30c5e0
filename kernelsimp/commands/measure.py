"""Measuring networks on images: accuracy, or what stands in its place. Nothing here chooses anything."""

import torch
from torch import Tensor, nn

from kernelsimp.commands.inputs import batches_of, load_split
from kernelsimp.data.in_memory import labelled
from kernelsimp.data.sources import Data
from kernelsimp.data.transforms import batches, preprocess_of
from kernelsimp.errors import KernelsimpError
from kernelsimp.evaluation.accuracy import Outcome, measure
from kernelsimp.evaluation.metric import metric_of
from kernelsimp.evaluation.outputs import class_scores
from kernelsimp.memory import give_back
from kernelsimp.models.network import Network, device_of
from kernelsimp.models.outputs import describe_output
from kernelsimp.records.report import Figure, Metric
from kernelsimp.settings import Settings
from kernelsimp.solver.distance import relative_error
from kernelsimp.watch import Watcher, Within

OUTPUT_ERROR = "relative output error"
MEASURING = "measuring on the test split"


class StageMeasurer:
    """Measures stage after stage: `outcomes` of classifiers, `figures` of a metric or other networks."""

    def __init__(self, original: Network, data: Data | None, settings: Settings) -> None:
        self.original, self.data, self.settings = original, data, settings
        self.metric = metric_of(settings)
        output = _output_of(original, data, settings) if data is not None and len(data.test) else None
        self.classifier = output is None or class_scores(output) is not None
        self.undecided = "" if self.classifier or isinstance(output, Tensor) else describe_output(output)
        check_figure(settings, classifier=self.classifier)
        if data is not None and len(data.test) and self.by_accuracy and not labelled(data.test):
            raise KernelsimpError("accuracy takes labels: pass test= as a pair (inputs, labels)")
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
            named = Within(watcher, stage)
            self.outcomes[stage] = measure_module(network.module(), self.data, self.settings, named)
            return
        if self.undecided and self.metric is None and not self.figures:
            watcher.warn(
                f"the network returns {self.undecided}, and nothing tells which are the scores of classes: "
                "its outputs are compared as a whole; name the one that classifies with --output KEY"
            )
        watcher.start(f"{MEASURING}, {stage}")
        if self.metric is not None:
            judged = load_split(self.data.test, self.settings)
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
        images = (part.to(network.device) for part, _ in batches_of(data.test, self.settings))
        return relative_error(self.original.module(), network.module(), images)


def classifies(network: Network, data: Data, settings: Settings) -> bool:
    """Say whether a network gives one score a class and image, by its output for test images."""
    output = _output_of(network, data, settings)
    return output is None or class_scores(output) is not None


@torch.no_grad()
def _output_of(network: Network, data: Data, settings: Settings) -> object:
    """Return the output of a network for two test images; None where it refuses them."""
    loader = batches(data.test.subset(range(min(2, len(data.test)))), preprocess_of(settings.data), 2)
    images, _ = next(iter(loader))
    try:
        output: object = network.module()(images.to(network.device))
    except Exception:  # measuring says what is wrong, in full
        return None
    return output


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
            one = "" if classifier else "; where one of several outputs classifies, name it with --output"
            raise KernelsimpError(
                f"{option} is not there {what}: it trains or tests on labels of classes{one}"
            )


def measure_module(model: nn.Module, data: Data, settings: Settings, watcher: Watcher) -> Outcome:
    """Return the outcome of a module, on the device of its settings, on the test split."""
    give_back()  # what was freed before, which may be a gigabyte
    loader = batches_of(data.test, settings, workers=settings.data.workers)
    watcher.start(MEASURING, len(loader))
    return measure(model, loader, device_of(settings), watcher)
