"""Small files that ask for much, or that are no files of ours at all: each is one line, and cheap to refuse.

A writer puts its file into the folder that it is given and returns the path. Nothing here takes more than a
few megabytes of disk; what a reader would make of it is gigabytes, hours, or an exception of another kind.
"""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from builders import tiny_state, write_legacy, write_zip
from torch import Tensor, nn

Writer = Callable[[Path], Path]
HUGE = (1 << 14, 1 << 14, 3, 3)
"""As float32 9.7 GB."""


def repeated(*shape: int, steps: tuple[int, ...] | None = None, stored: int = 9) -> Tensor:
    """Return a tensor of a huge shape over few numbers, by steps of zero or of one."""
    steps = (0, 0, 3, 1) if steps is None else steps
    return torch.randn(stored).as_strided(shape, steps)


def overlapping(folder: Path) -> Path:
    """One million numbers seen as 10^12: no step is zero."""
    tensor = torch.randn(1 << 15).as_strided((1 << 13, 1 << 13, 3, 3), (1, 1, 3, 1))
    return write_zip({"c.weight": tensor}, folder / "overlap.pt")


def sparse(folder: Path) -> Path:
    """A sparse weight of 10 GB with one number in it."""
    places = torch.zeros(4, 1, dtype=torch.int64)
    tensor = torch.sparse_coo_tensor(places, torch.ones(1), HUGE)
    return write_zip({"c.weight": tensor, "d.weight": torch.randn(4, 4, 3, 3)}, folder / "sparse.pt")


def repack(source: Path, target: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """Write a zip again, deflated, each record as `change` gives it; None leaves it out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return target


def inflating(target: Path, source: Path, record: str, size: int = 1 << 28) -> Path:
    """Write a zip again with a record of `size` zeros in place of, or beside, its own `record`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        folder = old.namelist()[0].split("/", 1)[0]
        for name in old.namelist():
            if name != f"{folder}/{record}":
                new.writestr(name, old.read(name))
        with new.open(f"{folder}/{record}", "w", force_zip64=True) as file:
            for _ in range(size >> 20):
                file.write(bytes(1 << 20))
    return target


def bomb(record: str) -> Writer:
    """Return a writer of a checkpoint one of whose records inflates a thousandfold."""

    def write(folder: Path) -> Path:
        source = write_zip(tiny_state(), folder / "source.zip")
        return inflating(folder / "bomb.pt", source, record)

    return write


def scripted(folder: Path) -> Path:
    """Write a small TorchScript archive."""
    return _written(folder / "script.zip", _script)


def exported(folder: Path) -> Path:
    """Write a small `torch.export` archive."""
    return _written(folder / "export.pt2", _export)


def _written(path: Path, content: Callable[[], bytes]) -> Path:
    path.write_bytes(content())
    return path


@cache
def _script() -> bytes:
    net, file = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), io.BytesIO()
    torch.jit.save(torch.jit.script(net), file)
    return file.getvalue()


@cache
def _export() -> bytes:
    net, file = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 3)).eval(), io.BytesIO()
    torch.export.save(torch.export.export(net, (torch.zeros(1, 3, 8, 8),)), file)
    return file.getvalue()


def pt2_with(change: Callable[[dict[str, Any]], None], ending: str) -> Writer:
    """Return a writer of an exported archive whose JSON that ends in `ending` was changed in place."""

    def edit(name: str, data: bytes) -> bytes:
        if not name.endswith(ending):
            return data
        content = json.loads(data)
        change(content)
        return json.dumps(content).encode()

    return lambda folder: repack(exported(folder), folder / "odd.pt2", edit)


def _meta(content: dict[str, Any]) -> dict[str, Any]:
    return next(entry["tensor_meta"] for name, entry in content["config"].items() if "weight" in name)


def _sizes_of_text(content: dict[str, Any]) -> None:
    _meta(content)["sizes"] = "9999"


def _stride_zero(content: dict[str, Any]) -> None:
    meta = _meta(content)
    meta["sizes"] = [{"as_int": side} for side in HUGE]
    meta["strides"] = [{"as_int": step} for step in (0, 0, 3, 1)]


def _list_for_object(content: dict[str, Any]) -> None:
    content["config"] = list(content["config"])


def _groups(content: dict[str, Any]) -> None:
    for node in content["graph_module"]["graph"]["nodes"]:
        if "conv_transpose" in node["target"]:
            node["inputs"].append({"name": "groups", "arg": {"as_int": 3}, "kind": 1})


def memo(folder: Path) -> Path:
    """A TorchScript pickle of a few bytes that puts at place 2^28 of the unpickler's memo."""
    data = b"\x80\x02" + b"N" + b"r" + struct.pack("<I", 1 << 28) + b"."
    return repack(
        scripted(folder), folder / "memo.pt", lambda name, old: data if name.endswith("/data.pkl") else old
    )


def doubling_modules(folder: Path, depth: int = 29) -> Path:
    """A TorchScript pickle whose modules hold the next one twice: 2^depth paths."""
    data = b"\x80\x02c__torch__\nM\n)\x81}X\x01\x00\x00\x00wNsb"
    for _ in range(depth):
        # the one below stands on the stack: keep it, then make a module that holds it twice
        data += b"q\x000c__torch__\nM\n)\x81}(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00bh\x00ub"
    return repack(
        scripted(folder),
        folder / "dag.pt",
        lambda name, old: data + b"." if name.endswith("/data.pkl") else old,
    )


def much_code(folder: Path, lines: int = 100_000) -> Path:
    """A TorchScript archive with a program text of megabytes."""
    text = "class M(Module):\n  def forward(self, x):\n" + "    y = torch.add(x, x, x, x)\n" * lines
    return repack(
        scripted(folder),
        folder / "code.pt",
        lambda name, old: text.encode() if "/code/" in name and name.endswith(".py") else old,
    )


def doubling_dicts(folder: Path, depth: int = 40) -> Path:
    """Dicts that hold the next one many times, by many names."""
    inner: dict[str, Any] = {"step": 1}
    for _ in range(depth):
        inner = {f"k{place}": inner for place in range(30)}
    return write_zip(inner, folder / "dicts.pt")


def doubling_states(folder: Path) -> Path:
    """Forty names for a dict with forty names for a state dict."""
    inner: dict[str, Any] = dict(tiny_state())
    for _ in range(3):
        inner = {f"k{place}": inner for place in range(40)}
    return write_zip(inner, folder / "states.pt")


def many_names(folder: Path, count: int = 200) -> Path:
    """As many views of nearly all of one storage, each a number further on."""
    storage = torch.randn(1_000_000)
    state = {
        f"l{place}.weight": storage[place : place + 999_000].view(111, 1000, 3, 3) for place in range(count)
    }
    return write_zip(state, folder / "names.pt")


def kspack_header(folder: Path) -> Path:
    """A packed file whose header inflates to 64 MB."""
    header = zlib.compress(b'{"schema":"' + b"a" * (64 << 20) + b'"}', 9)
    path = folder / "head.kspack"
    path.write_bytes(b"kspack1\n" + struct.pack("<II", len(header), zlib.crc32(header)) + header)
    return path


def kspack_plane(folder: Path) -> Path:
    """A packed file one of whose planes inflates a thousandfold."""
    plane = zlib.compress(bytes(1 << 28), 9)
    head = {
        "schema": "kernelsimp.packed/1",
        "keys": [],
        "structures": ["free"],
        "tensors": [{"name": "a.weight", "dtype": "uint8", "shape": [1 << 28]}],
        "pools": {"uint8": {"count": 1 << 28, "planes": [["deflate", len(plane), zlib.crc32(plane)]]}},
        "sha256": "0" * 64,
    }
    header = zlib.compress(json.dumps(head).encode(), 9)
    path = folder / "plane.kspack"
    frame = b"kspack1\n" + struct.pack("<II", len(header), zlib.crc32(header))
    path.write_bytes(frame + header + plane)
    return path


def kspack_dtype(folder: Path) -> Path:
    """A packed file that names a dtype of control characters."""
    head = {
        "schema": "kernelsimp.packed/1",
        "keys": [],
        "structures": ["free"],
        "tensors": [{"name": "a.weight", "dtype": "\x1b[2J\x00\u202e", "shape": [1]}],
        "pools": {},
        "sha256": "0" * 64,
    }
    header = zlib.compress(json.dumps(head).encode(), 9)
    path = folder / "dtype.kspack"
    path.write_bytes(b"kspack1\n" + struct.pack("<II", len(header), zlib.crc32(header)) + header)
    return path


def layers_of_one_kernel(folder: Path, count: int = 10_000) -> Path:
    """A network of as many layers, each of one kernel."""
    return write_zip({f"l{place}.weight": torch.randn(1, 1, 3, 3) for place in range(count)}, folder / "l.pt")


def kernel_shapes(folder: Path, count: int = 2_000) -> Path:
    """A network of as many kernel shapes."""
    state = {}
    for place in range(count):
        sides = 2 + place // 50, 2 + place % 50
        state[f"l{place}.weight"] = torch.randn(2, 2, *sides)
    return write_zip(state, folder / "shapes.pt")


def huge_kernel(folder: Path, side: int = 4_096) -> Path:
    """One kernel of a side."""
    return write_zip({"l.weight": torch.randn(1, 1, side, side)}, folder / "huge.pt")


def empty_axis(folder: Path) -> Path:
    """A weight without a number and with a huge axis."""
    return write_zip({"l.weight": torch.empty(0, 1 << 40, 3, 3)}, folder / "empty.pt")


def hostile_class(folder: Path) -> Path:
    """A pickle that calls a function whose name clears the screen."""
    data = b"\x80\x02cos\x1b[2J\nsys\x1b]0;x\x07tem\n)R."
    path = folder / "class.pth"
    path.write_bytes(data)
    return path


CRAFTED: dict[str, Writer] = {
    "stride 0 in a zip": lambda f: write_zip({"c.weight": repeated(*HUGE)}, f / "zero.pt"),
    "stride 0 in a legacy file": lambda f: write_legacy({"c.weight": repeated(*HUGE)}, f / "zero.pth"),
    "overlapping steps": overlapping,
    "sparse": sparse,
    "on the meta device": lambda f: write_zip(
        {"c.weight": torch.empty(8, 4, 3, 3, device="meta")}, f / "m.pt"
    ),
    "a record that inflates": bomb("data/0"),
    "a record that no tensor has": bomb("data/unused"),
    "a pickle that inflates": bomb("data.pkl"),
    "a TorchScript record that inflates": lambda f: inflating(f / "s.pt", scripted(f), "data/0"),
    "a pt2 record that inflates": lambda f: inflating(f / "e.pt2", exported(f), "data/weights/weight_0"),
    "pt2 sizes of text": pt2_with(_sizes_of_text, "_weights_config.json"),
    "pt2 of stride 0": pt2_with(_stride_zero, "_weights_config.json"),
    "pt2 with a list for an object": pt2_with(_list_for_object, "_weights_config.json"),
    "pt2 transposed in odd groups": pt2_with(_groups, "models/model.json"),
    "memo": memo,
    "modules that double": doubling_modules,
    "code of megabytes": much_code,
    "dicts that double": doubling_dicts,
    "states that double": doubling_states,
    "many names of one storage": many_names,
    "a kspack header that inflates": kspack_header,
    "a kspack plane that inflates": kspack_plane,
    "a kspack dtype of control characters": kspack_dtype,
    "ten thousand layers": layers_of_one_kernel,
    "two thousand shapes": kernel_shapes,
    "a huge kernel": huge_kernel,
    "an empty axis": empty_axis,
    "a hostile class": hostile_class,
}
