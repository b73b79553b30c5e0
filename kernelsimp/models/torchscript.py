"""Read the weights of a TorchScript archive without handing it to the TorchScript interpreter.

The pickle is read by an unpickler that knows tensors and inert stand-ins for modules, nothing else; the
program text is parsed, never run, for the groups of each convolution. Weights of a frozen module stand
among its constants, named `constants.c0` and so on.
"""

import ast
import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernelsimp.error_text import short
from kernelsimp.errors import CheckpointError
from kernelsimp.files import quiet
from kernelsimp.models.archive import Archive, flat, strided_view
from kernelsimp.models.exported import Convolution, Exported

_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

MOST_MODULES = 100_000
"""Modules that hold one another can be seen as millions; no network has as many."""

MOST_TEXT = 1 << 20
"""Bytes of program text that are parsed, which takes ten seconds and 600 MB."""

_LISTS = {"build_intlist", "build_tensorlist", "build_doublelist", "build_boollist"}


class _Module:
    """A stand-in for a pickled module: the name of its class, and its attributes once they are set."""

    kind = ""
    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_torchscript(path: Path) -> Exported:
    """Return the tensors of a TorchScript archive and the convolutions its program text shows.

    Raises `CheckpointError` where the archive is damaged or its pickle asks for anything unexpected.
    """
    try:
        with zipfile.ZipFile(path) as file, quiet():
            archive = Archive(file)
            calls, remarks = _calls_in(archive, path)
            tensors: dict[str, Tensor] = {}
            convolutions: dict[str, Convolution] = {}
            for name, owner, tensor in _tensors(archive):
                tensors[name] = tensor
                if owner in calls:
                    convolutions[name] = calls[owner]
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:
        raise CheckpointError(
            f"{path}: not a valid TorchScript archive ({short(error)}); save it again"
        ) from error
    return Exported(tensors, convolutions, remarks)


def _tensors(archive: Archive) -> Iterator[tuple[str, tuple[str, str], Tensor]]:
    """Yield (name, (class, attribute), tensor) of the module tree, then of the constants."""
    yield from _tensors_in(_Reader(archive, "data").load())
    constants = _Reader(archive, "constants").load()
    for number, value in enumerate(constants if isinstance(constants, tuple | list) else ()):
        if isinstance(value, Tensor):
            yield f"constants.c{number}", ("CONSTANTS", f"c{number}"), value


def _tensors_in(top: Any) -> Iterator[tuple[str, tuple[str, str], Tensor]]:
    """Yield what a tree of modules holds; raises `CheckpointError` where it is seen as more than any is."""
    waiting: list[tuple[str, Any, tuple[int, ...]]] = [("", top, ())]
    for _ in range(MOST_MODULES):
        if not waiting:
            return
        prefix, module, above = waiting.pop()
        inner = []
        for name, value in module.state.items() if _is_module(module) else ():
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", (module.kind, str(name)), value
            elif _is_module(value) and id(value) not in above:
                inner.append((f"{prefix}{name}.", value, (*above, id(module))))
        waiting += reversed(inner)
    raise CheckpointError(f"its modules are seen as more than {MOST_MODULES:,}; save a state dict instead")


def _is_module(value: Any) -> bool:
    return isinstance(value, _Module) and isinstance(value.state, dict)


class _Reader(pickle._Unpickler):
    """Unpickle tensors and stand-ins; every other name in the file is refused.

    The unpickler is the one in Python: that in C makes room for any place in its memo that a file names.
    """

    def __init__(self, archive: Archive, folder: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{folder}.pkl")))
        self._archive, self._folder = archive, folder
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return type("_StandIn", (_Module,), {"kind": f"{module}.{name}"})
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch.jit._pickle" and name in _LISTS:
            return list
        raise CheckpointError(
            f"a TorchScript archive that asks for {module}.{name}; save a state dict instead"
        )

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, *_ = pid
        if key not in self._storages:  # tied tensors name one storage
            self._storages[key] = flat(self._archive.read(f"{self._folder}/{key}"), dtype)
        return self._storages[key]


def _rebuild(storage: Tensor, offset: int, sizes: Any, strides: Any, *_rest: Any) -> Tensor:
    return strided_view(storage, sizes, strides, offset)


# ---------------------------------------------------------------- the program text

_Owner = tuple[str, str]


def _calls_in(archive: Archive, path: Path) -> tuple[dict[_Owner, Convolution], tuple[str, ...]]:
    """Return how the program text uses its weights, and a remark where there is too much of it."""
    size = sum(archive.size(record) for record in archive.records("code/", ".py"))
    if size <= MOST_TEXT:
        return dict(_calls(archive)), ()
    told = f"{path}: {size / 1e6:.1f} MB of program text are not read: kinds are guessed from shapes"
    return {}, (told,)


def _calls(archive: Archive) -> Iterator[tuple[_Owner, Convolution]]:
    """Yield ((class, attribute), use) for every convolution called with an attribute as its weight."""
    for record in archive.records("code/", ".py"):
        module = record.removeprefix("code/").removesuffix(".py").replace("/", ".")
        try:
            tree = ast.parse(archive.read(record))
        except (SyntaxError, ValueError, RecursionError):  # its kinds are then guessed from shapes
            continue
        for cls in [node for node in tree.body if isinstance(node, ast.ClassDef)]:
            for function in [node for node in cls.body if isinstance(node, ast.FunctionDef)]:
                yield from _calls_of(f"{module}.{cls.name}", function)


def _calls_of(kind: str, function: ast.FunctionDef) -> Iterator[tuple[_Owner, Convolution]]:
    owner = function.args.args[0].arg if function.args.args else ""
    named: dict[str, _Owner] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = _attribute(node.value, owner, kind)
            if value:
                named[node.targets[0].id] = value
    # a helper is handed the weight under the name of the attribute it came from
    named.setdefault("weight", (kind, "weight"))
    for node in ast.walk(function):
        use = convolution_of(node) if isinstance(node, ast.Call) and len(node.args) > 1 else None
        if use is None or not isinstance(node, ast.Call):
            continue
        weight = node.args[1]
        found = named.get(weight.id) if isinstance(weight, ast.Name) else _attribute(weight, owner, kind)
        if found:
            yield found, use


def _attribute(node: ast.expr, owner: str, kind: str) -> _Owner | None:
    """Return (class, attribute) of `self.x` or `CONSTANTS.c0`."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        if node.value.id == owner:
            return kind, node.attr
        if node.value.id == "CONSTANTS":
            return "CONSTANTS", node.attr
    return None


_PLACES = {"_convolution": (8, 6), "convolution": (8, 6)}
"""Where the groups and the flag of transposition stand among the arguments."""

_PLAIN = {f"conv{n}d": False for n in (1, 2, 3)} | {f"conv_transpose{n}d": True for n in (1, 2, 3)}
"""Convolutions whose name says whether they are transposed; their groups stand at place 6."""


def convolution_of(call: ast.Call) -> Convolution | None:
    """Return how a call of a torch convolution uses its weight."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    if name in _PLAIN:
        return Convolution(_number(call, 6, 1), _PLAIN[name], _largest(call, 3))
    if name in _PLACES:
        groups, transposed = _PLACES[name]
        return Convolution(_number(call, groups, 1), bool(_number(call, transposed, 0)), _largest(call, 3))
    return None


def _largest(call: ast.Call, place: int) -> int | None:
    """Return the largest of a list of constants at a place of a call, None where it is anything else."""
    node = call.args[place] if place < len(call.args) else None
    items = node.elts if isinstance(node, ast.List) else []
    numbers = [item.value for item in items if isinstance(item, ast.Constant)]
    whole = [number for number in numbers if isinstance(number, int)]
    return max(whole) if whole and len(whole) == len(items) else None


def _number(call: ast.Call, place: int, default: int) -> int:
    """Return the constant at a place of a call, or the default where it is left out."""
    node = call.args[place] if place < len(call.args) else None
    return int(node.value) if isinstance(node, ast.Constant) and isinstance(node.value, int) else default
