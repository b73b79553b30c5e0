"""The order in which a convolution's weight is stored, and the canonical one, there and back.

Canonical order is (out, in / groups, kh, kw); a one-dimensional kernel has a grid of (1, k). Transposed
convolutions store (in, out / groups, ...) and are turned round.
"""

from torch import Tensor


def canonical(weight: Tensor, kind: str, groups: int) -> Tensor:
    """Return a stored weight as (out, in / groups, kh, kw), a view where possible."""
    if weight.ndim == 3:
        weight = weight.unsqueeze(2)
    return _swap_in_groups(weight, groups) if kind == "transposed" else weight


def stored_order(kernels: Tensor, kind: str, groups: int, shape: tuple[int, ...] | None = None) -> Tensor:
    """Undo `canonical`; `shape` is the stored shape, needed for Conv1d: its grid is (1, k), stored (k,)."""
    weight = _swap_in_groups(kernels, groups) if kind == "transposed" else kernels
    return weight if shape is None else weight.reshape(shape)


def _swap_in_groups(weight: Tensor, groups: int) -> Tensor:
    """Swap input and output inside each group: (g * a, b, ...) becomes (g * b, a, ...)."""
    outer, inner, *grid = weight.shape
    split = weight.reshape(groups, outer // groups, inner, *grid).transpose(1, 2)
    return split.reshape(groups * inner, outer // groups, *grid)


LONE = "(the only layer)"
"""The name of a convolution that is the whole network: as a module it has none."""


def tensor_name(layer: str) -> str:
    """Return the name of a layer's weight in the state dict."""
    return f"{layer}.weight" if module_name(layer) else "weight"


def module_name(layer: str) -> str:
    """Return the name of a layer's module, which is empty where it is the whole network."""
    return "" if layer == LONE else layer


def layer_name(tensor: str) -> str:
    """Return the name of the layer whose weight this is."""
    return tensor.removesuffix("weight").removesuffix(".") or LONE
