"""The factorised export: a network whose layers run as two thinner ones where that was measured to be faster.

Everything is written into a folder aside, run there on real inputs, and moved to its place only where its
outputs are those of the network before any layer was replaced.
"""

import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from kernelsimp.analysis.latency import Pair, network_latency
from kernelsimp.analysis.layer_times import LayerTimes
from kernelsimp.commands.audit import input_shape
from kernelsimp.commands.factorise import Decision, Ground, check_budget, decide, open_ground
from kernelsimp.commands.inputs import batches_of, open_data
from kernelsimp.commands.measure import classifies, measure_module
from kernelsimp.commands.run import ExportSource
from kernelsimp.commands.task import Task
from kernelsimp.data.sources import Data
from kernelsimp.errors import KernelsimpError
from kernelsimp.export_settings import ENGINES
from kernelsimp.files import write_text
from kernelsimp.kernels.separable import full_rank
from kernelsimp.models.factorised import factorise
from kernelsimp.models.network import Network, open_network
from kernelsimp.models.onnx_export import export_onnx
from kernelsimp.models.outputs import keep_output
from kernelsimp.models.program import (
    ChannelsLast,
    UntraceableError,
    check_onnx_is_here,
    run_onnx,
    run_program,
    write_program,
)
from kernelsimp.models.standalone import build_standalone, standalone_text, write_standalone
from kernelsimp.models.stored_order import module_name
from kernelsimp.records.factorised import Answers, CheckedOutput, Factorised, FactorisedLayer, Latency
from kernelsimp.report.tables.factorised import factorised_json, factorised_markdown
from kernelsimp.settings import Settings
from kernelsimp.solver.fisher import output_tensors
from kernelsimp.watch import SILENT, Watcher

NEAR = 1e-4
"""Outputs of a written form may be this far from those that they must be, relative to their norm."""

IMAGES = 32
"""Images on which written forms are run."""

NOISE, REAL = "noise", "images of --data"


@dataclass(frozen=True, eq=False)
class FactorisedExport:
    """What came of it: the files, none where nothing was faster, and the record that describes them."""

    files: tuple[Path, ...]
    made: Factorised
    met: bool


def export_factorised(source: ExportSource, path: Path, watcher: Watcher = SILENT) -> FactorisedExport:
    """Write the network of `source` with thinner layers as `path` (.pt2) and the other forms beside it.

    Raises `KernelsimpError` without an architecture, for bad budgets, and where what was written does not put
    out what it must.
    """
    settings = source.settings
    _check(settings, path)
    network = open_network(
        source.path, replace(settings, model=replace(settings.model, sha256=None)), watcher
    )
    data = open_data(settings, watcher)
    images = _images(network, data, settings)
    ground = open_ground(
        Task(network, data, settings), images, LayerTimes(times_file(settings), watcher=watcher)
    )
    decision = decide(ground, watcher)
    layers = _rows(ground, decision)
    made = _record(ground, decision, layers)
    if not decision.plan:
        return FactorisedExport((), replace(made, notes=(*made.notes, _why_nothing(ground))), met=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".factorised-") as folder:
        forms = _Forms(ground, decision, Path(folder) / path.name, watcher)
        checked = forms.write()
        notes = (*made.notes, *forms.notes)
        made = replace(made, outputs=checked, notes=notes, latency=forms.latency(), answers=_answers(forms))
        forms.write_report(made)
        files = [item for item in sorted(Path(folder).iterdir()) if not item.name.startswith(ASIDE)]
        for item in files:
            item.replace(path.parent / item.name)
    return FactorisedExport(tuple(path.parent / item.name for item in files), made, decision.met)


def times_file(settings: Settings) -> Path:
    """Return where times of layers are kept: --times, or a file in the user's cache."""
    if settings.factorising.times is not None:
        return Path(settings.factorising.times).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "kernelsimp" / "times.json"


ASIDE = ".before"
"""How files that are only for measuring begin."""


def written_places(path: Path) -> tuple[Path, ...]:
    """Return every file that an export to `path` may write."""
    names = [path.with_suffix(ending) for ending in (".onnx", ".safetensors", ".json", ".md")]
    return (path, *names, _code_place(path))


def _code_place(path: Path) -> Path:
    """Return the Python file's place: under a name that can be imported."""
    return path.with_name(re.sub(r"\W", "_", path.stem) + ".py")


def _check(settings: Settings, path: Path) -> None:
    check_budget(settings)
    if settings.model.arch is None:
        raise KernelsimpError("--to factorised needs the network, not its weights alone: pass --arch")
    if path.suffix != ".pt2":
        raise KernelsimpError(
            f"--out is '{path.name}'; expected a name that ends in .pt2, others stand beside it"
        )
    unknown = set(settings.factorising.engines or ()) - set(ENGINES)
    if unknown:
        raise KernelsimpError(f"--engines has '{min(unknown)}'; expected some of {', '.join(ENGINES)}")


def _images(network: Network, data: Data | None, settings: Settings) -> Tensor:
    """Return the images that layers are timed and written forms are run on: real ones, or noise."""
    if data is not None:
        split = data.calibration(settings.data.calibration, settings.run.seed)
        batch: Tensor = next(iter(batches_of(split, settings)))[0]
        return batch[:IMAGES].to(network.device)
    shape = input_shape(network, None, settings)
    if shape is None:
        raise KernelsimpError("--to factorised needs images, or their size: pass --data or --input-size")
    return torch.randn(4, *shape, generator=torch.Generator().manual_seed(0)).to(network.device)


def _why_nothing(ground: Ground) -> str:
    if ground.known:
        return "no layer was measured to be faster as two thinner ones here: nothing is written"
    return (
        "no layer has an exact rank that would make it faster: nothing is written; pass --max-drop, "
        "--speedup or --macs with --data, or simplify with families that are ranks"
    )


# ---------------------------------------------------------------- the record


def _rows(ground: Ground, decision: Decision) -> tuple[FactorisedLayer, ...]:
    """Return a row a layer; the ways chosen without being timed are timed now."""
    rows = []
    for name, layer in ground.layers.items():
        way = decision.plan.get(name)
        if way is not None:
            ground.measure(name, (way,))
        known = ground.known.get(name, {})
        time = (
            known[way]
            if way is not None
            else max(known.values(), key=lambda item: item.ratio.value, default=None)
        )
        shape, seen = tuple(layer.weight.shape), ground.shapes[name]
        before = sum(item.numel() for item in layer.parameters())
        row = FactorisedLayer(
            name,
            shape,
            layer.groups,
            seen.inputs,
            rank=way.rank if way else 0,
            full_rank=full_rank(shape, layer.groups),
            channels=len(way.channels) if way else 0,
            exact=name not in decision.fitted,
            parameters_before=before,
            parameters_after=before,
            macs_before=seen.macs(layer),
            macs_after=seen.macs(layer, way),
            before=time.whole if time else None,
            after=time.thin if time else None,
            ratio=time.ratio if time else None,
            why="" if way else "not faster at any rank tried" if time else "no rank tried",
        )
        rows.append(row)
    return (*rows, *_whole_rows(ground))


def _whole_rows(ground: Ground) -> list[FactorisedLayer]:
    """Return the rows of the layers that cannot be taken apart."""
    banked = {layer.name: layer for layer in ground.task.network.bank.layers}
    empty = (None,) * 5
    return [
        FactorisedLayer(
            name, banked[name].weight_shape, banked[name].groups, None, 0, 0, 0, True, 0, 0, *empty, why
        )
        for name, why in ground.reasons.items()
        if name in banked
    ]


def _record(ground: Ground, decision: Decision, layers: tuple[FactorisedLayer, ...]) -> Factorised:
    network, settings = ground.task.network, ground.settings
    after = factorise(decision.whole, decision.plan)
    counts = [sum(item.numel() for item in model.parameters()) for model in (decision.whole, after)]
    modules = dict(after.named_modules())
    layers = tuple(
        replace(
            row, parameters_after=sum(item.numel() for item in modules[module_name(row.name)].parameters())
        )
        if row.rank
        else row
        for row in layers
    )
    return Factorised(
        {"path": str(network.checkpoint.path), "sha256": network.checkpoint.sha256, "arch": network.arch},
        ground.times.machine,
        settings.factorising.layout,
        settings.factorising.time_batch,
        "multiplications" if settings.factorising.macs is not None else "seconds as measured",
        layers,
        (counts[0], counts[1]),
        decision.macs,
        notes=decision.notes,
    )


def _answers(forms: "_Forms") -> Answers | None:
    """Measure the original and the factorised network on test images, which chose nothing."""
    task = forms.ground.task
    data, settings = task.data, task.settings
    if data is None or not len(data.test) or not classifies(task.network, data, settings):
        return None
    before, after = (
        measure_module(model, data, settings, forms.watcher) for model in (task.network.module(), forms.after)
    )
    return Answers("test", before.total, before.right, after.right)


# ---------------------------------------------------------------- the forms


class _Forms:
    """The forms of one factorised network in a folder aside: written, run and compared."""

    def __init__(self, ground: Ground, decision: Decision, path: Path, watcher: Watcher) -> None:
        self.ground, self.decision, self.path, self.watcher = ground, decision, path, watcher
        self.after = factorise(decision.whole, decision.plan).eval()
        self.channels_last = ground.settings.factorising.layout == "channels-last"
        self.notes: list[str] = []
        self.files: tuple[Path, Path] | None = None

    def write(self) -> tuple[CheckedOutput, ...]:
        """Write all forms that can be and return how each was checked."""
        self.watcher.start("writing and running the forms", 3)
        found = []
        for write in (self._standalone, self._program, self._onnx):
            try:
                found.append(write())
            except UntraceableError as error:
                self._leave_out(f"no .pt2 file: {error}")
            self.watcher.step()
        return tuple(item for item in found if item is not None)

    def _leave_out(self, why: str) -> None:
        self.notes.append(why)
        self.watcher.warn(why)

    def _standalone(self) -> CheckedOutput:
        place, weights = _code_place(self.path), self.path.with_suffix(".safetensors")
        plan = {module_name(name): way for name, way in self.decision.plan.items()}
        arch = str(self.ground.task.network.arch)
        text = standalone_text(arch, plan, weights.name, channels_last=self.channels_last)
        write_standalone((place, weights), text, self.after.state_dict())
        built = keep_output(build_standalone(place), self.ground.task.network.output)
        return self._checked(place, built.to(self.ground.images.device))

    def _program(self) -> CheckedOutput:
        write_program(self._laid_out(self.after), self.ground.images, self.path)
        return self._checked(self.path, run_program(self.path))

    def _onnx(self) -> CheckedOutput | None:
        """Write the ONNX file of the network, and of the one before beside it, to be timed alone."""
        place, shape = self.path.with_suffix(".onnx"), tuple(self.ground.images.shape[1:])
        before = self.path.with_name(f"{ASIDE}.onnx")
        try:
            check_onnx_is_here()
            for model, file in ((self.after, place), (self.ground.model, before)):
                export_onnx(model, shape, file)
            run = run_onnx(place, torch.get_num_threads())
        except KernelsimpError as error:
            place.unlink(missing_ok=True)
            self._leave_out(f"no .onnx file: {error}")
            return None
        self.files = (before, place)
        return self._checked(place, lambda images: run(images.cpu()))

    def _laid_out(self, model: nn.Module) -> nn.Module:
        return ChannelsLast(model).eval() if self.channels_last else model

    def _checked(self, file: Path, run: Callable[[Tensor], object]) -> CheckedOutput:
        """Return how far what `run` puts out is from the network before any layer was replaced."""
        images = self.ground.images
        with torch.no_grad():
            error = relative_distance(run(images.clone()), self.decision.whole(images.clone()))
        if not error <= NEAR:
            raise KernelsimpError(
                f"{file.name}: its outputs are {error:.1e} from the network's, expected {NEAR:g} at most; "
                "nothing is written"
            )
        against = "the network with layers of low rank" if self.decision.fitted else "the original network"
        return CheckedOutput(file.name, error, against, REAL if self.ground.task.data is not None else NOISE)

    def latency(self) -> tuple[Latency, ...]:
        """Return how long the network takes before and after."""
        engines = self.ground.settings.factorising.engines or ENGINES
        pair = Pair(self._laid_out(self.ground.model), self._laid_out(self.after), self.files)
        return network_latency(pair, self.ground.images, engines, self.watcher)

    def write_report(self, made: Factorised) -> None:
        """Write the record as JSON and as Markdown."""
        text = json.dumps(factorised_json(made), indent=1, allow_nan=False)
        write_text(self.path.with_suffix(".json"), text + "\n")
        write_text(self.path.with_suffix(".md"), factorised_markdown(made))


def relative_distance(output: object, expected: object) -> float:
    """Return ||output - expected|| / ||expected|| over all tensors of two outputs; infinite for another form.

    >>> relative_distance(torch.ones(2), torch.ones(2))
    0.0
    """
    ours, theirs = output_tensors(output), output_tensors(expected)
    if [item.shape for item in ours] != [item.shape for item in theirs]:
        return float("inf")
    error = sum(
        float((one.cpu() - other.cpu()).double().square().sum())
        for one, other in zip(ours, theirs, strict=True)
    )
    whole = sum(float(other.double().square().sum()) for other in theirs)
    return (error / whole) ** 0.5 if whole else float(error > 0)
