"""`export --to coded`: budgets, the way back into the user's code, and every other command on the file."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from builders import TinyNet, npz, tiny_state, write_safetensors, write_zip
from safetensors.torch import load_file

from kernelsimp.cli.main import run
from kernelsimp.models.coded import read_coded
from kernelsimp.records.plan_file import read_plan
from kernelsimp.report import read_report
from kernelsimp.shelf import SPARE
from kernelsimp.training.survival import count_survivors

NET = f"{Path(__file__).with_name('builders.py')}:TinyNet"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint under a wrapper and a prefix, the same bare in half precision, and images."""
    folder = tmp_path_factory.mktemp("coded")
    state = {f"module.{name}": value for name, value in tiny_state().items()}
    write_zip({"state_dict": state, "best_prec1": 91.0}, folder / "tiny.pt")
    halves = {
        name: value.half() if value.is_floating_point() else value for name, value in tiny_state().items()
    }
    write_safetensors(halves, folder / "half.safetensors")
    npz(folder / "i.npz", (8, 8, 3), count=64)
    return folder


def words(place: Path, model: str, *more: str) -> list[str]:
    data = ["--arch", NET, "--data", f"npz:{place / 'i.npz'}"]
    return ["export", str(place / model), "--to", "coded", *data, *more, "-q"]


def test_a_coded_checkpoint_goes_back_into_the_users_code(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coded, back = place / "a.kscode", place / "back.pt"
    assert run(words(place, "tiny.pt", "--kl", "0.0001", "--out", str(coded))) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"coded: {coded}, ")
    assert "images held back" in said
    assert "test images: " in said
    assert "left out, as no weights: 'best_prec1'" in said
    assert coded.stat().st_size < (place / "tiny.pt").stat().st_size / 2
    assert run(["export", str(coded), "--to", "torch", "--out", str(back)]) == 0
    script = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); from builders import TinyNet\n"
        "state = torch.load(sys.argv[2], weights_only=True)['state_dict']\n"
        "net = torch.nn.DataParallel(TinyNet()); net.load_state_dict(state, strict=True); print(len(state))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent), str(back)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(found.stdout) == len(tiny_state())


def test_the_norm_decodes_to_one_that_only_shifts(place: Path) -> None:
    assert run(words(place, "tiny.pt", "--kl", "0.001", "--out", str(place / "n.kscode"))) == 0
    state = read_coded(place / "n.kscode")["state_dict"]
    assert bool((state["module.norm.weight"] == 1).all())
    assert bool((state["module.norm.running_mean"] == 0).all())
    assert bool((state["module.norm.running_var"] == torch.tensor(1 - 1e-5)).all())


def test_half_precision_stays(place: Path) -> None:
    coded, back = place / "h.kscode", place / "h.safetensors"
    assert run(words(place, "half.safetensors", "--kl", "0.001", "--out", str(coded))) == 0
    assert run(["export", str(coded), "--to", "safetensors", "--out", str(back)]) == 0
    found, old = load_file(back), load_file(place / "half.safetensors")
    assert {name: (item.dtype, item.shape) for name, item in found.items()} == {
        name: (item.dtype, item.shape) for name, item in old.items()
    }
    TinyNet().load_state_dict(found, strict=True)


def test_every_command_reads_a_coded_file(place: Path) -> None:
    coded = str(place / "r.kscode")
    data = ["--arch", NET, "--data", f"npz:{place / 'i.npz'}"]
    assert run(words(place, "tiny.pt", "--size", "1100", "--out", coded)) == 0
    assert Path(coded).stat().st_size <= 1100
    assert run(["scan", coded, "-q"]) == 0
    assert run(["evaluate", coded, *data, "-q"]) == 0
    assert run(["compare", str(place / "tiny.pt"), coded, *data, "-q"]) == 0
    assert run(["export", coded, "--to", "packed", "--out", str(place / "r.kspack")]) == 0
    out = place / "run"
    assert run(["simplify", coded, "--tolerance", "0.9", "--out", str(out), "-q"]) == 0
    assert run(["check", str(out / "r.kscode"), "--baseline", str(out / "report.json"), "-q"]) == 0
    assert (
        run(["export", str(out), "--to", "coded", *data, "--kl", "1", "--out", str(place / "o.kscode"), "-q"])
        == 0
    )


def test_a_check_bounds_the_bytes_of_a_coded_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, coded = place / "base", place / "c.kscode"
    assert run(["simplify", str(place / "tiny.pt"), "--tolerance", "0.01", "--out", str(base), "-q"]) == 0
    assert run(words(place, "tiny.pt", "--size", "1100", "--out", str(coded))) == 0
    size = coded.stat().st_size
    for most, code in ((size, 0), (size - 1, 1)):
        (place / "l.toml").write_text(f"[size.coded_bytes]\nmax = {most}\n[bits.per_weight]\nmax = 1000\n")
        with_limits = ["--baseline", str(base / "report.json"), "--limits", str(place / "l.toml")]
        capsys.readouterr()
        assert run(["check", str(coded), *with_limits]) == code
    assert f"size.coded_bytes is {size}" in capsys.readouterr().out
    assert run(["check", str(place / "tiny.pt"), *with_limits]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert all(
        "skipped" in row for row in rows if row.strip().startswith(("size.coded_bytes", "bits.per_weight"))
    )


def test_without_a_compiler_there_is_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kernelsimp.kernels.rounding.AVAILABLE", False)
    assert run(words(place, "tiny.pt", "--kl", "0.01", "--out", str(place / "x.kscode"))) == 2
    assert "pip install numba" in capsys.readouterr().err


def test_the_usual_budget_is_half_a_point(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coded = words(place, "tiny.pt", "--out", str(place / "u.kscode"))[:-1]
    assert run(coded) in (0, 1)
    assert "judging by --max-drop 0.5" in capsys.readouterr().err


@pytest.mark.parametrize("budget", [("--size", "40"), ("--kl", "0")])
def test_a_budget_that_nothing_meets_still_writes(
    place: Path, budget: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    coded = place / "unmet.kscode"
    coded.unlink(missing_ok=True)
    assert run(words(place, "tiny.pt", *budget, "--out", str(coded))) == 1
    assert "the budget is not met" in capsys.readouterr().out
    read_coded(coded)


def test_without_images_weights_alone_are_coded(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coded = place / "w.kscode"
    assert run(["export", str(place / "tiny.pt"), "--to", "coded", "--out", str(coded)]) == 0
    said = capsys.readouterr()
    assert "coded without images" in said.out
    assert "coding by relative error of weights" in said.err
    state = read_coded(coded)["state_dict"]
    for name, value in tiny_state().items():
        error = (state[f"module.{name}"].double() - value.double()).norm()
        assert float(error) <= 0.1 * float(value.double().norm())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--to", "coded", "--kl", "1", "--size", "9"], "choose one budget, not --kl and --size"),
        (["--to", "coded", "--kl", "1"], "--kl needs a network and images: pass --arch and --data"),
        (
            ["--to", "coded", "--max-drop", "1"],
            "--max-drop needs a network and images: pass --arch and --data",
        ),
        (["--to", "coded", "--data", "digits"], "--data needs a network to run the images: pass --arch"),
        (["--to", "packed", "--kl", "1"], "--kl is a budget of --to coded alone"),
        (["--to", "coded", "--size", "-5"], "a budget of -5: expected a number from 0 up"),
    ],
)
def test_bad_input_is_one_line(
    place: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", str(place / "tiny.pt"), "--out", str(place / "x.kscode"), *more]) == 2
    err = capsys.readouterr().err.strip()
    assert said in err.splitlines()[-1]


def test_a_disk_without_room_for_what_waits_is_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kernelsimp.memory.Room.kept", 0)
    usage = SimpleNamespace(total=1 << 40, used=0, free=SPARE + 100_000)
    monkeypatch.setattr("kernelsimp.shelf.shutil.disk_usage", lambda _: usage)
    assert run(words(place, "tiny.pt", "--kl", "0.01", "--out", str(place / "big.kscode"))) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "of files are needed beside the memory" in said
    assert not (place / "big.kscode").exists()


def frozen_run(place: Path, name: str, families: str) -> Path:
    """A run whose simplified kernels are frozen, and beside it its coded file."""
    data = ["--arch", NET, "--data", f"npz:{place / 'i.npz'}"]
    simplify = ["simplify", str(place / "tiny.pt"), *data, "--simplified", "0.4", "--freeze"]
    assert run([*simplify, "--families", families, "--out", str(place / name), "-q"]) == 0
    coded = ["--size", "1600", "--out", str(place / f"{name}.kscode")]
    assert run(["export", str(place / name), "--to", "coded", *data, *coded, "-q"]) in (0, 1)
    return place / name


@pytest.fixture(scope="module")
def frozen(place: Path) -> Path:
    """A run of linear families and of bent ones."""
    return frozen_run(place, "frozen", "linear,rank-one,few-values-2")


def check_members(place: Path, frozen: Path) -> set[str]:
    """Check a run's coded file and what it decodes to; return the structures of its exact kernels."""
    back = place / "f.pt"
    assert run(["export", f"{frozen}.kscode", "--to", "torch", "--out", str(back)]) == 0
    for file in (f"{frozen}.kscode", str(back)):
        assert run(["check", file, "--baseline", str(frozen)]) == 0
    plan = read_plan(frozen / "plan.safetensors")
    state = read_coded(Path(f"{frozen}.kscode"))["state_dict"]
    tensors = {layer.name: state[f"module.{layer.name}.weight"] for layer in plan.layers}
    left = count_survivors(plan, tensors)
    assert left.exact == left.total > 0
    return {plan.structures[number] for layer in plan.layers for number in layer.choice.flatten().tolist()}


def test_frozen_kernels_decode_to_members(place: Path, frozen: Path) -> None:
    assert len(check_members(place, frozen)) > 2


def test_kernels_that_share_prototypes_decode_to_members(place: Path) -> None:
    found = check_members(place, frozen_run(place, "shared", "prototypes-2"))
    assert "prototypes-2" in found


def test_a_coded_file_that_was_altered_fails_the_check(
    place: Path, frozen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    back = place / "g.pt"
    assert run(["export", str(place / "frozen.kscode"), "--to", "torch", "--out", str(back)]) == 0
    payload = torch.load(back, weights_only=True)
    for value in payload["state_dict"].values():
        if value.ndim == 4:
            value *= 2
    torch.save(payload, back)
    capsys.readouterr()
    assert run(["check", str(back), "--baseline", str(frozen)]) == 1
    assert "kernels.frozen_changed" in capsys.readouterr().out
    assert run(["check", str(frozen / "tiny.pt"), "--baseline", str(frozen)]) == 0


def test_the_report_of_the_run_tells_of_its_coded_file(place: Path, frozen: Path) -> None:
    report = read_report(frozen)
    coded = report.coded
    assert coded is not None
    assert coded.bytes == (place / "frozen.kscode").stat().st_size
    assert coded.decoded is not None
    assert coded.decoded.ci95[0] <= coded.decoded.top1 <= coded.decoded.ci95[1]
    assert len(coded.tried) > 1
    assert all(point.kl is not None for point in coded.tried)
    assert sum(layer.bytes for layer in coded.layers) < coded.bytes
    for page in ("report.md", "report.html"):
        text = (frozen / page).read_text()
        assert "Coded size" in text
        assert f"{coded.exact} of {coded.structured}" in text
    assert "KL over bytes tried" in (frozen / "report.html").read_text()
    assert run(["report", str(frozen)]) == 0
