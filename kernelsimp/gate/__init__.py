"""A network against its report or baseline, and the verdict on it."""

from kernelsimp.gate.accuracy import verify_accuracy
from kernelsimp.gate.gate import CheckedNetwork, check
from kernelsimp.gate.kernels import from_tensors, verify_holds
from kernelsimp.gate.renewal import baseline_from
from kernelsimp.gate.rules import RULES, USUAL, limits_beside, read_limits, with_max

__all__ = [
    "RULES",
    "USUAL",
    "CheckedNetwork",
    "baseline_from",
    "check",
    "from_tensors",
    "limits_beside",
    "read_limits",
    "verify_accuracy",
    "verify_holds",
    "with_max",
]
