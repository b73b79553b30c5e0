"""A network as a `torch.export` program, which runs without the code that made it, or in ONNX Runtime.

What cannot be traced is told by the operation and the line of the network's own code, where torch knows them.
"""

import copy
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kernelsimp.errors import KernelsimpError
from kernelsimp.files import quiet, write_atomically

MOST_WORDS = 220


class UntraceableError(KernelsimpError):
    """The network has an operation that `torch.export` cannot trace; the other forms can still be written."""


class ChannelsLast(nn.Module):
    """A network whose images are laid out with channels last before they go in."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        moved: Any = copy.deepcopy(network)
        self.network = moved.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Any:
        return self.network(images.contiguous(memory_format=torch.channels_last))


def write_program(model: nn.Module, images: Tensor, path: Path) -> None:
    """Write `model` as a program for any number of images of the shape of `images` (n, channels, ...).

    Raises `UntraceableError` naming the operation where it cannot be traced.
    """
    pair = torch.zeros(2, *images.shape[1:], device=images.device)  # a program keeps what it is traced with
    many = {0: torch.export.Dim("batch", min=1)}
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(model.eval(), (pair,), dynamic_shapes=(many,))
    except Exception as error:  # the user's network, and whatever torch cannot trace
        raise UntraceableError(f"torch.export cannot trace the network: {operation_of(error)}") from error
    with quiet():
        write_atomically(path, lambda partial: _save(program, partial))


def _save(program: Any, partial: Path) -> None:
    with partial.open("wb") as file:  # by name, torch would want the ending .pt2
        torch.export.save(program, file)


def run_program(path: Path) -> Callable[[Tensor], object]:
    """Return what runs the program of a file that this command has written."""
    with quiet():
        module = torch.export.load(path).module()
    return lambda images: module(images)


def operation_of(error: BaseException) -> str:
    """Return in one line what torch could not trace, and where in the network's code, where it is known."""
    text = str(error)
    own = re.findall(r'File "([^"]+)", line (\d+), in \w+\n\s*([^\n]+)', text)
    own = [item for item in own if f"{Path(torch.__file__).parent}/" not in item[0]]
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    told = first if len(first) <= MOST_WORDS else first[:MOST_WORDS] + "..."
    if not own:
        place = _raised_at(error)
        return f"{type(error).__name__}: {told}{place}"
    file, line, code = own[-1]
    return f"{type(error).__name__}: {told} ('{code.strip()}', {Path(file).name} line {line})"


def _raised_at(error: BaseException) -> str:
    """Return the last place outside torch that an error went through."""
    found, step = "", error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        inside = str(Path(torch.__file__).parent) in code.co_filename or code.co_filename == __file__
        if not inside and Path(code.co_filename).is_file():
            found = f" ({Path(code.co_filename).name} line {step.tb_lineno}, in {code.co_name})"
        step = step.tb_next
    return found


def check_onnx_is_here() -> None:
    """Raise `KernelsimpError` where a package that writes or runs ONNX files is missing."""
    for package in ("onnx", "onnxruntime"):
        if find_spec(package) is None:
            raise KernelsimpError(f"no ONNX file without the package {package}; pip install {package}")


def run_onnx(path: Path, threads: int) -> Callable[[Tensor], list[Tensor]]:
    """Return what runs an ONNX file in ONNX Runtime on the CPU, on so many threads.

    Raises `KernelsimpError` where onnxruntime is missing, or does not know an operation.
    """
    check_onnx_is_here()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise KernelsimpError(f"ONNX Runtime does not run the network: {operation_of(error)}") from error
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(item) for item in session.run(None, {name: images.numpy()})]

    return run
