"""What every command opens first: its settings, its images in batches, and layers by their names."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from kernelsimp.data.sources import Data, load_data
from kernelsimp.data.splits import Split
from kernelsimp.data.transforms import Batches, preprocess_of
from kernelsimp.error_text import printable
from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.memory import GB, PIXELS_AT_ONCE, Room, free_bytes, used_bytes
from kernelsimp.models.architectures import recipe_of
from kernelsimp.models.folders import is_in_parts, written_places
from kernelsimp.models.network import device_of
from kernelsimp.records.report import Report
from kernelsimp.report import read_report
from kernelsimp.settings import Given, Settings
from kernelsimp.settings_file import names_code, recipe, settle
from kernelsimp.shelf import ImageBatches, ImageStack, LabelledBatches
from kernelsimp.training.job import loading_of
from kernelsimp.training.options import check_precision, check_settings
from kernelsimp.training.ranks import processes
from kernelsimp.watch import SILENT, Watcher


def settle_for_model(given: Given, config: str | None) -> Settings:
    """Return all settings, with the recipe that the architecture brings along below everything else."""
    arch = settle(given, config).model.arch
    name = recipe_of(arch) if arch else None
    return settle(given, config, recipe(name) if name else None)


FROM_A_REPORT = ("arch", "weights", "output")
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
        said = printable(str(arch))
        raise KernelsimpError(
            f"{baseline}: its network is the Python code {said}, which no report may have run; "
            f"pass --arch {said} if you trust it"
        )
    return settings


def checkpoint_of(run: Path, report: Report) -> Path:
    """Return the checkpoint that a run wrote; it has the name of the one it came from."""
    places = written_places(run, Path(str(report.provenance.get("input", ""))))
    for path in places:
        if path.is_file() or is_in_parts(path):
            return path
    raise KernelsimpError(f"{run}: the run's checkpoint '{places[0].name}' is not there; run simplify again")


def is_run(place: Path) -> bool:
    """Say whether a path is the folder of a run."""
    return place.is_dir() and (place / "report.json").is_file()


def model_file(place: Path) -> Path:
    """Return the checkpoint that a RUN folder stands for; any other path is returned as it is."""
    return checkpoint_of(place, read_report(place)) if is_run(place) else place


def settle_for_place(given: Given, config: str | None, place: Path) -> Settings:
    """Return all settings for a checkpoint, or for a RUN folder, then those of its run below the rest."""
    if not is_run(place):
        return settle_for_model(given, config)
    return settle_for_check(given, config, place)


def open_data(settings: Settings, watcher: Watcher = SILENT) -> Data | None:
    """Load the images that the settings name, if any."""
    if settings.data.data is None:
        return None
    if settings.model.arch is None:
        raise KernelsimpError("--data needs a network to run the images: pass --arch")
    data = load_data(settings.data, settings.run.seed)
    for warning in data.warnings:
        watcher.warn(warning)
    for note in data.notes:
        watcher.note(note)
    return data


def batches_of(split: Split, settings: Settings, *, workers: int = 0) -> Batches:
    """Return a split in the settings' batches: (images, labels), normalised, in order and not augmented.

    On a CPU batches of large images are smaller, which costs no time there. Raises `KernelsimpError` for a
    batch size below 1 and a preprocessing that makes no sense.
    """
    size = settings.data.batch_size
    if len(split) and size > 1 and device_of(settings).type == "cpu":
        pixels = split.fetch([0])[0][0, 0].numel()
        size = min(size, max(1, PIXELS_AT_ONCE // pixels))
    return Batches(split, preprocess_of(settings.data), size, **loading_of(settings, workers))


def room_of(settings: Settings, device: torch.device, folder: Path | None) -> Room:
    """Return what stages may take: --memory, or half of what is free now; files go to `folder`.

    Processes that share a machine's memory have a part of that half each. Raises `KernelsimpError` for a
    --memory that is no positive number.
    """
    asked = settings.run.memory
    if asked is not None and not 0 < asked < math.inf:
        raise KernelsimpError(f"--memory is {asked:g}; expected gigabytes, such as 4")
    sharing = processes(settings.finetune)[0] if device.type == "cpu" else 1
    room = asked * GB if asked is not None else (free_bytes(device) + used_bytes(device)) / (2 * sharing)
    return Room(room, settings.data.batch_size, folder)


def load_split(split: Split, settings: Settings) -> Sequence[tuple[Tensor, Tensor]]:
    """Return the images and labels of a split, in batches on the device of the settings.

    Images that do not fit in memory are kept in a nameless file, for they are gone through again and again.
    """
    device, loader = device_of(settings), batches_of(split, settings)
    stack = ImageStack.of((images.to(device) for images, _ in loader), room_of(settings, device, None).kept)
    return LabelledBatches(ImageBatches(stack, 0, stack.count, loader.batch_size), split.labels)


def layers_by_name(bank: KernelBank) -> dict[str, LayerKernels]:
    """Return the layers of a bank, 1x1 ones too, by their names."""
    return {layer.name: layer for layer in bank.layers}


def check_training(settings: Settings) -> None:
    """Raise `KernelsimpError` for training settings that make no sense, before anything is measured."""
    check_settings(settings.finetune)
    check_precision(settings.finetune.precision, device_of(settings).type)
