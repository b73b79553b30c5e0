"""Two networks on the same test images, layer by layer; nothing here chooses anything."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernelsimp.analysis.compare import ComparedPair, check_settings
from kernelsimp.analysis.compare import compare as compared
from kernelsimp.commands.inputs import batches_of
from kernelsimp.commands.outputs import COMPARES
from kernelsimp.data.sources import Data, load_data
from kernelsimp.data.transforms import Batches
from kernelsimp.errors import KernelsimpError
from kernelsimp.evaluation.robustness import sample
from kernelsimp.models.architectures import is_pretrained_name, recipe_of
from kernelsimp.models.network import Network, device_of, open_network
from kernelsimp.records.comparison import Comparison
from kernelsimp.report.tables.comparison import in_report
from kernelsimp.settings import Settings
from kernelsimp.watch import SILENT, Watcher


def compare(paths: tuple[Path, Path], settings: Settings, watcher: Watcher = SILENT) -> Comparison:
    """Compare two checkpoints on the same test images, under the preprocessing of the first.

    Raises `KernelsimpError` without a network or images, for images that one of the two cannot take, for
    layers that do not exist, and for too few images.
    """
    check_settings(settings.compare)
    archs = _archs(paths, settings)
    opened = tuple(
        open_network(path, _for(settings, arch, first=place == 0), watcher)
        for place, (path, arch) in enumerate(zip(paths, archs, strict=True))
    )
    data = _data(settings)
    for warning in data.warnings:
        watcher.warn(warning)
    found = _on_test(opened[0], opened[1], data, settings, watcher)
    notes = (*found.notes, *_recipes(archs))
    for note in notes:
        watcher.warn(note)
    return replace(
        found,
        notes=notes,
        a=_source(opened[0], archs[0]),
        b=_source(opened[1], archs[1]),
        settings=asdict(settings.compare),
        provenance={
            "data": data.name,
            "data_fingerprint": data.fingerprint,
            "split": "test",
            "seed": settings.run.seed,
            "device": str(device_of(settings)),
            "torch": torch.__version__,
        },
    )


def compare_on(a: Network, b: Network, data: Data, settings: Settings, watcher: Watcher) -> Comparison:
    """Compare two networks on the test split of `data`; raises as `compare` does."""
    check_settings(settings.compare)
    return _on_test(a, b, data, settings, watcher)


def check_similarity(settings: Settings, data: Data | None) -> None:
    """Raise `KernelsimpError` where similarity is asked for and cannot be measured, before any work."""
    if settings.plan.similarity and data is None:
        raise KernelsimpError("--similarity needs a network and images: pass --arch and --data")
    check_settings(settings.compare)


def similarity_of(
    stages: dict[str, Network], data: Data | None, settings: Settings, watcher: Watcher
) -> dict[str, Any] | None:
    """Compare the original, which comes first, with each later stage, as JSON values.

    None where the settings do not ask for it.
    """
    if not settings.plan.similarity or data is None:
        return None
    plain = replace(settings, compare=replace(settings.compare, layers=None, matrix=False))
    original, *later = stages
    return in_report({name: _on_test(stages[original], stages[name], data, plain, watcher) for name in later})


def _on_test(a: Network, b: Network, data: Data, settings: Settings, watcher: Watcher) -> Comparison:
    images = _Images(data, settings)
    bout = ComparedPair(a.module(), b.module(), images, images.count, settings.run.seed)
    return compared(bout, settings.compare, watcher)


@dataclass(frozen=True, eq=False)
class _Images:
    """Seeded images of the test split, normalised and on the device; can be gone through again."""

    data: Data
    settings: Settings

    @property
    def loader(self) -> Batches:
        part = sample(self.data.test, self.settings.compare.images, self.settings.run.seed)
        return batches_of(part, self.settings, workers=self.settings.data.workers)

    @property
    def count(self) -> int:
        return len(self.loader.split)

    def __iter__(self) -> Iterator[Tensor]:
        device = device_of(self.settings)
        return (images.to(device) for images, _ in self.loader)


def _archs(paths: tuple[Path, Path], settings: Settings) -> tuple[str, str]:
    """Return the architectures of both; a published network brings its own."""
    own = [str(path) if is_pretrained_name(str(path)) and not path.exists() else None for path in paths]
    a = own[0] or settings.model.arch
    b = own[1] or settings.compare.arch_b or settings.model.arch
    if a is None or b is None:
        raise KernelsimpError(COMPARES[0])
    return a, b


def _for(settings: Settings, arch: str, *, first: bool) -> Settings:
    model = replace(settings.model, arch=arch)
    return replace(settings, model=model if first else replace(model, sha256=None))


def _data(settings: Settings) -> Data:
    if settings.data.data is None:
        raise KernelsimpError(COMPARES[1])
    return load_data(settings.data, settings.run.seed)


def _recipes(archs: tuple[str, str]) -> tuple[str, ...]:
    """Say where the second network was made for other preprocessing."""
    first, second = (recipe_of(arch) for arch in archs)
    if second is None or first == second:
        return ()
    return (f"B is given A's images; {archs[1]} alone would be given those of recipe:{second}",)


def _source(network: Network, arch: str) -> dict[str, Any]:
    path, sha256 = str(network.checkpoint.path), network.checkpoint.sha256
    return {"path": path, "sha256": sha256, "arch": arch}
