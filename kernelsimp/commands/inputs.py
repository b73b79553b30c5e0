"""What every command opens first: settings, data, and a measurement on the test split."""

from pathlib import Path

from torch import nn

from kernelsimp.data.sources import Data, load_data
from kernelsimp.data.transforms import batches, preprocess_of
from kernelsimp.errors import KernelsimpError
from kernelsimp.evaluation.accuracy import Outcome, measure
from kernelsimp.models.architectures import recipe_of
from kernelsimp.models.network import Network, device_of
from kernelsimp.records.verdict import shown
from kernelsimp.report import read_report
from kernelsimp.settings import Given, Settings, names_code, recipe, settle
from kernelsimp.training.options import check_precision, check_settings
from kernelsimp.watch import SILENT, Watcher


def settle_for_model(given: Given, config: str | None) -> Settings:
    """Return all settings, with the recipe that the architecture brings along below everything else."""
    arch = settle(given, config).model.arch
    name = recipe_of(arch) if arch else None
    return settle(given, config, recipe(name) if name else None)


FROM_A_REPORT = ("arch", "weights")
"""What a report may say of the network; to trust pickles is the user's alone, a digest is of other files."""


def settle_for_check(
    given: Given, config: str | None, baseline: Path, *, runs: bool | None = None
) -> Settings:
    """Return all settings, those of the baseline's run below everything else; data only where asked for.

    A baseline that is no report brings no settings; then an architecture brings its recipe. Nothing in a
    report runs code: raises `KernelsimpError` where the network is needed (`runs`; None: where there are
    images), the report has it as a Python file or module, and the command line does not name one.
    """
    try:
        ran = read_report(baseline).settings
    except KernelsimpError:
        return settle_for_model(given, config)
    base = {name: dict(ran.get(name, {})) for name in ("model", "data")}
    base["model"] = {key: base["model"].get(key) for key in FROM_A_REPORT}
    base["data"].pop("data", None)
    arch = base["model"]["arch"]
    if names_code("arch", arch):
        base["model"]["arch"] = None
    settings = settle(given, config, base)
    needed = settings.data.data is not None if runs is None else runs
    if needed and settings.model.arch is None and arch is not None:
        said = shown(str(arch))
        raise KernelsimpError(
            f"{baseline}: its network is the Python code {said}, which no report may have run; "
            f"pass --arch {said} if you trust it"
        )
    return settings


def open_data(settings: Settings, watcher: Watcher = SILENT) -> Data | None:
    """Load the images that the settings name, if any."""
    if settings.data.data is None:
        return None
    if settings.model.arch is None:
        raise KernelsimpError("--data needs a network to run the images: pass --arch")
    data = load_data(settings.data, settings.run.seed)
    for warning in data.warnings:
        watcher.warn(warning)
    return data


def check_training(settings: Settings) -> None:
    """Raise `KernelsimpError` for training settings that make no sense, before anything is measured."""
    check_settings(settings.finetune)
    check_precision(settings.finetune.precision, device_of(settings).type)


def measured(network: Network, data: Data | None, settings: Settings, watcher: Watcher) -> Outcome | None:
    """Return the outcome of one network on the test split, or None where there are no images."""
    if data is None:
        return None
    return measured_model(network.module(), data, settings, watcher)


def measured_model(model: nn.Module, data: Data, settings: Settings, watcher: Watcher) -> Outcome:
    """Return the outcome of a module, on the device of its settings, on the test split."""
    preprocess = preprocess_of(settings.data)
    loader = batches(data.test, preprocess, settings.data.batch_size, workers=settings.data.workers)
    watcher.start("measuring on the test split", len(loader))
    return measure(model, loader, device_of(settings), watcher)


def hold_of(settings: Settings) -> str:
    """Return what is held: freeze (values, the usual), tie, scale, soft or none.

    Raises `KernelsimpError` for another word, and for settings that contradict each other.
    """
    chosen = settings.finetune
    if chosen.hold not in ("auto", "freeze", "tie", "none"):
        raise KernelsimpError(f"--hold is '{chosen.hold}'; expected freeze, tie or none")
    if chosen.free_scale and chosen.hold != "tie":
        raise KernelsimpError("--free-scale goes with --tie: a frozen kernel has no free scale")
    if chosen.soft is not None and chosen.hold not in ("auto", "none"):
        raise KernelsimpError(f"--soft pulls where --{chosen.hold} holds: choose one")
    if chosen.soft is not None:
        return "soft"
    return "scale" if chosen.free_scale else chosen.hold.replace("auto", "freeze")
