"""The front door for programs and notebooks: what the command line does, on networks in memory or in files.

    import kernelsimp as ks

    scan = ks.scan(model)                            # a module, a state dict, a path, "torchvision:resnet50"
    result = ks.simplify(model, images, dof=0.5)     # a tensor, a Dataset or a DataLoader of its inputs
    result = ks.finetune(result, loader, epochs=3)
    ks.check(result.model, result.report)

Options are those of the command of the same name, with underscores. Networks that are passed in are never
changed. Errors are `KernelsimpError`, in the sentences of the command line.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kernelsimp.commands import check as check_command
from kernelsimp.commands import compare as compare_command
from kernelsimp.commands import scan as scan_command
from kernelsimp.commands import simplify as simplify_command
from kernelsimp.commands.inputs import open_data
from kernelsimp.commands.outputs import check_run
from kernelsimp.data.in_memory import data_in_memory, labelled, test_in_memory
from kernelsimp.data.splits import Data
from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.families import offered_families
from kernelsimp.models.checkpoint import load_checkpoint
from kernelsimp.models.network import Network, device_of, network_in_memory, open_network
from kernelsimp.records.limits import Baseline, baseline_of
from kernelsimp.records.report import Report
from kernelsimp.results import CheckResult, CompareResult, FamiliesResult, ScanResult, SimplifyResult
from kernelsimp.settings import Settings
from kernelsimp.settings_file import given_from, settle
from kernelsimp.watch import SILENT, Watcher

STAGES = ("model", "data", "scan", "plan", "finetune", "robustness", "compare", "run")
"""The stages of settings that `simplify` reads."""

Model = nn.Module | Mapping[str, Any] | str | Path
"""A network: a module, its state dict, a file, or the name of a published one."""


def scan(model: Model, *, watcher: Watcher = SILENT, **options: Any) -> ScanResult:
    """Find the structure in a network's kernels, beside what chance would give.

    Options are those of `kernelsimp scan`: `tolerance`, `families`, `null`, `layers`, `arch`... Raises
    `KernelsimpError` for what cannot be read and where there is no convolution.

    >>> import torch, kernelsimp as ks
    >>> _ = torch.manual_seed(0)
    >>> scan = ks.scan(torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3)), tolerance=0.3)
    >>> list(scan), len(scan["0"].kernels)
    (['0'], 128)
    """
    settings = settle(given_from(options, ("model", "scan")))
    return ScanResult(scan_command.scan(_source(model), settings, watcher))


def simplify(
    model: Model,
    images: Any = None,
    *,
    test: Any = None,
    out: str | Path | None = None,
    watcher: Watcher = SILENT,
    **options: Any,
) -> SimplifyResult:
    """Replace near-structured kernels by the exact thing and re-solve the rest for these images.

    `images` are inputs of the network, (n, C, H, W), a data set or a loader; they choose and need no labels
    unless `finetune=True` or `max_drop` asks for these. `test` are labelled ones that are only reported on.
    Without images, weights alone choose. Options are those of `kernelsimp simplify`: `dof`, `tolerance`,
    `simplified`, `families`, `hold`, `finetune`... Files are written where `out` names a directory, as the
    command writes them; that takes a file for `model` and `data=` for the images. Raises `KernelsimpError`.

    >>> import torch, kernelsimp as ks
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.Flatten(), torch.nn.Linear(288, 3))
    >>> result = ks.simplify(net, torch.randn(32, 1, 8, 8), dof=0.5, cost="absolute")
    >>> result.report.dof.fraction <= 0.5, type(result.model).__name__
    (True, 'Sequential')
    """
    settings = settle(given_from(options, STAGES))
    source = _source(model)
    if out is not None:
        if not isinstance(source, Path) or images is not None or test is not None:
            raise KernelsimpError("out= takes a file for the model, and data= for the images")
        return _written(source, settings, Path(out), watcher)
    network = _network(source, settings, watcher)
    data = data_in_memory(images, test, seed=settings.run.seed) if images is not None else None
    if data is not None and settings.finetune.finetune:
        _check_labelled(data)
    if images is None and isinstance(source, Path):
        data = open_data(settings, watcher)
    done, report = simplify_command.simplify_in_memory(network, data, settings, watcher)
    return SimplifyResult(report, done)


def finetune(
    result: SimplifyResult, images: Any, *, test: Any = None, watcher: Watcher = SILENT, **options: Any
) -> SimplifyResult:
    """Train what is not held of a simplified network, taught by the original.

    `images` are labelled inputs: a pair (inputs, labels), a data set or a loader; a seeded tenth of them
    chooses the best epoch. Options are those of `kernelsimp simplify --finetune`: `epochs`, `lr`, `hold`...
    The result that is passed in stays as it is. Raises `KernelsimpError` for images without labels.

    >>> import torch, kernelsimp as ks
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.Flatten(), torch.nn.Linear(288, 3))
    >>> images, labels = torch.randn(32, 1, 8, 8), torch.arange(32) % 3
    >>> result = ks.simplify(net, images, dof=0.5, cost="absolute")
    >>> len(ks.finetune(result, (images, labels), epochs=1).report.training)
    1
    """
    if not isinstance(result, SimplifyResult):
        raise KernelsimpError(f"finetune goes on from what simplify returned, not from a {_kind(result)}")
    task = result.done.task
    data = data_in_memory(images, test, seed=task.settings.run.seed)
    _check_labelled(data)
    asked = settle(given_from({**options, "finetune": True}, ("data", "finetune", "run")))
    settings = replace(task.settings, data=asked.data, finetune=asked.finetune, run=asked.run)
    simplify_command.check_hold(settings)
    measurer = simplify_command.measure_original(task.network, data, settings, watcher)
    done = replace(
        result.done,
        task=replace(task, data=data, settings=settings),
        measurer=measurer,
        stages={**result.done.stages},
    )
    simplify_command.finetune_last(done, None, watcher)
    return SimplifyResult(simplify_command.report_in_memory(done, watcher), done)


def check(
    model: Model,
    baseline: str | Path | Report | Baseline | SimplifyResult,
    *,
    limits: str | Path | None = None,
    max_drop: float | None = None,
    allow_extra: bool = False,
    watcher: Watcher = SILENT,
    **options: Any,
) -> CheckResult:
    """Verify that held kernels did not move and that structures hold, as the gate `kernelsimp check` does.

    `baseline` is a run, its report.json, a baseline file, a report or the result of `simplify`. With a file
    and `data=`, `arch=` accuracy is measured too. Raises `KernelsimpError` where the baseline is of another
    network. The result is true where all limits hold.

    >>> import torch, kernelsimp as ks
    >>> result = ks.simplify({"conv.weight": torch.ones(2, 2, 3, 3)}, tolerance=0.1)
    >>> bool(ks.check(result.state_dict, result))
    True
    >>> bool(ks.check({"conv.weight": torch.randn(2, 2, 3, 3)}, result))
    False
    """
    gate = check_command.Gate(
        _baseline(baseline), Path(limits) if limits else None, max_drop, allow_extra=allow_extra
    )
    settings = settle(given_from(options, ("model", "data", "run")))
    return CheckResult(check_command.check(_source(model), gate, settings, watcher))


def compare(
    a: Model, b: Model, images: Any = None, *, watcher: Watcher = SILENT, **options: Any
) -> CompareResult:
    """Compare what the layers of two networks give on the same images: CKA, PWCCA, NBS and errors.

    `images` are inputs as both take them, (n, C, H, W), a data set or a loader; without them `data=` names
    some, as `kernelsimp compare` does. Options are those of that command. Raises `KernelsimpError` for images
    that one of the two refuses, and for too few.

    >>> import torch, kernelsimp as ks
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 3))
    >>> [round(layer.cka, 6) for layer in ks.compare(net, net, torch.randn(64, 1, 8, 8)).layers]
    [1.0, 1.0]
    """
    settings = settle(given_from(options, ("model", "data", "compare", "run")))
    first, second = _source(a), _source(b)
    if images is None and isinstance(first, Path) and isinstance(second, Path):
        return CompareResult(compare_command.compare((first, second), settings, watcher))
    if images is None:
        raise KernelsimpError(
            "compare needs images that both networks are given: pass them, or files and data="
        )
    networks = tuple(_network(source, settings, watcher) for source in (first, second))
    return CompareResult(
        compare_command.compare_on(networks[0], networks[1], test_in_memory(images), settings, watcher)
    )


def families(size: int | tuple[int, int] = 3) -> FamiliesResult:
    """Return the families of structure for kernels of this size: name, degrees of freedom and cells.

    >>> import kernelsimp as ks
    >>> ks.families(5)["mirror-h"].subspace.dim
    15
    """
    shape = (size, size) if isinstance(size, int) else size
    return FamiliesResult(shape, {item.name: item for item in offered_families(shape, pairs=False)})


def load_weights(path: str | Path, **options: Any) -> dict[str, Tensor]:
    """Read the weights of a checkpoint under the network's own names, without running code from the file.

    Wrappers and prefixes (`state_dict`, `module.`...) are off: `model.load_state_dict(load_weights(path))`.
    Options are `weights` (model, ema or a key), `sha256` and `trust_pickle`. Raises `KernelsimpError`.

    >>> import tempfile, torch, kernelsimp as ks
    >>> path = tempfile.mkdtemp() + "/model.pt"
    >>> torch.save({"state_dict": {"module.conv.weight": torch.ones(2, 2, 3, 3)}, "epoch": 3}, path)
    >>> list(ks.load_weights(path))
    ['conv.weight']
    """
    return dict(load_checkpoint(Path(path), settle(given_from(options, ("model",))).model).tensors)


def _written(path: Path, settings: Settings, out: Path, watcher: Watcher) -> SimplifyResult:
    """Simplify a file into a run directory, as the command does."""
    check_run(out, path, settings, None)
    done, report = simplify_command.simplify_to(path, settings, out, watcher)
    return SimplifyResult(report, done, out)


def _network(source: nn.Module | Mapping[str, Any] | Path, settings: Settings, watcher: Watcher) -> Network:
    if isinstance(source, Path):
        return open_network(source, settings, watcher)
    return network_in_memory(source, device_of(settings), watcher)


def _check_labelled(data: Data) -> None:
    if not labelled(data.train):
        raise KernelsimpError("fine-tuning takes labels: pass a pair (inputs, labels) or a labelled data set")


def _kind(value: object) -> str:
    return type(value).__name__


def _source(model: Model) -> nn.Module | Mapping[str, Any] | Path:
    if isinstance(model, str):
        return Path(model)
    if isinstance(model, nn.Module | Mapping | Path):
        return model
    raise KernelsimpError(
        f"the network is a {_kind(model)}; expected a module, a state dict, a path or a name"
    )


def _baseline(baseline: str | Path | Report | Baseline | SimplifyResult) -> Path | Baseline:
    if isinstance(baseline, SimplifyResult):
        baseline = baseline.report
    if isinstance(baseline, Report):
        return baseline_of(baseline)
    if not isinstance(baseline, str | Path | Baseline):
        raise KernelsimpError(f"the baseline is a {_kind(baseline)}; expected a result, a report or a path")
    return baseline if isinstance(baseline, Baseline) else Path(baseline)
