"""Unpickle a checkpoint without its classes and functions: what is not known becomes an inert stand-in.

Nothing that a file names is imported, and nothing of it is called. The rule, by what the pickle asks for:

* Tensors, storages, numpy arrays and the plain containers are rebuilt by the few functions listed here and by
  those that PyTorch's own restricted unpickler allows. All stand behind `Maker`, so a pickle can call them
  and do nothing else with them.
* Any other class is stood in for, whether it is made by NEWOBJ, OBJ, INST, REDUCE or filled by BUILD,
  SETITEMS and APPENDS: the stand-in keeps what it is given. A class is what its name says: a capital, or one
  of the standard library's value classes in `_VALUE_CLASSES`.
* A function may be named (a network keeps its activation) but not called. A call of one is a `WouldRunError`:
  all of the standard library (posix.system, builtins.eval, operator.attrgetter, importlib...), and whatever
  else has a lower-case name. Third-party functions that only put an object together again
  (`_unpickle_block`, `__pyx_unpickle_X`) give a stand-in, and `getattr` of a stood-in class gives the
  stand-in of its attribute, to which the same rule applies.
"""

import io
import os
import pickle
import re
import struct
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from kernelsimp.files import FORCE_TENSORS

_VALUE_CLASSES = {
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    *(f"collections.{name}" for name in ("deque", "defaultdict", "ChainMap", "UserDict")),
    *(f"builtins.{name}" for name in ("object", "dict", "list", "tuple", "int", "float", "str", "bool")),
    *(f"builtins.{name}" for name in ("slice", "range", "bytes")),
    *("types.SimpleNamespace", "argparse.Namespace", "functools.partial"),
    *("decimal.Decimal", "fractions.Fraction", "uuid.UUID", "zoneinfo.ZoneInfo"),
    *("pathlib.Path", "pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib._local.PosixPath"),
    *("pathlib.WindowsPath", "pathlib.PureWindowsPath", "pathlib._local.WindowsPath"),
    *("copyreg._reconstructor", "copyreg.__newobj__", "array._array_reconstructor", "array.array"),
    *("re._compile", "logging.getLogger", "logging.Logger", "logging.RootLogger"),
}
"""What of the standard library may be stood in for: classes whose making does nothing, and their makers."""

_PUTS_TOGETHER = re.compile(
    r"^_*(pyx_)?(unpickle|reconstruct|rebuild|randomstate_ctor|generator_ctor|bit_gen)"
)


class WouldRunError(Exception):
    """A pickle that calls a function; `name` is the function's dotted name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"it calls {name}")
        self.name = name


class StandInKind(type):
    """The class of stand-in classes: what REDUCE calls must be a class."""

    def __call__(cls, *args: Any, **named: Any) -> Any:
        kind = str(getattr(cls, "kind", ""))
        if not may_be_called(kind):
            raise WouldRunError(kind)
        return StandIn.__new__(cls, *args, **named)  # type: ignore[arg-type]


class StandIn(metaclass=StandInKind):
    """What stands for an object of an unknown class: its arguments, its state, its entries and its items."""

    __slots__ = ("args", "entries", "items", "state")
    kind: ClassVar[str] = ""
    dump_patches: ClassVar[bool] = False  # legacy files ask every class for it

    args: tuple[Any, ...]
    entries: dict[Any, Any]
    items: list[Any]
    state: Any

    def __new__(cls, *args: Any, **named: Any) -> "StandIn":
        """Keep the arguments; nothing is called with them."""
        if not args and not named and _of_standard_library(cls.kind) and not may_be_called(cls.kind):
            raise WouldRunError(cls.kind)  # OBJ and INST come here without a call
        made = object.__new__(cls)
        made.args, made.state, made.entries, made.items = args, dict(named) or None, {}, []
        if args and cls.kind in ("copyreg._reconstructor", "copyreg.__newobj__"):
            inner = args[0]
            return StandIn.__new__(inner) if isinstance(inner, StandInKind) else made  # type: ignore[arg-type]
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def append(self, item: Any) -> None:
        """Keep an item."""
        self.items.append(item)

    def extend(self, items: Any) -> None:
        """Keep several items."""
        self.items.extend(items)

    def add(self, item: Any) -> None:
        """Keep an item of a set."""
        self.items.append(item)


class Maker:
    """A function of ours or of PyTorch's that a pickle may call, and neither read nor change."""

    __slots__ = ("_call",)
    dtype = torch.uint8  # what torch.load asks of UntypedStorage, the one storage class that comes this way
    _call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("the pickle would change a function")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the pickle would change a function")


class StandInUnpickler(pickle._Unpickler):
    """Unpickles tensors and stand-ins by the rule at the head of this file.

    It is Python's own: that in C makes room for any place in its memo that a file names, gigabytes of it.
    """

    def __init__(self, file: Any, **options: Any) -> None:
        super().__init__(file, **options)
        self._kinds: dict[str, StandInKind] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a global of the file; nothing is imported."""
        kind = _dotted(module, name)
        known = _known()
        if kind in known:
            return known[kind]
        if kind == "builtins.getattr":
            return Maker(self._attribute)
        return self._stand_in(kind)

    def _attribute(self, owner: Any, name: Any) -> Any:
        """Stand for an attribute of a class that is stood in for; nothing is looked up."""
        inside = isinstance(owner, StandInKind) and not _of_standard_library(str(getattr(owner, "kind", "")))
        if not inside or not isinstance(name, str):
            raise WouldRunError("builtins.getattr")
        return self._stand_in(f"{getattr(owner, 'kind', '')}.{name}")

    def _stand_in(self, kind: str) -> StandInKind:
        if kind not in self._kinds:
            self._kinds[kind] = StandInKind("StandIn", (StandIn,), {"__slots__": (), "kind": kind})
        return self._kinds[kind]


def may_be_called(kind: str) -> bool:
    """Say whether a call of this dotted name is the making of an object, by the rule of this file."""
    if kind in _VALUE_CLASSES:
        return True
    if _of_standard_library(kind):
        return False
    last = kind.rpartition(".")[2]
    ours = kind.partition(".")[0] == "torch"  # what torch puts together is known already
    return last.lstrip("_")[:1].isupper() or (not ours and bool(_PUTS_TOGETHER.match(last)))


def load_with_stand_ins(file: BinaryIO | Path, *, mapped: bool = False) -> Any:
    """Unpickle a zip or legacy checkpoint, its tensors on the CPU and its unknown classes stood in for.

    Raises `WouldRunError` where it calls a function; what a damaged file raises comes out as it is.
    """
    reader: Any = SimpleNamespace(__name__=__name__, Unpickler=StandInUnpickler, load=_load)
    forced = os.environ.pop(FORCE_TENSORS, None)  # torch would refuse any unpickler but its own
    try:
        return torch.load(file, map_location="cpu", pickle_module=reader, weights_only=False, mmap=mapped)
    finally:
        if forced is not None:
            os.environ[FORCE_TENSORS] = forced


def load_plain_pickle(file: BinaryIO) -> Any:
    """Unpickle a file of `pickle.dump`; raises `WouldRunError` where it calls a function."""
    return _load(file)


def _load(file: Any, **options: Any) -> Any:
    try:
        return StandInUnpickler(file, **options).load()
    except (IndexError, KeyError, struct.error) as error:  # of a stack or a memo that has no such place
        raise pickle.UnpicklingError("its pickle is broken") from error


def _dotted(module: str, name: str) -> str:
    """Return a global's dotted name; pickles of protocol 2 spell the standard library as Python 2 did."""
    module, name = NAME_MAPPING.get((module, name), (module, name))
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


def _of_standard_library(kind: str) -> bool:
    return kind.partition(".")[0] in {*sys.stdlib_module_names, "__builtin__", "commands", "nt", "posix"}


def _known() -> Mapping[str, Any]:
    """Return what stands for the names that may be called or kept as they are."""
    if not _KNOWN:
        from torch._weights_only_unpickler import _get_allowed_globals  # no public name exists

        for kind, item in _get_allowed_globals().items():
            if kind not in _VALUE_CLASSES:
                _KNOWN[kind] = Maker(item) if callable(item) else item
        for kind, function in _OWN.items():
            _KNOWN[kind] = Maker(function)
    return _KNOWN


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_rest: Any) -> Tensor:
    """Rebuild a tensor without its hooks."""
    return torch._utils._rebuild_tensor(storage, offset, size, stride)  # type: ignore[no-any-return, no-untyped-call]


def _parameter(data: Any, requires_grad: Any, *_rest: Any) -> nn.Parameter:
    if not isinstance(data, Tensor):
        raise pickle.UnpicklingError("a parameter without its tensor")
    return nn.Parameter(data, requires_grad=bool(requires_grad))


def _of_subclass(function: Any, _kind: Any, args: Any, _state: Any) -> Any:
    """Rebuild a tensor of a subclass as a plain tensor."""
    if not isinstance(function, Maker):
        raise pickle.UnpicklingError("a tensor that an unknown function would make")
    return function(*args)


def _storage(data: bytes) -> Any:
    """Return the storage that `pickle.dump` of a tensor leaves as bytes."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _array(_kind: Any, _shape: Any, _letter: Any) -> np.ndarray[Any, Any]:
    return np.ndarray((0,), dtype="b")  # BUILD fills it


def _array_of_bytes(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray[Any, Any]:
    return np.frombuffer(bytearray(data), dtype=dtype).reshape(shape, order=order)


def _dtype(text: Any, *flags: Any) -> Any:
    if not isinstance(text, str):
        raise pickle.UnpicklingError("a dtype that is no text")
    return np.dtype(text, *flags)


def _encoded(text: str, codec: str = "latin1") -> bytes:
    if codec not in ("latin1", "latin-1", "utf-8", "ascii"):  # others are looked up, which imports
        raise pickle.UnpicklingError(f"bytes in the codec {codec}")
    return text.encode(codec)


_SCALAR: Any = np.float64(0).__reduce__()[0]
_KNOWN: dict[str, Any] = {}
_OWN: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _of_subclass,
    "torch.storage._load_from_bytes": _storage,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "_codecs.encode": _encoded,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray._reconstruct": _array,
    "numpy._core.multiarray._reconstruct": _array,
    "numpy.core.numeric._frombuffer": _array_of_bytes,
    "numpy._core.numeric._frombuffer": _array_of_bytes,
    "numpy.core.multiarray.scalar": _SCALAR,
    "numpy._core.multiarray.scalar": _SCALAR,
}
