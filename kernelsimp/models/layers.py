"""Turn stored weights into a bank of kernels in canonical order, and back.

Canonical order is (out, in / groups, kh, kw); a one-dimensional kernel has a grid of (1, k), a
three-dimensional one (kd, kh, kw). Transposed convolutions store (in, out / groups, ...) and are turned
round. Without an architecture the kind of a layer is guessed from shapes alone, and says so.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kernelsimp.error_text import printable
from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.bank import KernelBank, Kind, LayerKernels, Skipped
from kernelsimp.models.checkpoint import Checkpoint
from kernelsimp.models.exported import Convolution
from kernelsimp.models.ranks import is_convolution
from kernelsimp.models.soundness import check_weights as check_weights
from kernelsimp.models.soundness import damage as damage
from kernelsimp.models.storage import unreal
from kernelsimp.models.stored_order import LONE, module_name
from kernelsimp.models.stored_order import canonical as canonical
from kernelsimp.models.stored_order import layer_name as layer_name
from kernelsimp.models.stored_order import stored_order as stored_order
from kernelsimp.models.stored_order import tensor_name as tensor_name

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


# ---------------------------------------------------------------- from a network


def conv_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the convolutions by layer name, a module or weight that occurs twice only once."""
    seen: set[int] = set()
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():  # names each shared module once
        if not isinstance(module, CONVOLUTIONS):
            continue
        weight = _plain_weight(module)
        if weight is None or id(weight) not in seen:
            found[name or LONE] = module
        seen.add(id(weight))
    return found


def bank_from_model(model: nn.Module, stored_as: Mapping[str, Tensor] | None = None) -> KernelBank:
    """Return the kernels of a network with the exact kinds and groups of its modules.

    With `stored_as`, a checkpoint's tensors by the network's names, kernels are taken from there, in their
    stored dtype and memory-mapped where the file is; else they are the network's own. Raises
    `KernelsimpError`, saying what was found instead, where there is no convolution.
    """
    layers: list[LayerKernels] = []
    reasons: dict[str, str] = {}
    for name, module in conv_modules(model).items():
        weight = _plain_weight(module)
        if weight is None or is_lazy(weight):
            reasons.update(dict.fromkeys(_tensors_of(name, module), _why_not_plain(weight)))
        else:
            layers.append(_layer_of(name, module, (stored_as or {}).get(tensor_name(name), weight)))
    used = {tensor_name(layer.name) for layer in layers}
    tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    tied = _tied_weights(model, used)
    skipped = tuple(
        Skipped(name, reasons.get(name) or tied.get(name) or _reason(name, value, from_model=True))
        for name, value in tensors.items()
        if name not in used
    )
    return _nonempty(KernelBank(tuple(layers), skipped), tensors, "the network")


def kind_of(inputs: int, groups: int, *, transposed: bool = False) -> Kind:
    """Name the kind of a convolution; `groups == out` alone would also fit a single output."""
    if transposed:
        return "transposed"
    if inputs == 1:
        return "single-input"
    if groups == inputs:
        return "depthwise"
    return "grouped" if groups > 1 else "dense"


def _layer_of(name: str, module: nn.Module, weight: Tensor) -> LayerKernels:
    groups, inputs = int(getattr(module, "groups", 1)), int(getattr(module, "in_channels", 0))
    kind = kind_of(inputs, groups, transposed=isinstance(module, TRANSPOSED))
    kernels = canonical(weight.detach(), kind, groups)
    return LayerKernels(name, kind, kernels, groups, "architecture", tuple(weight.shape))


def _plain_weight(module: nn.Module) -> Tensor | None:
    """Return the weight parameter, or None where it is computed from others (weight norm...)."""
    return module._parameters.get("weight")


def _why_not_plain(weight: Tensor | None) -> str:
    if weight is None:
        return "part of a re-parametrised convolution; remove the parametrisation first"
    return "lazy convolution without a shape yet; run the network once first"


def _tensors_of(name: str, module: nn.Module) -> Iterator[str]:
    """Yield the state-dict names of a module's tensors other than its bias."""
    for key in module.state_dict(keep_vars=True):
        if key != "bias":
            yield f"{name}.{key}" if module_name(name) else key


def tied_names(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Return the groups of state-dict names that are one parameter of the network."""
    groups: dict[int, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(weight), []).append(name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def _tied_weights(model: nn.Module, used: set[str]) -> dict[str, str]:
    """Return, for each further name of a weight that the bank already has, the sentence that says so."""
    reasons: dict[str, str] = {}
    for names in tied_names(model):
        first = next((name for name in names if name in used), None)
        if first is not None:
            reasons.update({name: f"the same tensor as {first}" for name in names if name != first})
    return reasons


# ---------------------------------------------------------------- from weights alone


@dataclass(frozen=True)
class _Widths:
    """The (out, in) widths of every layer with a weight matrix, in file order."""

    names: tuple[str, ...]
    outputs: tuple[int, ...]
    inputs: tuple[int, ...]
    ordered: bool

    def depthwise(self, name: str) -> bool:
        """Say whether other layers match this one's width on both sides.

        Something must put out as many channels before it and something take as many after it; where the
        file is sorted by name, before and after are unknown, but the first layer still has none before.
        """
        at = self.names.index(name)
        width = self.outputs[at]
        before = range(at) if self.ordered else [i for i in range(len(self.names)) if i != at and at > 0]
        after = (
            range(at + 1, len(self.names)) if self.ordered else [i for i in range(len(self.names)) if i != at]
        )
        return any(self.outputs[i] == width for i in before) and any(self.inputs[i] == width for i in after)


def bank_from_tensors(tensors: Mapping[str, Tensor], where: str = "the checkpoint") -> KernelBank:
    """Return the kernels of a state dict without its network: each 4-D `*.weight` is a convolution.

    A 3-D or 5-D one is, where a bias or a normalisation beside it says so; others are warned of. Kinds are
    guessed from shapes. Raises `KernelsimpError`, saying what was found instead, where there is
    no convolution.
    """
    widths = _widths(tensors)
    layers: list[LayerKernels] = []
    skipped: list[Skipped] = []
    seen: dict[object, str] = {}
    doubtful: list[str] = []
    for name, tensor in tensors.items():
        reason = _reason(name, tensor)
        other_rank = reason.endswith(DOUBTFUL)
        guessed = other_rank and is_convolution(name, tensors)
        reason = (unreal(tensor) if guessed else reason) or _seen_before(name, tensor, seen)
        doubtful += [layer_name(name)] if other_rank and not guessed else []
        if reason:
            skipped.append(Skipped(name, reason))
        else:
            layer = _guess_kind(name, tensor, _bias_of(name, tensors), widths)
            layers.append(replace(layer, kind_source="guessed") if guessed else layer)
    remarks = [f"{where}: {words}; it is passed over" for words in _unreal_kernels(tensors)]
    remarks += [f"{where}: {_passed_over(doubtful)}"] if doubtful else []
    return _nonempty(KernelBank(tuple(layers), tuple(skipped), tuple(remarks)), tensors, where)


def _passed_over(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    listed = f"{', '.join(names[:MOST_NAMED])}{more}"
    return f"{listed}: 3-D or 5-D and passed over, nothing shows a convolution{DOUBTFUL}"


def _guess_kind(name: str, weight: Tensor, bias: Tensor | None, widths: _Widths) -> LayerKernels:
    kind: Kind = "dense"
    groups = 1
    if weight.shape[1] == 1:
        depthwise = weight.shape[0] > 1 and widths.depthwise(name)
        kind, groups = ("depthwise", int(weight.shape[0])) if depthwise else ("single-input", 1)
    elif bias is not None and bias.ndim == 1 and bias.shape[0] != weight.shape[0]:
        # a transposed convolution stores (in, out / groups, ...), so its bias is not as long as axis 0
        groups = max(1, bias.shape[0] // weight.shape[1])
        fits = bias.shape[0] == groups * weight.shape[1] and weight.shape[0] % groups == 0
        kind, groups = ("transposed", groups) if fits else ("dense", 1)
    kernels = canonical(weight.detach(), kind, groups)
    return LayerKernels(layer_name(name), kind, kernels, groups, "weights", tuple(weight.shape))


def _bias_of(weight: str, tensors: Mapping[str, Tensor]) -> Tensor | None:
    return tensors.get(f"{weight.removesuffix('weight')}bias")


def _widths(tensors: Mapping[str, Tensor]) -> _Widths:
    names = [name for name, value in tensors.items() if name.endswith("weight") and value.ndim >= 2]
    everything = list(tensors)
    return _Widths(
        names=tuple(names),
        outputs=tuple(int(tensors[name].shape[0]) for name in names),
        inputs=tuple(int(tensors[name].shape[1]) for name in names),
        ordered=everything != sorted(everything),
    )


def _place(tensor: Tensor) -> object:
    """Return what two names of one tensor have in common."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def _seen_before(name: str, tensor: Tensor, seen: dict[object, str]) -> str:
    """Say which earlier tensor this one is a second name of, or nothing."""
    first = seen.setdefault(_place(tensor), name)
    return "" if first == name else f"the same tensor as {first}"


DOUBTFUL = ", pass --arch"
"""How the reasons end that an architecture would settle."""

MOST_NAMED = 5

_BY_NDIM = {0: "a scalar", 1: "a vector: bias or normalisation", 2: "a matrix: linear layer or embedding"}


def _reason(name: str, tensor: Tensor, *, from_model: bool = False) -> str:
    """Say why a tensor is no kernel of the bank; nothing if it is a convolution by its name and shape."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        return unreal(tensor)
    if tensor.ndim in _BY_NDIM:
        return _BY_NDIM[tensor.ndim]
    if from_model:
        return f"{tensor.ndim}-D, but no convolution uses it"
    if not name.endswith(".weight") and name != "weight":
        return f"{tensor.ndim}-D, but not named *.weight: a table, an embedding or a re-parametrised weight"
    if tensor.ndim != 4:
        guess = {3: f"; if it is a Conv1d{DOUBTFUL}", 5: f"; if it is a Conv3d{DOUBTFUL}"}
        return f"{tensor.ndim}-D{guess.get(tensor.ndim, '')}"
    return unreal(tensor)


def _unreal_kernels(tensors: Mapping[str, Tensor]) -> list[str]:
    """Say of each convolution by name and shape whose numbers cannot be read which it is, and why."""
    shaped = {name: value for name, value in tensors.items() if value.ndim == 4 and name.endswith("weight")}
    return [f"'{name}' is {reason}" for name, value in shaped.items() if (reason := unreal(value))]


def _nonempty(bank: KernelBank, tensors: Mapping[str, Tensor], where: str) -> KernelBank:
    if bank.layers:
        return bank
    counts = Counter(f"{tensor.ndim}-D" for tensor in tensors.values())
    listed = ", ".join(f"{count} {what}" for what, count in sorted(counts.items())) or "nothing at all"
    advice = (
        "3-D and 5-D weights need --arch" if {"3-D", "5-D"} & set(counts) else "expected a 4-D '*.weight'"
    )
    advice = next(iter(_unreal_kernels(tensors)), advice)
    raise KernelsimpError(f"{where}: no convolution found among {len(tensors)} tensors ({listed}); {advice}")


# ---------------------------------------------------------------- from a file of any kind


def bank_from_checkpoint(checkpoint: Checkpoint) -> KernelBank:
    """Return the kernels of a checkpoint, with the kinds its graph shows where it is an exported network.

    Raises `KernelsimpError`, saying what was found instead, where there is no convolution.
    """
    uses = checkpoint.raw.convolutions if checkpoint.raw else None
    if uses is None:
        return bank_from_tensors(checkpoint.tensors, str(checkpoint.path))
    exact = checkpoint.format != "torchscript"  # its program text may hide a use
    widths = _widths(checkpoint.tensors)
    layers: list[LayerKernels] = []
    skipped = [Skipped(name, why) for name, why in checkpoint.raw.unseen.items()] if checkpoint.raw else []
    seen: dict[object, str] = {}
    remarks: list[str] = []
    # a graph names a tied weight once, perhaps by its second name
    places = {_place(checkpoint.tensors[name]): use for name, use in uses.items()}
    for name, tensor in checkpoint.tensors.items():
        use = uses.get(name) or places.get(_place(tensor))
        misfit = _misfit(tensor, use) if use else ""
        remarks += [f"{checkpoint.path}: '{printable(name)}' {misfit}; it is passed over"] if misfit else []
        reason = misfit or ("" if use else _reason(name, tensor, from_model=exact))
        reason = reason or unreal(tensor) or _seen_before(name, tensor, seen)
        if reason:
            skipped.append(Skipped(name, reason))
        elif use:
            layers.append(_kernels_of_use(name, tensor, use))
        else:
            layers.append(_guess_kind(name, tensor, _bias_of(name, checkpoint.tensors), widths))
    bank = KernelBank(tuple(layers), tuple(skipped), (*checkpoint.warnings, *remarks))
    return _nonempty(bank, checkpoint.tensors, str(checkpoint.path))


def _misfit(weight: Tensor, use: Convolution) -> str:
    """Say why a weight cannot be that of the convolution that uses it; nothing where it can."""
    if not 3 <= weight.ndim <= 5:
        return f"is {weight.ndim}-D, and the graph convolves with it"
    if use.groups < 1 or weight.shape[0] % use.groups:
        return f"of {weight.shape[0]:,} channels is convolved in {use.groups} groups"
    return ""


def _kernels_of_use(name: str, weight: Tensor, use: Convolution) -> LayerKernels:
    inputs = int(weight.shape[0]) if use.transposed else int(weight.shape[1]) * use.groups
    kind = kind_of(inputs, use.groups, transposed=use.transposed)
    kernels = canonical(weight, kind, use.groups)
    return LayerKernels(layer_name(name), kind, kernels, use.groups, "architecture", tuple(weight.shape))
