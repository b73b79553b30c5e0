"""Tiny checkpoints of every kind, sound, damaged and hostile. A helper writes to the path it is given."""

import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

NET = f"{Path(__file__)}:TinyNet"
"""What --arch takes for `TinyNet`."""

SMALL = ["--arch", NET, "--batch-size", "16", "--epochs", "1", "--quiet"]


class TinyNet(nn.Module):
    """A dense stem, a depthwise layer, a pointwise one, and a linear head; (n, 3, 8, 8) -> (n, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.pointwise = nn.Conv2d(4, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.norm(self.stem(images)))
        features = torch.relu(self.pointwise(self.depthwise(features)))
        return self.head(features.mean((2, 3)))


def tiny_net(seed: int = 0) -> TinyNet:
    """A seeded `TinyNet` in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyNet().eval()


def tiny_state(seed: int = 0) -> "OrderedDict[str, Tensor]":
    """The state dict of a seeded `TinyNet`."""
    return OrderedDict(tiny_net(seed).state_dict())


def prefixed(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def write_zip(payload: Any, path: Path) -> Path:
    torch.save(payload, path)
    return path


def write_legacy(payload: Any, path: Path) -> Path:
    torch.save(payload, path, _use_new_zipfile_serialization=False)
    return path


def write_safetensors(
    state: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> Path:
    save_file({name: value.contiguous() for name, value in state.items()}, path, metadata=metadata)
    return path


WRITERS: dict[str, Callable[[Any, Path], Path]] = {
    "zip": write_zip,
    "legacy": write_legacy,
    "safetensors": write_safetensors,
}


class Bomb:
    """Runs a command when it is unpickled: it leaves a marker file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def write_bombs(folder: Path, marker: Path) -> list[Path]:
    """Write the bomb as a zip checkpoint, a legacy one and a plain pickle."""
    payload = {"state_dict": tiny_state(), "bomb": Bomb(marker)}
    plain = folder / "bomb.pkl"
    plain.write_bytes(pickle.dumps(Bomb(marker), protocol=2))
    zipped, legacy = folder / "bomb.pt", folder / "bomb.pth"
    return [write_zip(payload, zipped), write_legacy(payload, legacy), plain]


def write_sparse_safetensors(path: Path, tensors: Mapping[str, tuple[int, ...]]) -> Path:
    """Write float32 zeros of the given shapes as a file with holes: large to the eye, small on the disk."""
    import json
    import math

    header: dict[str, Any] = {}
    start = 0
    for name, shape in tensors.items():
        end = start + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + start)
    return path


def flip_bit(path: Path, position: int, bit: int = 0) -> None:
    """Flip one bit of a file; a negative position counts from its end."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(bytes(data))


def position_of(path: Path, content: bytes) -> int:
    """Return where `content` begins in the file; it must be there once."""
    data = path.read_bytes()
    assert data.count(content) == 1
    return data.index(content)


def deflated(path: Path) -> Path:
    """Pack a zip checkpoint again with compression, as an archiver would."""
    with zipfile.ZipFile(path) as archive:
        records = [(item.filename, archive.read(item)) for item in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in records:
            archive.writestr(name, data)
    return path


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same(one: dict[str, Tensor] | object, other: dict[str, Tensor]) -> bool:
    """Say whether two state dicts agree bit for bit, order and dtypes included."""
    assert isinstance(one, dict | OrderedDict)
    return list(one) == list(other) and all(
        a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)
        for a, b in zip(one.values(), other.values(), strict=True)
    )


def weights_in(path: Path) -> dict[str, Tensor]:
    """Return the state dict that was written to a checkpoint, or to tiny.pt in the folder of a run."""
    file = path / "tiny.pt" if path.is_dir() else path
    return dict(torch.load(file, weights_only=True)["state_dict"])


def white(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Kernels of independent normal cells, the same for the same seed."""
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def white64(*shape: int, seed: int = 0) -> Tensor:
    """`white` in double precision."""
    return white(*shape, seed=seed, dtype=torch.float64)


def pixels(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Random images of whole numbers."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def npz(path: Path, shape: tuple[int, ...], count: int = 40) -> str:
    """Write random images of five classes, the same for all three splits; return what --data takes."""
    generator = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = generator.integers(0, 255, (count, *shape), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 5
    np.savez(path, **arrays)
    return f"npz:{path}"
