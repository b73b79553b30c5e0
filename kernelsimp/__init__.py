"""kernelsimp: find the structure in trained convolution kernels, simplify to it, hold it, report the cost."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernelsimp.nn import hold, release

__version__ = "0.1.0"

__all__ = ["__version__", "hold", "release"]


def __getattr__(name: str) -> Any:
    """Import the network side, and torch with it, when it is asked for."""
    if name in ("hold", "release"):
        from kernelsimp import nn

        return getattr(nn, name)
    raise AttributeError(f"module 'kernelsimp' has no attribute '{name}'")
