"""A checkpoint as read from disk, and its edited twin written back in the same form.

Tensor names here are those of the network: prefixes of wrappers are stripped on reading and restored on
writing. Tensors stay as stored (dtype, shape, memory-mapped where the file is); "bit for bit" speaks of
tensors, not of file bytes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from kernelsimp.errors import CheckpointError, KernelsimpError, did_you_mean
from kernelsimp.models.digest import tensors_sha256 as tensors_sha256
from kernelsimp.models.folders import is_in_parts, read_parts
from kernelsimp.models.identify import Format, identify
from kernelsimp.models.reading import Raw, read_raw
from kernelsimp.models.reparametrised import Reparametrisation, effective_weights, remarks_on
from kernelsimp.models.shards import Shards
from kernelsimp.models.snapshot import file_sha256, steady
from kernelsimp.models.storage import tensors_with_numbers
from kernelsimp.models.wrappers import (
    FoundState,
    as_tensor,
    common_prefix,
    find_state_dict,
    in_the_form_of,
    is_array,
    names_without_wrappers,
    value_at,
    without_parallel,
)
from kernelsimp.models.writing import check_is_written, write_state
from kernelsimp.settings import ModelSettings


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The chosen state dict of one file, and what is needed to write it again.

    `tensors` are in file order with `prefix` stripped; `wrapper` is the dotted path of keys that led to
    them, None where they stood bare; `dropped` names the entries that `save` leaves out (optimiser state,
    the weights that were not chosen). `ties` groups names that the network reads as one tensor, though the
    file may store it more than once. `forms` says, by the file's names, which tensors are made of several
    in the file; `spelled` says how the file spells a name in which wrappers of modules stand. `shards` are
    the files of a network that stands in several.
    """

    path: Path
    format: Format
    tensors: Mapping[str, Tensor]
    prefix: str = ""
    wrapper: str | None = None
    dropped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    raw: Raw | None = field(default=None, repr=False)
    found: FoundState = field(default=FoundState(()), repr=False)
    ties: tuple[tuple[str, ...], ...] = ()
    digest: str = ""
    forms: Mapping[str, Reparametrisation] = field(default_factory=dict, repr=False)
    spelled: Mapping[str, str] = field(default_factory=dict, repr=False)
    shards: Shards | None = field(default=None, repr=False)

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the file that was read (or of the tensors, where there was none), 64 digits."""
        return self.digest or file_sha256(self.path)

    @property
    def stored_state(self) -> dict[str, Tensor]:
        """Every tensor of the state dict as it was read, in file order, under the names of the file.

        A weight that the file keeps in parts is there under its plain name.
        """
        state = value_at(self.raw.payload, self.found.keys) if self.raw else {}
        plain = {name: key for key, name in self.spelled.items()}
        tensors = {
            plain.get(str(name), str(name)): as_tensor(value)
            for name, value in state.items()
            if is_array(value)
        }
        owner = {part: name for name, form in self.forms.items() for part in form.parts}
        return {
            self.spelled.get(owner.get(name, name), owner.get(name, name)): self.forms[owner[name]].weight
            if name in owner
            else value
            for name, value in tensors.items()
        }

    @property
    def current_state(self) -> dict[str, Tensor]:
        """Every tensor as it is now, under the names and in the order of the file."""
        state = self._state(value_at(self.raw.payload, self.found.keys) if self.raw else {})
        return {name: as_tensor(value) for name, value in state.items() if is_array(value)}

    def name_in_file(self, name: str) -> str:
        """Return how the file spells the name of one of the network's tensors."""
        return self.spelled.get(self.prefix + name, self.prefix + name)

    def under(self, prefix: str) -> "Checkpoint":
        """Return the part whose names begin with `prefix`, which is taken off; `save` still writes it all."""
        part = {name[len(prefix) :]: item for name, item in self.tensors.items() if name.startswith(prefix)}
        return replace(self, tensors=part, prefix=self.prefix + prefix)

    def without_parallel(self) -> "Checkpoint | None":
        """Return this checkpoint by names without the `module.` of wrapped parts; `save` still writes it.

        None where no name has it, or two would become one.
        """

        def plain(name: str) -> str:
            kept = self.prefix if name.startswith(self.prefix) else ""
            return kept + without_parallel(name[len(kept) :])

        names = {value: key for key, value in self.spelled.items()}
        names |= {name: name for name in self.own_names if name not in names}
        fresh = {plain(name): key for key, name in names.items()}
        tensors = {without_parallel(name): item for name, item in self.tensors.items()}
        if (
            tensors.keys() == self.tensors.keys()
            or len(tensors) < len(self.tensors)
            or len(fresh) < len(names)
        ):
            return None
        forms = {
            plain(name): replace(form, parts={plain(part): item for part, item in form.parts.items()})
            for name, form in self.forms.items()
        }
        spelled = {name: key for name, key in fresh.items() if name != key}
        return replace(self, tensors=tensors, forms=forms, spelled=spelled)

    def with_tensors(self, changed: Mapping[str, Tensor]) -> "Checkpoint":
        """Return this checkpoint with some tensors changed, cast to their stored dtypes.

        Tensors that share memory in the file go on sharing it, so a change of one is a change of all.
        Raises `KernelsimpError` for an unknown name, another shape, or tied tensors given different values.
        """
        for name, value in changed.items():
            self._check_change(name, value)
        changed = self._spread(changed)
        tensors = dict(self.tensors)
        for names in _groups_by_storage(self.tensors):
            if any(name in changed for name in names):
                _edit_together(tensors, names, changed)
        return replace(self, tensors=tensors)

    def check_can_save(self) -> None:
        """Raise `KernelsimpError` where `save` would refuse the format."""
        if self.raw is None:
            raise KernelsimpError(f"{self.path}: there is no file to write it as")
        check_is_written(self.raw.format, self.path)

    def save(self, path: Path) -> None:
        """Write the checkpoint in its container, wrapper, names and order; whole or not at all.

        Raises `KernelsimpError` where the disk refuses or the format is one that is only read.
        """
        self.check_can_save()
        assert self.raw is not None
        state = self._state(value_at(self.raw.payload, self.found.keys))
        if self.shards is None:
            write_state(self.raw, self.found, state, path)
            return
        first = {name: next(iter(form.parts)) for name, form in self.forms.items()}
        spell = self.spelled.get
        folded = {spell(name, name): spell(part, part) for name, part in first.items()}
        self.shards.write(path, state, folded)

    @property
    def own_names(self) -> set[str]:
        """The names that the file has for the tensors of the network, parts of weights included."""
        names = {self.prefix + name for name in self.tensors}
        names |= {part for name in names & set(self.forms) for part in self.forms[name].parts}
        return {self.spelled.get(name, name) for name in names}

    def _state(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Return what was stored with the tensors as they are now, in the names and the order of the file."""
        plain = {name: key for key, name in self.spelled.items()}
        stored = {plain.get(name, name): value for name, value in stored.items()}
        written: dict[str, Tensor] = {}
        replaced: dict[str, list[str]] = {}
        for short_name, value in self.tensors.items():
            name = self.prefix + short_name
            form = self.forms.get(name)
            if form is None:
                written[name] = value
                continue
            fresh = form.written(name, value)
            written.update(fresh)
            if set(fresh) != set(form.parts):
                replaced[next(key for key in stored if key in form.parts)] = list(fresh)
                replaced.update({part: [] for part in form.parts if part not in replaced})
        state: dict[str, Any] = {}
        for name, value in stored.items():
            for key in replaced.get(name, [name]):
                state[key] = in_the_form_of(value, written.pop(key, value))
        return {self.spelled.get(name, name): value for name, value in {**state, **written}.items()}

    def _spread(self, changed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give a change of one name to all names that the network ties to it."""
        spread = dict(changed)
        for names in self.ties:
            given = [name for name in names if name in changed]
            if any(not torch.equal(changed[name], changed[given[0]]) for name in given):
                raise KernelsimpError(_tied_apart(given[0], given[1:]))
            spread.update({name: changed[given[0]] for name in names if given and name in self.tensors})
        return spread

    def _check_change(self, name: str, value: Tensor) -> None:
        if name not in self.tensors:
            raise KernelsimpError(f"{self.path}: no tensor '{name}'{did_you_mean(name, self.tensors)}")
        have = tuple(self.tensors[name].shape)
        if tuple(value.shape) != have:
            raise KernelsimpError(f"{self.path}: '{name}' is {have}, cannot become {tuple(value.shape)}")


def load_checkpoint(path: Path, settings: ModelSettings = ModelSettings()) -> Checkpoint:  # noqa: B008 (frozen)
    """Read a checkpoint onto the CPU without running code from it.

    Raises `CheckpointError`, in one line, for whatever is missing, damaged, foreign or hostile, and where
    the file's SHA-256 is not the one asked for.
    """
    if is_in_parts(path):
        raw, shards, digest = read_parts(path, lambda part: _read(part, replace(settings, sha256=None)))
        if settings.sha256 is not None:
            _verify_sha256(path, digest, settings.sha256)
        return replace(_chosen(path, raw, settings.weights, digest), shards=shards)
    raw, digest = _read(path, settings)
    if raw.convolutions is not None:  # an exported graph: its names are the network's own
        tensors = tensors_with_numbers(raw.payload, path)
        return Checkpoint(path, raw.format, tensors, warnings=raw.warnings, raw=raw, digest=digest)
    return _chosen(path, raw, settings.weights, digest)


def _read(path: Path, settings: ModelSettings) -> tuple[Raw, str]:
    """Return what one file holds, and its SHA-256."""
    file_format = identify(path)
    with steady(path) as digest:
        if settings.sha256 is not None:
            _verify_sha256(path, digest, settings.sha256)
        raw = read_raw(path, file_format, trust_pickle=settings.trust_pickle)
    return raw, digest


def checkpoint_in_memory(state: Mapping[str, Any], name: str) -> Checkpoint:
    """Return a state dict, wrapped or bare, as the checkpoint that `torch.save` would make of it.

    Tensors are copies on the CPU; `name` stands in errors where a path would. Raises `CheckpointError` where
    there is no state dict.
    """
    copied = tree_map_only(Tensor, lambda tensor: tensor.detach().cpu().clone(), dict(state))
    chosen = _chosen(Path(name), Raw("zip", copied), None, "")
    return replace(chosen, digest=tensors_sha256(chosen.tensors))


def _chosen(path: Path, raw: Raw, weights: str | None, digest: str) -> Checkpoint:
    """Return the state dict that `weights` asks for of what was read, or the obvious one."""
    found = find_state_dict(raw.payload, weights, path)
    state = value_at(raw.payload, found.keys)
    named = {
        key: as_tensor(value) for key, value in state.items() if isinstance(key, str) and is_array(value)
    }
    named = tensors_with_numbers(named, path)
    prefix = common_prefix(list(named))
    spelled = names_without_wrappers(list(named), prefix)
    named = {name: named[key] for name, key in spelled.items()}
    named, forms = effective_weights(named)
    remarks = remarks_on(named, forms, str(path))
    return Checkpoint(
        path=path,
        format=raw.format,
        tensors={key[len(prefix) :]: value for key, value in named.items() if key.startswith(prefix)},
        prefix=prefix,
        wrapper=".".join(found.keys) or None,
        dropped=found.dropped,
        warnings=(*raw.warnings, *found.warnings, *remarks),
        raw=raw,
        found=found,
        digest=digest,
        forms=forms,
        spelled={name: key for name, key in spelled.items() if name != key},
    )


def _verify_sha256(path: Path, actual: str, expected: str) -> None:
    """Raise `CheckpointError` unless the file has the SHA-256 that was asked for."""
    wanted = expected.strip().lower()
    if len(wanted) != 64 or set(wanted) - set("0123456789abcdef"):
        raise CheckpointError(f"--sha256 '{expected}' is no SHA-256; expected 64 hexadecimal digits")
    if actual != wanted:
        raise CheckpointError(f"{path}: SHA-256 is {actual}, expected {wanted}; fetch the file again")


def _groups_by_storage(tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Yield the names of tensors that share one storage, those that stand alone included."""
    groups: dict[object, list[str]] = {}
    for name, tensor in tensors.items():
        strided = tensor.layout == torch.strided and tensor.device.type == "cpu"
        storage = tensor.untyped_storage().data_ptr() if strided else 0
        groups.setdefault((storage, tensor.dtype) if storage else name, []).append(name)
    yield from groups.values()


def _edit_together(tensors: dict[str, Tensor], names: list[str], changed: Mapping[str, Tensor]) -> None:
    """Copy the storage that `names` share, give each its view of the copy, and write the changes there."""
    storage = _copy_of(tensors[names[0]].untyped_storage())
    for name in names:
        old = tensors[name].detach()
        view = torch.empty(0, dtype=old.dtype).set_(storage, old.storage_offset(), old.shape, old.stride())
        if name in changed:
            view.copy_(changed[name].detach())
        tensors[name] = _like(tensors[name], view)
    for name in names:
        if name in changed and not _same(tensors[name], changed[name]):
            others = ", ".join(item for item in names if item != name)
            raise KernelsimpError(
                f"'{name}' is tied to {others} but was given other values; change them alike"
            )


def _tied_apart(name: str, others: list[str]) -> str:
    return f"'{name}' is tied to {', '.join(others)} but was given other values; change them alike"


def _copy_of(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    data = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,))
    return data.clone().untyped_storage()


def _like(original: Tensor, view: Tensor) -> Tensor:
    if isinstance(original, nn.Parameter):
        return nn.Parameter(view, requires_grad=original.requires_grad)
    return view


def _same(stored: Tensor, asked: Tensor) -> bool:
    have, want = stored.detach(), asked.detach().to(stored)  # from whatever device it was trained on
    if have.is_floating_point() and have.element_size() == 1:  # float8 knows few operations
        have, want = have.float(), want.float()
    return torch.equal(have.nan_to_num(), want.nan_to_num())
