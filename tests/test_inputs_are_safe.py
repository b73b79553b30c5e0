"""No output takes the place of an input, and no file that changes under us is read as if it had not."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import WRITERS, flip_bit, npz, tiny_state, write_zip
from processes import HERE, run_warm

from kernelsimp.cli.main import run
from kernelsimp.commands.outputs import FILES, check_outputs
from kernelsimp.data.cifar_c import official_suite
from kernelsimp.data.images import Geometry
from kernelsimp.errors import CheckpointError, DamagedError, KernelsimpError
from kernelsimp.files import read_sealed, write_sealed_text
from kernelsimp.models import reading
from kernelsimp.models.checkpoint import load_checkpoint
from kernelsimp.settings_file import settle


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a checkpoint, two links to it, images, code, a config, and a folder of images."""
    write_zip({"state_dict": tiny_state()}, tmp_path / "m.pt")
    (tmp_path / "soft.pt").symlink_to("m.pt")
    os.link(tmp_path / "m.pt", tmp_path / "hard.pt")
    npz(tmp_path / "i.npz", (8, 8, 3))
    for name in ("x.npy", "y.npy"):
        np.save(tmp_path / name, np.zeros(2))
    (tmp_path / "net.py").write_text("from builders import TinyNet\n")
    (tmp_path / "c.toml").write_text('[data]\ndata = "npz:i.npz"\n')
    (tmp_path / "l.toml").write_text("")
    (tmp_path / "b.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


LOST = [
    *(
        f"scan m.pt {option} {name}"
        for option in ("--json", "--csv", "--html")
        for name in ("m.pt", "./m.pt")
    ),
    "scan m.pt --json soft.pt",
    "scan soft.pt --csv m.pt",
    "scan m.pt --html hard.pt",
    "scan m.pt --config c.toml --json c.toml",
    "scan m.pt --arch net.py:TinyNet --json net.py",
    "scan folder --json folder/found",
    "scan m.pt --json same --csv same",
    *(f"check m.pt --baseline b.json {option} b.json" for option in ("--junit", "--gitlab", "--json")),
    "check m.pt --baseline b.json --junit m.pt",
    "check m.pt --baseline b.json --limits l.toml --gitlab l.toml",
    "check m.pt --baseline m.pt --update-baseline",
    "check m.pt --baseline folder --junit folder/j.xml",
    "audit m.pt --arch net.py:TinyNet --json net.py",
    "evaluate m.pt --arch net.py:TinyNet --data npz:i.npz --json i.npz",
    "evaluate m.pt --arch net.py:TinyNet --config c.toml --json i.npz",
    "evaluate m.pt --arch net.py:TinyNet --data npy:x.npy,y.npy --json y.npy",
    "simplify m.pt --arch net.py:TinyNet --data npy:folder --out folder",
    "evaluate m.pt --arch net.py:TinyNet --data npz:i.npz --metric net.py:TinyNet --json net.py",
    "compare m.pt hard.pt --arch net.py:TinyNet --data npz:i.npz --html hard.pt",
    "export m.pt --out m.pt",
    "export m.pt --out soft.pt",
    "export folder --out folder/x.pt",
    "simplify m.pt --out .",
    "simplify m.pt --tolerance 0.1 --out m.pt",
    "simplify m.pt --arch net.py:TinyNet --data imagefolder:folder --out folder/run",
    "simplify m.pt --arch net.py:TinyNet --data torchvision:CIFAR10?root=folder --out folder",
    "simplify m.pt --plan run/plan.safetensors --out run",
    "simplify m.pt --config run/settings.toml --out run",
    "simplify m.pt --tolerance 0.1 --out run --json i.npz --arch net.py:TinyNet --data npz:i.npz",
    "prune m.pt --arch net.py:TinyNet --out .",
    "train --arch net.py:TinyNet --data npz:i.npz --out i.npz",
    "report folder folder --out folder",
]


@pytest.mark.parametrize("words", LOST)
def test_no_output_takes_the_place_of_an_input(words: str, place: Path, capsys) -> None:
    (place / "run").mkdir()
    (place / "run" / "settings.toml").write_text("")
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert run([*words.split(), *(() if words.startswith(("export", "report")) else ("-q",))]) == 2
    told = capsys.readouterr().err
    assert "would overwrite the input" in told or "would be lost" in told
    assert told.count("\n") == 1
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_outputs_of_their_own_are_free(place: Path) -> None:
    settings = settle({"data": {"data": "npz:i.npz"}, "model": {"arch": "net.py:TinyNet"}})
    check_outputs(
        [("--json", "-"), ("--csv", "new.csv"), ("--html", None)], ("m.pt", None), settings, "c.toml"
    )
    assert run(["scan", "m.pt", "--json", "out/new.json", "--csv", "out/new.csv", "-q"]) == 0


def test_the_names_that_a_run_writes_are_known(place: Path) -> None:
    assert run(["simplify", "m.pt", "--tolerance", "0.9", "--out", "run", "-q"]) == 0
    assert {path.name for path in (place / "run").iterdir() if path.is_file()} == {*FILES, "m.pt"}


@pytest.mark.parametrize("container", WRITERS)
def test_a_file_cut_short_while_it_is_mapped_ends_nothing(container: str, tmp_path: Path) -> None:
    state = {**tiny_state(), "large.weight": torch.ones(64, 64, 3, 3)}
    path = WRITERS[container](state, tmp_path / "m.pt")
    held = load_checkpoint(path)
    with path.open("r+b") as file:
        file.truncate(100)
    assert torch.equal(held.tensors["large.weight"], state["large.weight"])


@pytest.mark.parametrize("container", WRITERS)
def test_a_file_written_over_after_it_was_read_is_not_a_mixture(container: str, tmp_path: Path) -> None:
    path = WRITERS[container](tiny_state(), tmp_path / "m.pt")
    held = load_checkpoint(path)
    size, digest = path.stat().st_size, held.sha256
    with path.open("r+b") as file:
        file.write(bytes(size))
    assert all(torch.equal(held.tensors[name], value) for name, value in tiny_state().items())
    assert held.sha256 == digest


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch) -> None:
    path = write_zip(tiny_state(), tmp_path / "m.pt")
    crc = reading.check_records

    def change(path: Path) -> tuple[str, ...]:
        found = crc(path)
        os.utime(path, ns=(1, 1))
        return found

    monkeypatch.setattr(reading, "check_records", change)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert str(caught.value) == f"{path}: changed while it was read; wait until it is written, then try again"


@pytest.mark.parametrize("container", ["zip", "safetensors"])
def test_without_room_for_a_copy_nothing_is_mapped(container: str, tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kernelsimp.models.snapshot.shutil.copyfileobj", full)
    path = WRITERS[container](tiny_state(), tmp_path / "m.pt")
    held = load_checkpoint(path)
    path.write_bytes(b"")
    assert all(torch.equal(held.tensors[name], value) for name, value in tiny_state().items())


def test_cifar_c_pictures_cut_short_are_one_line(tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "labels.npy", np.arange(10) % 2)
    np.save(tmp_path / "fog.npy", np.zeros((10, 4, 4, 3), np.uint8))
    (_, _, split), *_ = list(official_suite(tmp_path, Geometry(None, None, None), ["fog"]))
    with (tmp_path / "fog.npy").open("r+b") as file:
        file.truncate(140)
    with pytest.raises(KernelsimpError, match="became shorter while it was read"):
        split.store.batch([1], Geometry(None, None, None))


def test_a_sealed_file_gives_back_what_was_written_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sealed"
    write_sealed_text(path, "content")
    assert read_sealed(path) == b"content"
    for position in range(path.stat().st_size):
        flip_bit(path, position)
        with pytest.raises(DamagedError):
            read_sealed(path)
        flip_bit(path, position)
    path.write_bytes(b"")
    with pytest.raises(DamagedError):
        read_sealed(path)


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Path, Path]]:
    """A baseline, and a checkpoint that passes it with one that does not."""
    folder = tmp_path_factory.mktemp("pipe")
    model = write_zip({"state_dict": tiny_state()}, folder / "m.pt")
    other = write_zip({"state_dict": tiny_state(1)}, folder / "n.pt")
    assert run(["simplify", str(model), "--tolerance", "0.9", "--out", str(folder / "run"), "-q"]) == 0
    return folder / "run", (folder / "run" / "m.pt", other)


@pytest.mark.parametrize(("sink", "place", "code"), [("pipe", 0, 0), ("line", 1, 1), ("closed", 1, 1)])
def test_a_reader_that_has_gone_changes_no_exit_code(
    sink: str, place: int, code: int, gate: tuple[Path, tuple[Path, Path]]
) -> None:
    run_folder, models = gate
    words = ["check", str(models[place]), "--baseline", str(run_folder)]
    done = run_warm(HERE / "gone_readers.py", sink, *words)
    assert done.returncode == code
    assert "Traceback" not in done.stderr + done.stdout
    assert "BrokenPipe" not in done.stderr
