"""kernelsimp: find the structure in trained convolution kernels, simplify to it, hold it, report the cost."""

__version__ = "0.1.0"
