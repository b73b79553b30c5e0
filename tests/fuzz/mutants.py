"""Mutants of every file that the tool reads: bytes, members, keys and values altered, all from one seed.

A mutant is made of a sound file. One half are altered bytes, cut or longer files; the other are whole as
files of their kind, with other values where checksums and readers expect some: those come further in.
"""

import io
import json
import random
import struct
import tomllib
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 10**40, -(2**63), 0.5, 1e300, -1e300),
    *("", "a", "\x1b[2J\x00\u202e", "\ud800", "a" * 5_000, "../../etc/passwd", "=1+1", "nan", "float32"),
    *([], {}, [[]], [None], {"": 0}, [0] * 40, [1 << 20, 1 << 20], ["a", "b"]),
)
"""What a value becomes."""

ODD_ARRAYS: tuple[np.ndarray[Any, Any], ...] = (
    np.array([b"ab", b"c"]),
    np.array(["ab", "c"]),
    np.array([1e300, np.inf, np.nan]),
    np.zeros(3, dtype=[("a", "i4"), ("b", "f8")]),
    np.zeros(3, dtype="V5"),
    np.zeros((0, 3)),
    np.zeros(()),
    np.zeros(3, np.complex64),
    np.array(["2020-01-01"], dtype="M8[D]"),
    np.full(3, -(2**62)),
    np.zeros((2, 2, 2, 2, 2, 2)),
    np.zeros(40, np.bool_),
    np.arange(40, dtype=">i8"),
    np.zeros((40, 1, 8, 8), np.float16),
)


def mutant(kind: str, data: bytes, dice: random.Random) -> bytes:
    """Return a mutant of a file; `kind` says what is known of its inside, 'bytes' that nothing is."""
    if kind != "bytes" and dice.random() < 0.6:
        with suppress(ValueError, TypeError, KeyError, AttributeError):  # of no kind any more
            for _ in range(dice.choice((1, 1, 1, 2, 5))):
                data = INSIDE[kind](data, dice)
        return data
    return _bytes(data, dice)


def _bytes(data: bytes, dice: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 4, 16))):
        at = dice.randrange(len(made) + 1)
        length = dice.choice((1, 1, 2, 4, 8, 64, 1000))
        way = dice.randrange(7)
        if way == 0 and at < len(made):
            made[at] ^= 1 << dice.randrange(8)
        elif way == 1:
            made[at : at + length] = dice.randbytes(min(length, len(made) - at))
        elif way == 2:
            made[at:at] = made[at : at + length]
        elif way == 3:
            del made[at : at + length]
        elif way == 4:
            made[at : at + 4] = struct.pack("<I", dice.choice((0, 1, 2**31, 2**32 - 1, len(made))))
        elif way == 5:
            made[at : at + length] = bytes(min(length, len(made) - at))
        elif dice.random() < 0.3:
            del made[at:]
    return bytes(made)


def _value(content: Any, dice: random.Random) -> Any:
    """Return JSON values with one of them, anywhere, odd, gone, doubled, or that of another place."""
    places: list[tuple[Any, Any]] = []
    waiting = [content]
    while waiting:
        here = waiting.pop()
        keys = list(here) if isinstance(here, dict) else range(len(here))
        places += [(here, key) for key in keys]
        waiting += [here[key] for key in keys if isinstance(here[key], dict | list)]
    if not places:
        return dice.choice(ODD)
    holder, key = dice.choice(places)
    way = dice.randrange(5)
    if way == 0:
        del holder[key]
    elif way == 1 and isinstance(holder, list):
        holder.append(holder[key])
    elif way == 2:
        other, there = dice.choice(places)
        holder[key] = json.loads(json.dumps(other[there])) if _has(other, there) else None
    elif isinstance(holder[key], int | float) and way == 3:
        holder[key] = holder[key] + dice.choice((-1, 1, 1000, -(10**6)))
    else:
        holder[key] = dice.choice(ODD)
    return content


def _has(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


def _json(data: bytes, dice: random.Random) -> bytes:
    return json.dumps(_value(json.loads(data), dice)).encode()


def _toml(data: bytes, dice: random.Random) -> bytes:
    """Return TOML with odd values, as JSON spells them: mostly TOML, too."""
    table = _value(tomllib.loads(data.decode()), dice)
    if not isinstance(table, dict):
        return json.dumps(table).encode()
    lines = [f"{json.dumps(key)} = {_spelled(value)}" for key, value in table.items()]
    return "\n".join(lines).encode()


def _spelled(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_spelled(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_spelled, value)) + "]"
    return json.dumps(value)


def _zip(data: bytes, dice: random.Random) -> bytes:
    """Return a zip archive with one record altered, its checksum right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = [(item.filename, archive.read(item)) for item in archive.infolist()]
    at = dice.randrange(len(records))
    name, content = records[at]
    way = dice.randrange(6)
    if way == 0:
        records[at] = (dice.choice(records)[0] + dice.choice(("", "x", "/..")), content)
    elif way == 1:
        del records[at]
    elif name.endswith(".json") and way < 5:
        records[at] = (name, _json(content, dice))
    elif name.endswith(".npy") and way < 5:
        file = io.BytesIO()
        np.save(file, dice.choice(ODD_ARRAYS))
        records[at] = (name, file.getvalue())
    else:
        records[at] = (name, _bytes(content, dice))
    return _zipped(dict(records))


def _zipped(records: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return file.getvalue()


def _framed(data: bytes, dice: random.Random) -> bytes:
    """Return a .kspack or .kscode file with one value of its header altered, its checksum right."""
    length = struct.unpack("<I", data[8:12])[0]
    head = _value(json.loads(zlib.decompress(data[16 : 16 + length])), dice)
    header = zlib.compress(json.dumps(head).encode())
    return data[:8] + struct.pack("<II", len(header), zlib.crc32(header)) + header + data[16 + length :]


def _tensors(data: bytes, dice: random.Random) -> bytes:
    """Return a safetensors file with one value of its header altered; a plan's own header is inside."""
    length = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + length])
    inner = head.get("__metadata__", {})
    if "plan" in inner and dice.random() < 0.5:
        inner["plan"] = json.dumps(_value(json.loads(inner["plan"]), dice))
        inner.pop("sha256", None)
    elif dice.random() < 0.4 and (own := [name for name in head if name != "__metadata__"]):
        entry = head[dice.choice(own)]
        entry["dtype"] = dice.choice(("BF16", "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL", "F64", "I64", "F16"))
        inner.pop("sha256", None)
    else:
        head = _value(head, dice)
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


INSIDE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "json": _json,
    "toml": _toml,
    "zip": _zip,
    "framed": _framed,
    "tensors": _tensors,
}
