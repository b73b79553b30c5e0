"""Measuring one network on the test split, or several for robustness; nothing here chooses anything."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kernelsimp.analysis.selectivity import measure_selectivity
from kernelsimp.batch_limit import BatchLimit
from kernelsimp.commands.inputs import load_split, open_data
from kernelsimp.commands.measure import measure_module
from kernelsimp.commands.outputs import EVALUATES
from kernelsimp.data.sources import Data
from kernelsimp.data.transforms import preprocess_of
from kernelsimp.errors import KernelsimpError
from kernelsimp.evaluation.accuracy import stage
from kernelsimp.evaluation.metric import metric_of
from kernelsimp.evaluation.robustness import Bench, assess, check_trial, sample
from kernelsimp.models.network import Network, device_of, open_network
from kernelsimp.records.evaluation import Evaluation
from kernelsimp.records.report import Figure, Metric
from kernelsimp.records.selectivity import Selectivity
from kernelsimp.records.serialise import to_plain
from kernelsimp.settings import Settings
from kernelsimp.shelf import images_of
from kernelsimp.watch import SILENT, Watcher

EXPLAINED_ON = 256
"""Seeded test images that say what channels answer to."""


def evaluate(
    path: Path, settings: Settings, watcher: Watcher = SILENT, *, explain: bool = False
) -> Evaluation:
    """Measure accuracy or the user's metric on the test split, and robustness where the settings ask for it.

    With `explain`, also what the network's channels answer to.
    Raises `KernelsimpError` without a network or images, and for outputs that are no classification.
    """
    network = open_network(path, settings, watcher)
    data = open_data(settings, watcher)
    if data is None:
        raise KernelsimpError(EVALUATES[settings.model.arch is not None])
    check_robustness(settings, data)
    figure = _figure(network, data, settings, watcher)
    outcome = measure_module(network.module(), data, settings, watcher) if figure is None else None
    source = {
        "path": str(path),
        "sha256": network.checkpoint.sha256,
        "data": settings.data.data,
        "data_fingerprint": data.fingerprint,
        "seed": settings.run.seed,
    }
    tried = robustness_of({"network": network}, data, settings, watcher)
    selectivity = explain_channels(network, data, settings, watcher) if explain else None
    if outcome is None:
        return Evaluation(source, None, None, tried, figure, selectivity)
    return Evaluation(source, stage("network", outcome), outcome.top5, tried, None, selectivity)


def explain_channels(network: Network, data: Data, settings: Settings, watcher: Watcher) -> Selectivity:
    """Return what named kernels explain of the channels' answers, on seeded test images."""
    split = sample(data.test, EXPLAINED_ON, settings.run.seed)
    images = images_of(load_split(split, settings))
    scan = settings.scan
    return measure_selectivity(network.module(), network.bank, images, scan.tolerance, scan.seed, watcher)


def check_explained(settings: Settings, data: Data | None) -> None:
    """Raise `KernelsimpError` where a run is to say what channels answer to and has no images."""
    if settings.plan.explain and data is None:
        raise KernelsimpError("--explain needs a network and images: pass --arch and --data")


def _figure(network: Network, data: Data, settings: Settings, watcher: Watcher) -> Metric | None:
    """Return the user's metric on the test split, where one is named."""
    metric = metric_of(settings)
    if metric is None:
        return None
    watcher.start("measuring on the test split")
    value = metric(network.module(), load_split(data.test, settings))
    return Metric(metric.name, (Figure("network", value),), 0.0)


def check_robustness(settings: Settings, data: Data | None) -> None:
    """Raise `KernelsimpError` where robustness is asked for and cannot be measured, before any work."""
    if not settings.robustness.robustness:
        return
    if data is None:
        raise KernelsimpError("--robustness needs a network and images: pass --arch and --data")
    check_trial(data, bench_of(settings), settings.robustness)


def robustness_of(
    networks: Mapping[str, Network], data: Data | None, settings: Settings, watcher: Watcher
) -> dict[str, Any] | None:
    """Return robustness of the networks, each later one paired with the first, as JSON values.

    None where the settings do not ask for it.
    """
    if not settings.robustness.robustness or data is None:
        return None
    models = {name: network.module() for name, network in networks.items()}
    bench = replace(bench_of(settings), limit=BatchLimit(watcher))
    found: dict[str, Any] = to_plain(assess(models, data, bench, settings.robustness, watcher))
    return found


def bench_of(settings: Settings) -> Bench:
    """Return how the settings run networks."""
    return Bench(
        preprocess_of(settings.data),
        str(device_of(settings)),
        settings.data.batch_size,
        settings.data.workers,
        settings.run.seed,
    )
