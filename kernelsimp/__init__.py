"""kernelsimp: find the structure in trained convolution kernels, simplify to it, hold it, report the cost.

The functions here are those of `kernelsimp.api`, and `hold` and `release` of `kernelsimp.nn`; each is
imported, and torch with it, when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kernelsimp.version import __version__

if TYPE_CHECKING:
    from kernelsimp import nn
    from kernelsimp.api import check, compare, families, finetune, load_weights, scan, simplify
    from kernelsimp.errors import KernelsimpError
    from kernelsimp.nn import hold, release


__all__ = [
    "KernelsimpError",
    "__version__",
    "check",
    "compare",
    "families",
    "finetune",
    "hold",
    "load_weights",
    "nn",
    "release",
    "scan",
    "simplify",
]

_ELSEWHERE = {"KernelsimpError": "errors", "hold": "nn", "release": "nn"}


def __getattr__(name: str) -> Any:
    """Import what is asked for from where it stands."""
    if name == "nn":
        return import_module("kernelsimp.nn")
    if name in __all__:
        return getattr(import_module(f"kernelsimp.{_ELSEWHERE.get(name, 'api')}"), name)
    raise AttributeError(f"module 'kernelsimp' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
