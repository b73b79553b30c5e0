"""Weights that a file keeps in parts: weight norm, spectral norm and pruning masks, read as what they make.

Both spellings of PyTorch are known: `weight_g` and `weight_v`, or `parametrizations.weight.original0` and
`original1`, and so on. The network has the effective weight under the plain name. Pruning is written back in
its parts, which is exact; a norm is folded into a plain weight where that weight was changed, because parts
whose quotient is the weight to the last bit cannot be found on every machine.
"""

import copy
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm

_BESIDE = ("_g", "_v", "_u", "_mask", "_orig")
_NEW = re.compile(r"^(?P<owner>.*?)parametrizations\.(?P<name>[^.]+)\.(?P<part>original[01]?|\d+\..+)$")
_OF_EVERY_CLASS = ("__dict__", "__weakref__")

ADVICE = {
    "weight norm": "call remove_weight_norm or remove_parametrizations before you load it",
    "spectral norm": "call remove_spectral_norm or remove_parametrizations before you load it",
}


@dataclass(frozen=True, eq=False)
class Reparametrisation:
    """How a file keeps one weight: `how`, the file's tensors it is made of, and what they make."""

    how: str
    parts: Mapping[str, Tensor]
    weight: Tensor

    def written(self, name: str, value: Tensor) -> dict[str, Tensor]:
        """Return the tensors that keep `value`, by the file's names: its parts, or the weight itself."""
        if torch.equal(value, self.weight):
            return dict(self.parts)
        if self.how != "pruning mask":
            return {name: value}
        original, mask = (self.parts[f"{name}{end}"] for end in ("_orig", "_mask"))
        kept = mask.bool() | (value != 0)
        return {
            f"{name}_orig": torch.where(kept, value.detach().to(original.dtype), original),
            f"{name}_mask": kept.to(mask.dtype),
        }


def effective_weights(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Reparametrisation]]:
    """Return the tensors with parts replaced by what they make, and how the file keeps each such weight."""
    forms = dict(_forms(tensors))
    owner = {part: name for name, form in forms.items() for part in form.parts}
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name in owner:
            found.setdefault(owner[name], forms[owner[name]].weight)
        else:
            found[name] = value
    return found, forms


def remarks_on(
    tensors: Mapping[str, Tensor], forms: Mapping[str, Reparametrisation], where: str
) -> tuple[str, ...]:
    """Say which weights were put together, what becomes of them, and which could not be."""
    told = []
    for how, count in Counter(form.how for form in forms.values()).items():
        first = next(name for name, form in forms.items() if form.how == how)
        after = (
            "written back as *_orig and *_mask, which opens where a changed weight is not zero"
            if how == "pruning mask"
            else f"a changed one is written back as a plain weight: {ADVICE[how]}"
        )
        what = "weight is" if count == 1 else "weights are"
        told.append(f"{where}: {count} {what} read through {how} ({first}{', ...' * (count > 1)}); {after}")
    told += [
        f"{where}: '{name}' is part of a re-parametrisation that is not known, and is passed over; "
        "save the network after remove_parametrizations"
        for name in tensors
        if name.endswith("_orig") or re.search(r"parametrizations\.[^.]+\.original0?$", name)
    ]
    return tuple(told)


def plain_module(model: nn.Module) -> nn.Module:
    """Return the network with the known re-parametrisations folded into plain weights; it is changed."""
    for module in list(model.modules()):
        if isinstance(module, parametrize.ParametrizationList):
            continue
        names = _known_parametrisations(module)
        if names:  # a copy shares the class that was made for the first one
            own = {key: item for key, item in vars(type(module)).items() if key not in _OF_EVERY_CLASS}
            module.__class__ = type(type(module).__name__, type(module).__bases__, own)
        for name in names:
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        for hook in list(module._forward_pre_hooks.values()):
            _fold_hook(module, hook)
    return model


def _fold_hook(module: nn.Module, hook: Any) -> None:
    """Fold what an older re-parametrisation, which is a hook of the module, makes of its weight."""
    kind = type(hook).__name__ if type(hook).__module__.startswith("torch.nn.utils.") else ""
    if isinstance(hook, prune.BasePruningMethod):
        prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]
    elif kind == "WeightNorm":
        remove_weight_norm(module, hook.name)
    elif kind == "SpectralNorm":
        remove_spectral_norm(module, hook.name)
        for key, item in list(module._load_state_dict_pre_hooks.items()):  # it forgets this one
            if type(getattr(item, "hook", item)).__name__ == "SpectralNormLoadStateDictPreHook":
                del module._load_state_dict_pre_hooks[key]


def plain_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a network on the CPU, in evaluation mode, with plain weights."""
    # what a hook computed is no leaf of its graph, and only leaves can be copied
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return plain_module(copy.deepcopy(model, computed).cpu().eval())


def _known_parametrisations(module: nn.Module) -> list[str]:
    """Name the tensors of a module whose only parametrisation is a weight norm or a spectral norm."""
    if not parametrize.is_parametrized(module):
        return []
    lists: Any = module.parametrizations
    return [
        name
        for name, items in lists.items()
        if len(items) == 1 and type(items[0]).__name__ in ("_WeightNorm", "_SpectralNorm")
    ]


def _forms(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Reparametrisation]]:
    """Yield (plain name, form) for every weight that stands in parts that are all there."""
    grouped: dict[str, dict[str, str]] = {}
    for name in tensors:
        new = _NEW.match(name)
        if new:
            grouped.setdefault(new["owner"] + new["name"], {})[new["part"]] = name
        end = next((end for end in _BESIDE if name.endswith(end)), None)
        if end:
            grouped.setdefault(name.removesuffix(end), {})[end] = name
    for name, keys in grouped.items():
        form = None if name in tensors else _form({part: tensors[key] for part, key in keys.items()}, keys)
        if form is not None:
            yield name, form


def _form(parts: Mapping[str, Tensor], keys: Mapping[str, str]) -> Reparametrisation | None:
    """Return what the parts of one weight make, None where they are no form that is known."""
    named = {keys[part]: value for part, value in parts.items()}
    if any(value.layout != torch.strided or value.is_meta for value in parts.values()):
        return None
    if any(not value.is_floating_point() for part, value in parts.items() if part != "_mask"):
        return None
    have = set(parts)
    if have == {"_g", "_v"} or have == {"original0", "original1"}:
        weight = _weight_normed(*(parts[part] for part in sorted(have)))
        return None if weight is None else Reparametrisation("weight norm", named, weight)
    if have == {"_orig", "_mask"} and parts["_orig"].shape == parts["_mask"].shape:
        return Reparametrisation(
            "pruning mask", named, parts["_orig"].detach() * parts["_mask"].to(parts["_orig"].dtype)
        )
    if have == {"_orig", "_u", "_v"}:
        weight = _spectrally_normed(parts["_orig"], parts["_u"], parts["_v"])
    elif have == {"original", "0._u", "0._v"}:
        weight = _spectrally_normed(parts["original"], parts["0._u"], parts["0._v"])
    else:
        return None
    return None if weight is None else Reparametrisation("spectral norm", named, weight)


def _weight_normed(length: Tensor, direction: Tensor) -> Tensor | None:
    """Return g v / ||v||, the norm over all axes on which g has one entry; None where shapes do not fit."""
    wide = _wide(direction)
    if direction.ndim < 2:
        return None
    if length.ndim == 0:
        return torch._weight_norm(wide, _wide(length).to(wide.dtype), -1).to(direction.dtype)
    kept = [axis for axis, size in enumerate(length.shape) if size != 1]
    if length.ndim != direction.ndim or len(kept) > 1:
        return None
    axis = kept[0] if kept else next((at for at, size in enumerate(direction.shape) if size == 1), -1)
    if kept and length.shape[axis] != direction.shape[axis]:
        return None
    return torch._weight_norm(wide, _wide(length).to(wide.dtype), axis).to(direction.dtype)


def _spectrally_normed(weight: Tensor, left: Tensor, right: Tensor) -> Tensor | None:
    """Return W / (u . W v); W is flattened along axis 0, or 1 as transposed convolutions are."""
    wide = _wide(weight)
    u, v = _wide(left).to(wide.dtype), _wide(right).to(wide.dtype)
    choices = []
    for axis in (0, 1)[: weight.ndim]:
        matrix = wide.movedim(axis, 0).flatten(1)
        if tuple(matrix.shape) == (u.numel(), v.numel()):
            product = torch.mv(matrix, v)
            choices.append((float((product / product.norm() - u).norm()), torch.dot(u, product)))
    if not choices:
        return None
    # where both axes fit, u is the image of v along the right one
    _, sigma = min(choices, key=lambda item: item[0])
    return (wide / sigma).to(weight.dtype)


def _wide(tensor: Tensor) -> Tensor:
    """Return a copy, in float32 at least: numbers as they lie in a mapped file may add up otherwise."""
    tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
