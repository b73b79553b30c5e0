"""The coded file: what goes in comes out, on every machine; damaged, newer and hostile files are one line."""

import json
import random
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import bits, same
from coded_kernels import NAMES, drawn, some
from torch import Tensor

from kernelsimp.errors import CheckpointError
from kernelsimp.kernels.coded_tensor import CodedTensor
from kernelsimp.kernels.integer_bases import table_of
from kernelsimp.kernels.kernel_coding import CodedKernels
from kernelsimp.models.checkpoint import load_checkpoint
from kernelsimp.models.coded import SIGNATURE, CodedFile, Layout, code_state, numbers_of, read_coded
from kernelsimp.models.framed import HEADER_ALWAYS


def integers(*shape: int, seed: int = 0) -> CodedTensor:
    generator = np.random.default_rng(seed)
    return CodedTensor(np.rint(generator.laplace(size=shape) * 1.5).astype(np.int64), np.float32(0.0371))


PARTS = ("parts-111111", "parts-100010")
TABLE = table_of(torch.randn(40, 3, 3, generator=torch.Generator().manual_seed(0)))

CODED: dict[str, tuple[CodedTensor | CodedKernels, Layout, tuple[int, ...], torch.dtype]] = {
    "conv.weight": (integers(4, 27), Layout(), (4, 3, 3, 3), torch.float32),
    "up.weight": (integers(6, 18, seed=1), Layout(transposed=True, groups=2), (4, 3, 3, 3), torch.float32),
    "line.weight": (integers(3, 10, seed=2), Layout(), (3, 2, 5), torch.float16),
    "kept.weight": (some(NAMES, 3, shape=(3, 2)), Layout(), (3, 2, 3, 3), torch.float32),
    "wise.weight": (some(PARTS, 3, 1, TABLE, (4, 1)), Layout(groups=4), (4, 1, 3, 3), torch.float32),
    "drawn.weight": (drawn()[0], Layout(), (6, 4, 3, 3), torch.float32),
    "head.weight": (integers(5, 8, seed=3), Layout(), (5, 8), torch.bfloat16),
    "head.bias": (integers(5, seed=4), Layout(), (5,), torch.float64),
}


def state() -> dict[str, Tensor]:
    """A state dict with all kinds of tensor: coded, filled, shared, whole, empty and of integers."""
    found: dict[str, Tensor] = {
        name: numbers_of(item, layout, torch.empty(shape, dtype=dtype))
        for name, (item, layout, shape, dtype) in CODED.items()
    }
    found["norm.weight"] = torch.ones(4)
    found["norm.num_batches_tracked"] = torch.tensor(19_500)
    found["norm.running_var"] = torch.rand(4, generator=torch.Generator().manual_seed(0))
    found["again.weight"] = found["conv.weight"]
    found["mask"] = torch.tensor([True, False, True])
    found["nothing"] = torch.zeros(0, 3)
    return found


def coded_file(tensors: Mapping[str, Tensor] | None = None, **options: bool) -> CodedFile:
    coded = {name: (item, layout) for name, (item, layout, _, _) in CODED.items()}
    return code_state(state() if tensors is None else tensors, coded, ("state_dict",), **options)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    place = tmp_path / "net.kscode"
    coded_file().save(place)
    return place


def test_every_tensor_comes_back_bit_for_bit(path: Path) -> None:
    assert same(read_coded(path)["state_dict"], state())
    found = load_checkpoint(path)
    assert found.format == "coded"
    assert found.wrapper == "state_dict"


def test_a_file_without_drawings_is_of_the_first_schema(path: Path, tmp_path: Path) -> None:
    assert head_of(path.read_bytes())[0]["schema"] == "kernelsimp.coded/2"
    coded = {name: (item, layout) for name, (item, layout, _, _) in CODED.items() if name != "drawn.weight"}
    tensors = {name: item for name, item in state().items() if name != "drawn.weight"}
    older = tmp_path / "older.kscode"
    code_state(tensors, coded).save(older)
    assert head_of(older.read_bytes())[0]["schema"] == "kernelsimp.coded/1"
    assert same(read_coded(older), tensors)


def test_a_coded_tensor_is_one_float32_product() -> None:
    item = CODED["conv.weight"][0]
    expected = torch.from_numpy(item.values).float() * torch.tensor(float(item.step))
    assert bits(state()["conv.weight"]) == bits(expected)


def test_what_its_integers_do_not_give_goes_in_whole(tmp_path: Path) -> None:
    tensors = {**state(), "head.bias": state()["head.bias"] + 1e-9}
    filed = coded_file(tensors)
    assert filed.kept == ("head.bias", "norm.running_var", "mask", "nothing")
    filed.save(tmp_path / "n.kscode")
    assert same(read_coded(tmp_path / "n.kscode")["state_dict"], tensors)


def test_halves_are_near_and_only_where_asked(tmp_path: Path) -> None:
    coded_file(halve=True).save(tmp_path / "n.kscode")
    found, old = (
        read_coded(tmp_path / "n.kscode")["state_dict"]["norm.running_var"],
        state()["norm.running_var"],
    )
    assert not torch.equal(found, old)
    assert torch.allclose(found, old, rtol=1e-3, atol=0)
    huge = {"v": torch.tensor([1e6, 1.0])}
    code_state(huge, {}, halve=True).save(tmp_path / "h.kscode")
    assert same(read_coded(tmp_path / "h.kscode"), huge)


def test_saved_again_it_is_the_same(path: Path, tmp_path: Path) -> None:
    load_checkpoint(path).save(tmp_path / "again.kscode")
    assert same(read_coded(tmp_path / "again.kscode")["state_dict"], state())


# ---------------------------------------------------------------- damage


def head_of(data: bytes) -> tuple[dict[str, Any], int]:
    length, _ = struct.unpack("<II", data[8:16])
    return json.loads(zlib.decompress(data[16 : 16 + length])), 16 + length


def with_head(data: bytes, head: Any) -> bytes:
    """The same file with another header, whose CRC is right."""
    _, begin = head_of(data)
    header = zlib.compress(json.dumps(head).encode())
    return SIGNATURE + struct.pack("<II", len(header), zlib.crc32(header)) + header + data[begin:]


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_coded(path)
    words = str(caught.value)
    assert "\n" not in words
    assert words.startswith(str(path))
    return words


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": "kernelsimp.coded/3"}, "of schema 'kernelsimp.coded/3', this version reads"),
        ({"sha256": "0" * 64}, "the SHA-256 of its tensors is another"),
        ({"coded": []}, "the order of coding is not of its tensors"),
        ({"tensors": 3}, "damaged coded checkpoint"),
        ({"tensors": [{"name": "a", "dtype": "float32", "shape": [1 << 40], "kind": "fill"}]}, "hostile"),
        ({"tensors": [{"name": "a", "dtype": "float32", "shape": [-1], "kind": "fill"}]}, "no list of sizes"),
        ({"tensors": [{"name": "a", "dtype": "load", "shape": [1], "kind": "fill"}]}, "no dtype 'load'"),
        ({"tensors": []}, "too long"),
    ],
)
def test_a_header_that_lies_is_refused(path: Path, change: dict[str, Any], said: str) -> None:
    data = path.read_bytes()
    assert said in refusal(write(path, with_head(data, {**head_of(data)[0], **change})))


def test_cut_newer_and_altered_files_have_words_of_their_own(path: Path) -> None:
    data = path.read_bytes()
    _, begin = head_of(data)
    assert "cut off after 9 bytes" in refusal(write(path, data[:9]))
    assert "in its header" in refusal(write(path, data[:40]))
    assert "cut off: " in refusal(write(path, data[:-3]))
    assert "update kernelsimp" in refusal(write(path, b"kscode2\n" + data[8:]))
    assert "its header fails its CRC check" in refusal(write(path, data[:20] + b"\0\0\0\0" + data[24:]))
    altered = data[:begin] + bytes([data[begin] ^ 1]) + data[begin + 1 :]
    assert "'conv.weight' fails its CRC check" in refusal(write(path, altered))


def mutants(data: bytes, count: int) -> Any:
    """Yield files with flipped, cut and moved bytes; half of them with all CRC sums made right again."""
    head, begin = head_of(data)
    generator = random.Random(0)
    for number in range(count):
        if number % 2:
            changed = bytearray(data)
            for _ in range(generator.randint(1, 4)):
                changed[generator.randrange(len(changed))] = generator.randrange(256)
            yield bytes(changed[: generator.choice([len(data), generator.randrange(len(data))])])
            continue
        text = json.loads(json.dumps(head))
        entry = generator.choice(text["tensors"])
        key = generator.choice(list(entry))
        entry[key] = generator.choice(
            [
                0,
                -1,
                1 << 30,
                1 << 62,
                "x",
                None,
                [],
                [1, 2],
                [1 << 31, 1 << 31],
                0.5,
                True,
                {},
                "fill",
                "same",
                "float64",
            ]
        )
        body, at = bytearray(data[begin:]), 0
        if body and number % 4:
            body[generator.randrange(len(body))] ^= 1 << generator.randrange(8)
        for item in text["tensors"]:
            size = item.get("bytes", 0) if isinstance(item, dict) else 0
            if type(size) is int and 0 <= size <= len(body) and "crc" in item:
                item["crc"], at = zlib.crc32(bytes(body[at : at + size])), at + size
        yield with_head(data[:begin] + bytes(body), text)


def test_five_thousand_mutants_are_refused_or_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    whole, data = state(), path.read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read, refusals = 0, list[str]()
    for mutant in mutants(data, 5000):
        try:
            found = read_coded(write(path, mutant))
        except CheckpointError as error:
            refusals.append(str(error))
            continue
        read += 1  # what is read has the digest of the header: only names of places may differ
        assert [bits(item) for item in found["state_dict"].values()] == [
            bits(item) for item in whole.values()
        ]
    assert read < 500
    assert not any("\n" in words for words in refusals)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_a_deep_header_and_a_bomb_are_refused(path: Path) -> None:
    data = path.read_bytes()
    for text in (b"[" * 100_000, b" " * (HEADER_ALWAYS + 10)):
        header = zlib.compress(text)
        start = SIGNATURE + struct.pack("<II", len(header), zlib.crc32(header))
        assert "damaged coded checkpoint" in refusal(write(path, start + header + data[16:]))
