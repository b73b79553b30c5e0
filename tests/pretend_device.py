"""A second device where there is none: CPU tensors that say they lie on `pretend:0`.

Importing it makes `torch.device("pretend")` valid. An operation that mixes the two devices fails as it would
on a GPU, and so does an index that lies on the CPU, which a GPU would wait for without a word. `calls` counts
what ran there, `waits` what the host of a GPU would have waited for: numbers and shapes that it reads off the
device, and copies that were not told to go on by themselves.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.library import Library
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretend"


class _Backend(_DummyBackendModule):
    """What torch asks of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend(NAME, _Backend())
DEVICE = torch.device(NAME, 0)

calls: Counter[str] = Counter()
waits: Counter[str] = Counter()

aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
"""What may take tensors from one device to the other."""
READ = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""What torch calls operations that answer with a number, or whose answer's shape depends on numbers."""
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
"""What has to count the places of an index that is a mask."""


class PretendTensor(Tensor):
    """A tensor on the pretend device; `there` holds its numbers."""

    there: Tensor

    @staticmethod
    def __new__(cls, there: Tensor) -> "PretendTensor":
        return Tensor._make_wrapper_subclass(
            cls,
            there.size(),
            strides=there.stride(),
            storage_offset=there.storage_offset(),
            dtype=there.dtype,
            layout=there.layout,
            device=DEVICE,
        )

    def __init__(self, there: Tensor) -> None:
        self.there = there

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __tensor_flatten__(self):
        return ["there"], None

    @staticmethod
    def __tensor_unflatten__(inner, *_):
        return PretendTensor(inner["there"])

    def __repr__(self, **_):
        return f"PretendTensor({self.there!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        calls[str(func)] += 1
        waits[str(func)] += _has_to_wait(func, args, kwargs or {})
        return _run(func, args, kwargs or {})


def _has_to_wait(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if func is aten.copy_.default:
        across = isinstance(args[0], PretendTensor) != isinstance(args[1], PretendTensor)
        return across and not any(args[2:])
    if func is aten._to_copy.default:
        there = kwargs.get("device")
        return there is not None and torch.device(there).type != NAME and not kwargs.get("non_blocking")
    if func in INDEXED:
        return any(item is not None and item.dtype == torch.bool for item in args[1])
    return bool(READ.intersection(func.tags))


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = [item for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor)]
    wrapped = {id(item.there): item for item in tensors if isinstance(item, PretendTensor)}
    plain = [item for item in tensors if not isinstance(item, PretendTensor)]
    if func not in COPIES and any(item.ndim for item in plain):
        raise RuntimeError(f"{func} of tensors on {DEVICE} and {plain[0].device}")
    onto = func is not aten.copy_.default or isinstance(args[0], PretendTensor)
    if kwargs.get("device") is not None:
        onto = torch.device(kwargs["device"]).type == NAME
        kwargs = {**kwargs, "device": torch.device("cpu") if onto else kwargs["device"]}
    args, kwargs = tree_map_only(PretendTensor, lambda item: item.there, (args, kwargs))
    made = func(*args, **kwargs)
    if not onto:
        return made
    return tree_map_only(
        Tensor, lambda item: wrapped[id(item)] if id(item) in wrapped else PretendTensor(item), made
    )


def _factory(make: Any) -> Any:
    def run(
        *args: Any, device: Any = None, pin_memory: Any = None, layout: Any = None, **kwargs: Any
    ) -> Tensor:
        return PretendTensor(make(*args, **kwargs))

    return run


_library = Library("aten", "IMPL")
for _name, _make in (
    ("empty.memory_format", aten.empty.memory_format),
    ("empty_strided", aten.empty_strided.default),
):
    _library.impl(_name, _factory(_make), "PrivateUse1")


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """Copy from one device to the other where torch dispatches on nothing, as in `torch.tensor`."""
    waits["a copy by itself"] += not non_blocking
    ends = (item.there if isinstance(item, PretendTensor) else item for item in (target, source))
    aten.copy_.default(*ends, non_blocking)
    return target


_library.impl("_copy_from", _copy_from, "PrivateUse1")
