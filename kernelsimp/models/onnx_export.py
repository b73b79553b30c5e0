"""Write a network as ONNX, its weights as the checkpoint has them.

Batch norms are not folded into the convolutions before them: the graph keeps every kernel bit for bit, so a
scan of the file reads what a scan of the checkpoint reads.
"""

import io
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kernelsimp.error_text import kind_and_words
from kernelsimp.errors import KernelsimpError, how_to_install
from kernelsimp.files import quiet, write_bytes
from kernelsimp.models.onnx_file import read_onnx

OPSET = 17


def export_onnx(model: nn.Module, shape: tuple[int, ...], path: Path) -> None:
    """Write `model` for images of `shape` (channels, height, width), any number at once.

    Raises `KernelsimpError` where the package `onnx` is missing, the network refuses such images or holds
    what ONNX has no word for, and where a convolution did not arrive bit for bit.
    """
    if find_spec("onnx") is None:
        raise KernelsimpError(f"--to onnx needs the package onnx; {how_to_install('onnx')}")
    write_bytes(path, _trace(model.cpu().eval(), torch.zeros(1, *shape)))
    _check(path, model.state_dict())


def _trace(model: nn.Module, images: Tensor) -> bytes:
    """Return the graph that PyTorch's own tracing exporter makes; the newer one needs a further package."""
    graph: Any = io.BytesIO()  # a file object is taken, though the annotation does not say so
    try:
        with quiet(), torch.no_grad():
            torch.onnx.export(
                model,
                (images,),
                graph,
                dynamo=False,
                opset_version=OPSET,
                training=torch.onnx.TrainingMode.PRESERVE,  # evaluation would fold batch norms
                do_constant_folding=False,
                input_names=["images"],
                output_names=["output"],
                dynamic_axes={"images": {0: "batch"}, "output": {0: "batch"}},
            )
    except Exception as error:  # the user's network, and whatever the exporter does not know
        size = "x".join(map(str, images.shape[1:]))
        raise KernelsimpError(
            f"--to onnx: the network does not export for images of {size} ({kind_and_words(error)}); "
            "pass the right --input-size, or keep to --to packed"
        ) from error
    return bytes(graph.getvalue())


def _check(path: Path, state: Mapping[str, Tensor]) -> None:
    """Raise `KernelsimpError` where a convolution of the file is not the network's, bit for bit."""
    written = read_onnx(path)
    for name in written.convolutions:
        if name in state and not torch.equal(written.tensors[name], state[name]):
            raise KernelsimpError(f"{path}: '{name}' was changed by the exporter; use --to packed")
