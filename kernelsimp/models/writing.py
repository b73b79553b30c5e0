"""Writing one checkpoint file in the container that it was read from, whole or not at all."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kernelsimp.errors import KernelsimpError
from kernelsimp.files import write_atomically
from kernelsimp.models.packed import pack
from kernelsimp.models.reading import EXPORTED, Raw
from kernelsimp.models.wrappers import FoundState, rebuild_payload


def write_state(raw: Raw, found: FoundState, state: Mapping[str, Any], path: Path) -> None:
    """Write `state` where `found` says that the state dict stood in `raw`, into the file `path`.

    Raises `KernelsimpError` where the disk refuses.
    """
    if raw.format == "packed":
        pack(state, keys=found.keys).save(path)
        return
    if raw.format == "coded":  # the same form, its tensors as they are
        from kernelsimp.models.coded import code_state  # its compiler is slow to import

        code_state(state, {}, found.keys).save(path)
        return
    if raw.format == "safetensors":
        write_atomically(path, lambda partial: _write_safetensors(state, raw.metadata, partial))
        return
    payload = rebuild_payload(raw.payload, found, state)
    protocol = raw.protocol
    if protocol is not None:
        write_atomically(path, lambda partial: _write_pickle(payload, partial, protocol))
        return
    write_atomically(path, lambda partial: _write_torch(payload, partial, zipped=raw.format != "legacy"))


def check_is_written(form: str, source: Path) -> None:
    """Raise `KernelsimpError` where a file of this form is only read; before hours are spent on it."""
    if form in EXPORTED:
        advice = "simplify the PyTorch checkpoint it was exported from"
        raise KernelsimpError(f"{source}: {form} files are only read, not written; {advice}")


def _write_safetensors(state: Mapping[str, Any], metadata: Mapping[str, str] | None, partial: Path) -> None:
    from safetensors.torch import save_file

    tensors = {name: value.contiguous() for name, value in state.items()}
    save_file(tensors, partial, metadata=dict(metadata or {}) or None)


def _write_torch(payload: Any, partial: Path, *, zipped: bool) -> None:
    # through a file object: given a name, torch would write that name into the archive
    with partial.open("wb") as file:
        torch.save(payload, file, _use_new_zipfile_serialization=zipped)


def _write_pickle(payload: Any, partial: Path, protocol: int) -> None:
    with partial.open("wb") as file:
        pickle.dump(payload, file, protocol=protocol)
