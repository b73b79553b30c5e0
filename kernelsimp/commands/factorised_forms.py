"""The forms of a factorised network: written into a folder aside, run there, compared with the network."""

import copy
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from kernelsimp.analysis.latency import Pair, network_latency
from kernelsimp.commands.factorise import Decision, Ground
from kernelsimp.errors import KernelsimpError
from kernelsimp.export_settings import ENGINES
from kernelsimp.files import write_text
from kernelsimp.models.factorised import factorise
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
from kernelsimp.records.factorised import CheckedOutput, Factorised, Latency
from kernelsimp.records.serialise import json_text
from kernelsimp.report.html import factorised_html
from kernelsimp.report.markdown import factorised_markdown
from kernelsimp.report.tables.factorised import factorised_json
from kernelsimp.solver.fisher import output_tensors
from kernelsimp.watch import Watcher

NEAR = 1e-4
"""Outputs of a written form may be this far from those that they must be, relative to their norm."""

NOISE, REAL = "noise", "images of --data"

ASIDE = ".before"
"""How files that are only for measuring begin."""


def written_places(path: Path) -> tuple[Path, ...]:
    """Return every file that an export to `path` may write."""
    names = [path.with_suffix(ending) for ending in (".onnx", ".safetensors", ".json", ".md", ".html")]
    return (path, *names, code_place(path))


def code_place(path: Path) -> Path:
    """Return the Python file's place: under a name that can be imported."""
    return path.with_name(re.sub(r"\W", "_", path.stem) + ".py")


class Forms:
    """The forms of one factorised network in a folder aside: written, run and compared."""

    def __init__(self, ground: Ground, decision: Decision, path: Path, watcher: Watcher) -> None:
        self.ground, self.decision, self.path, self.watcher = ground, decision, path, watcher
        self.after = factorise(decision.whole, decision.plan).eval()
        self.channels_last = ground.settings.factorising.layout == "channels-last"
        self.expected, self.against = decision.whole, "the original network"
        if decision.fitted:
            self.against = "the network with layers of low rank"
        self.notes: list[str] = []
        self.files: tuple[Path, Path] | None = None

    def tuned(self, model: nn.Module, path: Path) -> "Forms":
        """Return the forms at `path` of the same network with trained weights, which nothing else is like."""
        made = copy.copy(self)
        made.path, made.files = path, None
        made.after, made.expected, made.against = model, model, "the fine-tuned network in memory"
        return made

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
        if why not in self.notes:  # said when the network was timed
            self.notes.append(why)
            self.watcher.warn(why)

    def _standalone(self) -> CheckedOutput:
        place, weights = code_place(self.path), self.path.with_suffix(".safetensors")
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
                export_onnx(copy.deepcopy(model), shape, file)  # a copy: it is moved to the CPU
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
        """Return how far what `run` puts out is from the network that the form is of."""
        images = self.ground.images
        with torch.no_grad():
            error = relative_distance(run(images.clone()), self.expected(images.clone()))
        if not error <= NEAR:
            raise KernelsimpError(
                f"{file.name}: its outputs are {error:.1e} from the network's, expected {NEAR:g} at most; "
                "nothing is written"
            )
        seen = REAL if self.ground.task.data is not None else NOISE
        return CheckedOutput(file.name, error, self.against, seen)

    def latency(self) -> tuple[Latency, ...]:
        """Return how long the network takes before and after."""
        engines = self.ground.settings.factorising.engines or ENGINES
        pair = Pair(self._laid_out(self.ground.model), self._laid_out(self.after), self.files)
        return network_latency(pair, self.ground.images, engines, self.watcher)

    def write_report(self, made: Factorised) -> None:
        """Write the record as JSON, as Markdown and as a page."""
        write_text(self.path.with_suffix(".json"), json_text(factorised_json(made)))
        write_text(self.path.with_suffix(".md"), factorised_markdown(made))
        write_text(self.path.with_suffix(".html"), factorised_html(made))


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
