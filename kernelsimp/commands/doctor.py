"""What this installation can do: versions, devices, memory, extras, and how to get what is missing."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from kernelsimp.errors import how_to_install
from kernelsimp.version import __version__

NEEDED = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "typer",
    "rich",
    "safetensors",
    "jinja2",
    "pillow",
    "lightning-fabric",
)
EXTRAS = {
    "demo": ("scikit-learn", "the data of --data digits and of the demo"),
    "timm": ("timm", "networks as --arch timm:NAME"),
    "onnx": ("onnx onnxruntime", "export --to onnx or factorised, and reading ONNX weights"),
    "coding": ("numba", "export --to coded: its search and coder"),
    "tensorboard": ("tensorboard", "curves of a training in TensorBoard"),
    "wandb": ("wandb", "--log wandb"),
    "mlflow": ("mlflow-skinny", "--log mlflow"),
    "zoo": ("distributed pyarrow", "scan with --jobs, --scheduler or --dataset"),
    "remote": ("fsspec aiohttp", "scan https://, s3:// (with s3fs), gs:// (gcsfs), hf:// (huggingface_hub)"),
}
"""The extras of the package: what each needs, and what for."""


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what is there, whether it is as it should be, and what to do if not."""

    what: str
    found: str
    ok: bool = True
    needed: bool = True
    advice: str = ""


def examine_installation() -> tuple[Finding, ...]:
    """Return what is installed, on which devices it can run, and what is missing.

    >>> examine_installation()[0].what
    'kernelsimp'
    """
    ours = (Finding("kernelsimp", __version__), Finding("Python", platform.python_version()))
    return (*ours, *_packages(), *_machine(), *_extras())


def _packages() -> list[Finding]:
    found = []
    for name in NEEDED:
        there = _version(name)
        advice = "" if there else f"pip install {name}"
        found.append(Finding(name, there or "missing", bool(there), advice=advice))
    return found


def _machine() -> list[Finding]:
    """Return devices and their memory; nothing where torch, which knows them, is what is missing."""
    if _version("torch") is None:
        return []
    import torch

    from kernelsimp.memory import free_bytes

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    free = free_bytes(torch.device("cpu")) / 1e9
    found = [Finding("CPU", f"{cores} cores for this process, {free:.1f} GB of memory free")]
    for place in range(torch.cuda.device_count()):
        device = torch.device("cuda", place)
        room = free_bytes(device) / 1e9
        found.append(Finding(f"cuda:{place}", f"{torch.cuda.get_device_name(place)}, {room:.1f} GB free"))
    if not torch.cuda.is_available():
        advice = "a CPU is enough to scan; a PyTorch built for your GPU trains faster"
        found.append(Finding("CUDA", "no device", ok=False, needed=False, advice=advice))
    return found


def _extras() -> list[Finding]:
    found = []
    for extra, (package, purpose) in EXTRAS.items():
        versions = [_version(name) for name in package.split()]
        there = ", ".join(filter(None, versions)) if all(versions) else None
        advice = "" if there else f"{how_to_install(extra)}: {purpose}"
        found.append(Finding(f"extra {extra}", there or "missing", bool(there), False, advice))
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
