"""Measuring every stage on the test split: accuracy, or what stands in its place. It chooses nothing."""

from kernelsimp.commands.inputs import measured_model
from kernelsimp.commands.judging import check_figure, classifies, loaded, metric_of
from kernelsimp.commands.task import Task
from kernelsimp.data.sources import Data
from kernelsimp.data.transforms import batches, preprocess_of
from kernelsimp.evaluation.accuracy import Outcome
from kernelsimp.models.network import Network
from kernelsimp.records.report import Figure, Metric
from kernelsimp.settings import Settings
from kernelsimp.simplify.distance import relative_error
from kernelsimp.watch import Watcher

OUTPUT_ERROR = "relative output error"


class Gauge:
    """Measures stage after stage: `outcomes` of classifiers, `figures` of a metric or other networks."""

    def __init__(self, original: Network, data: Data | None, settings: Settings) -> None:
        self.original, self.data, self.settings = original, data, settings
        self.metric = metric_of(settings)
        self.classifier = data is None or classifies(original, data, settings)
        check_figure(settings, classifier=self.classifier)
        self.outcomes: dict[str, Outcome] = {}
        self.figures: dict[str, float] = {}

    @property
    def by_accuracy(self) -> bool:
        return self.classifier and self.metric is None

    def measure(self, stage: str, network: Network, watcher: Watcher) -> None:
        """Measure one stage, unless there are no images."""
        if self.data is None:
            return
        if self.by_accuracy:
            self.outcomes[stage] = measured_model(network.module(), self.data, self.settings, watcher)
            return
        watcher.start("measuring on the test split")
        if self.metric is not None:
            judged = loaded(Task(network, self.data, self.settings), self.data.test)
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
