"""Fine-tuning as a user meets it: interruptions, many processes, bad input, and the words for each."""

import json
import shlex
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import NET, npz, weights_in, write_zip
from processes import run_fresh, run_warm
from saying import fails
from torch import nn

from kernelsimp.cli.main import resume_line, run
from kernelsimp.training import finetune as room

HERE = Path(__file__).parent
RUN = ["--dof", "0.5", "--cost", "absolute", "--finetune", "--batch-size", "10", "--epochs", "2"]


def bare() -> nn.Module:
    """A network of one convolution, without bias: frozen, it leaves nothing to train."""
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


@pytest.fixture
def command(model: Path, tmp_path: Path) -> list[str]:
    """Simplify and fine-tune a tiny network on forty images: four steps an epoch, two epochs."""
    images = npz(tmp_path / "images.npz", (8, 8, 3))
    out = ["--arch", NET, "--data", images, "--out", str(tmp_path / "run")]
    return ["simplify", str(model), *RUN, *out]


def at_batch(monkeypatch, number, happens):
    """Let something happen to the loss of one batch of the run, counted from 1."""
    usual, count = room.objective, [0]

    def objective(*arguments):
        count[0] += 1
        loss = usual(*arguments)
        return happens(loss) if count[0] == number else loss

    monkeypatch.setattr(room, "objective", objective)


# ---------------------------------------------------------------- watching


def test_every_epoch_is_a_row_on_the_terminal_and_in_the_log(command, tmp_path, capsys):
    assert run(command) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().err.splitlines()]
    heads = "epoch loss val top1 val low val high lr images per second held"
    assert lines.count(heads) == 1
    top = lines.index(heads)
    rows = [line.split() for line in lines[top + 1 :] if line[:2] in ("1 ", "2 ")]
    assert [row[0] for row in rows] == ["1", "2"]
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    logged = [line for line in logged if line["event"] == "row"]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [line["loss"] for line in logged] == [epoch["train_loss"] for epoch in report["training"]]
    for line, row in zip(logged, rows, strict=True):
        assert line["val_low"] < line["val_top1"] < line["val_high"]
        assert line["held"] == pytest.approx(100 * report["kernels"]["frozen"] / report["kernels"]["total"])
        assert row[1] == f"{line['loss']:.4g}"


def test_tensorboard_events_are_written_where_it_is_installed(command, tmp_path):
    pytest.importorskip("torch.utils.tensorboard", reason="TensorBoard is not installed")
    assert run([*command, "--quiet"]) == 0
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


# ---------------------------------------------------------------- interruptions


def test_an_interrupt_finishes_the_step_says_how_to_go_on_and_exits_130(
    command, tmp_path, capsys, monkeypatch
):
    assert run([*command, "--quiet"]) == 0
    expected = weights_in(tmp_path / "run")

    def interrupt(loss):
        signal.raise_signal(signal.SIGINT)
        return loss

    with monkeypatch.context() as patch:
        at_batch(patch, 6, interrupt)
        assert run([*command[:-1], str(tmp_path / "again")]) == 130
    said = capsys.readouterr().err.splitlines()
    line = shlex.join(["kernelsimp", *command[:-1], str(tmp_path / "again"), "--resume"])
    assert said[-2:] == [f"to go on: {line}", "kernelsimp: interrupted"]
    assert not (tmp_path / "again" / "tiny.pt").exists()
    assert run(shlex.split(line)[1:]) == 0
    assert "going on in epoch 2 after batch 2" in capsys.readouterr().err
    found = weights_in(tmp_path / "again")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    events = [json.loads(line) for line in (tmp_path / "again" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in events if line["event"] == "row"] == [1, 2]


def test_an_interrupt_before_anything_was_kept_offers_nothing(command, capsys, monkeypatch):
    from kernelsimp.commands import simplify

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(simplify, "simplify", interrupt)
    assert run(command) == 130
    assert capsys.readouterr().err.splitlines() == ["kernelsimp: interrupted"]


def test_the_line_that_goes_on_names_the_launcher_and_says_resume_once():
    command = ["simplify", "my model.pt", "--out", "run"]
    assert resume_line(command, {}) == "kernelsimp simplify 'my model.pt' --out run --resume"
    assert resume_line([*command, "--resume"], {}) == resume_line(command, {})
    launched = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "6"}
    head = "torchrun --nnodes 3 --nproc-per-node 2 -m "
    assert resume_line(command, launched) == head + resume_line(command, {})


@pytest.mark.parametrize("rank", ["RANK", "SLURM_PROCID"])
def test_an_interrupt_is_said_by_the_first_process_alone(rank, command, capsys, monkeypatch):
    from kernelsimp.commands import simplify

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setenv(rank, "1")
    monkeypatch.setattr(simplify, "follow_first_process", interrupt)
    assert run(command) == 130
    assert capsys.readouterr().err == ""


def test_a_state_of_other_settings_is_one_line(command, capsys):
    assert run([*command, "--quiet"]) == 0
    capsys.readouterr()
    words = "the resume state is of a run with {}; run without --resume to start again"
    assert run([*command, "--quiet", "--overwrite", "--lr", "0.2"]) == 0
    again = [*command, "--quiet", "--resume", "--lr"]
    fails([*again, "0.3"], capsys, words.format("lr = 0.2, this one has 0.3"))
    fails([*again, "0.2", "--tie"], capsys, words.format("hold = auto, this one has tie"))
    fails([*again, "0.2", "--batch-size", "20"], capsys, words.format("batch-size = 10, this one has 20"))
    other = words.format("other weights (another checkpoint, or another plan)")
    fails([*again, "0.2", "--dof", "0.6"], capsys, "has a finished run with --dof 0.5")
    (Path(command[-1]) / "report.json").unlink()  # as in a run that was stopped
    fails([*again, "0.2", "--dof", "0.6"], capsys, other)


# ---------------------------------------------------------------- bad input


def test_everything_frozen_is_said_and_skipped(tmp_path, capsys):
    torch.manual_seed(0)
    model = write_zip(bare().state_dict(), tmp_path / "bare.pt")
    images = npz(tmp_path / "images.npz", (8, 8, 3))
    arch = ["--arch", f"{__file__}:bare", "--data", images, "--out", str(tmp_path / "run")]
    assert run(["simplify", str(model), "--tolerance", "1", "--finetune", "--freeze", *arch]) == 0
    assert "nothing to train: every parameter is held; fine-tuning is skipped" in capsys.readouterr().err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["kernels"]["frozen"] == report["kernels"]["total"]
    assert not report["training"]


def test_a_loss_that_is_not_finite_keeps_the_last_good_state_and_exits_1(
    command, tmp_path, capsys, monkeypatch
):
    with monkeypatch.context() as patch:
        at_batch(patch, 6, lambda loss: loss * float("nan"))
        assert run(command) == 1
    assert "the loss is not finite in epoch 2: training stopped at" in capsys.readouterr().err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert any("no longer finite" in note for note in report["notes"])
    assert len(report["training"]) == 1
    assert all(torch.isfinite(value).all() for value in weights_in(tmp_path / "run").values())


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--epochs", "0"], "epochs is 0; expected 1 or more"),
        (["--precision", "16-mixed"], "precision 16-mixed needs a GPU; on the CPU use bf16-mixed or 32-true"),
        (["--hold", "half"], "--hold is 'half'; expected freeze, tie or none"),
    ],
)
def test_training_settings_are_judged_before_anything_is_done(option, words, command, tmp_path, capsys):
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "log.jsonl").write_text("of the run before\n")
    fails([*command, "--device", "cpu", *option], capsys, words)
    prune = ["prune", *command[1:2], *command[command.index("--arch") :], "--dof", "0.5", "--device", "cpu"]
    if option[0] != "--hold":
        fails([*prune, *option], capsys, words)
    assert [path.name for path in run_folder.iterdir()] == ["log.jsonl"]
    assert (run_folder / "log.jsonl").read_text() == "of the run before\n"


def test_a_batch_that_does_not_fit_is_one_line(command, capsys, monkeypatch):
    def full(loss):
        raise torch.OutOfMemoryError("CUDA out of memory")

    at_batch(monkeypatch, 1, full)
    fails(
        [*command, "--quiet"], capsys, "does not fit into memory; lower --batch-size, and raise --accumulate"
    )


def test_a_validation_split_smaller_than_the_classes_is_warned_of(model, tmp_path, capsys):
    with np.load(npz(tmp_path / "images.npz", (8, 8, 3)).removeprefix("npz:")) as whole:
        parts = {name: value[:3] if name.startswith("val") else value for name, value in whole.items()}
    np.savez(tmp_path / "few.npz", **parts)
    data = ["--arch", NET, "--data", f"npz:{tmp_path / 'few.npz'}", "--out", str(tmp_path / "run")]
    assert run(["simplify", str(model), *RUN, *data]) == 0
    words = "the validation split has 3 images for 5 classes: too few to choose the best epoch by"
    assert words in capsys.readouterr().err


def test_a_held_kernel_that_moved_is_refused_with_its_name_and_exit_3(command, tmp_path, capsys, monkeypatch):
    """The last bit of one frozen weight changes while the file is written."""
    from kernelsimp.models.checkpoint import Checkpoint

    usual, moved = Checkpoint.save, []

    def save(self, path):
        weight = self.tensors["stem.weight"]
        weight.view(torch.int32).reshape(-1)[4] ^= 1
        moved.append(weight)
        usual(self, path)

    monkeypatch.setattr(Checkpoint, "save", save)
    every = ["--dof", "0.1"]  # leaves no kernel of the stem free
    assert run([*command, *every, "--quiet"]) == 3
    assert "stem[0,0] moved while it was held; do not use this run" in capsys.readouterr().err
    assert not (tmp_path / "run" / "report.json").exists()


# ---------------------------------------------------------------- recipes

RECIPES = sorted(HERE.parent.glob("configs/*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_read_and_explained_and_makes_sense(path):
    from kernelsimp.settings_file import settle
    from kernelsimp.training.options import check_settings

    settings = settle({}, f"recipe:{path.stem}")
    check_settings(settings.finetune)
    text = path.read_text()
    assert text.startswith("# ")
    assert "#   kernelsimp " in text
    if settings.model.arch is not None:
        assert f"kernelsimp simplify {settings.model.arch} --config recipe:{path.stem}" in text


BUILDERS = {"torchvision": ("torchvision.models", "get_model"), "timm": ("timm", "create_model")}
THIN = {
    "mobilenet_v2": {"width_mult": 0.25, "num_classes": 10},
    "resnet50": {"width_per_group": 4, "num_classes": 10},
    "convnext_tiny.fb_in1k": {"dims": (8, 16, 32, 64), "num_classes": 10},
}
"""What makes a network of a library small; its layers keep their names and kinds."""


@pytest.mark.parametrize("name", ["imagenet-mobilenetv2", "imagenet-resnet50", "imagenet-convnext"])
def test_a_recipe_for_imagenet_trains_its_network(name, tmp_path, capsys, monkeypatch):
    """With a thin network of random weights and a folder of noise, one epoch, on small crops to be quick."""
    from PIL import Image

    from kernelsimp.models.architectures import build_model
    from kernelsimp.settings_file import settle

    settings = settle({}, f"recipe:{name}")
    library, _, network = settings.model.arch.partition(":")
    place, build = BUILDERS[library]
    models = pytest.importorskip(place, reason=f"{library} is not installed")
    monkeypatch.setattr(models, build, partial(getattr(models, build), **THIN[network]))
    dice = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        for label in range(2):
            folder = tmp_path / "imagenet" / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count // 2):
                Image.fromarray(dice.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(
                    folder / f"{number}.png"
                )
    torch.manual_seed(0)
    torch.save(build_model(settings.model.arch).state_dict(), tmp_path / "random.pt")
    monkeypatch.chdir(tmp_path)
    small = [
        "--input-size",
        "40",
        "--crop",
        "32",
        "--batch-size",
        "2",
        "--workers",
        "0",
        "--precision",
        "32-true",
    ]
    plan = ["--tolerance", "0.1", "--finetune", "--epochs", "1", "--out", "run"]
    assert run(["simplify", "random.pt", "--config", f"recipe:{name}", *plan, *small, "--quiet"]) == 0
    assert json.loads((tmp_path / "run" / "report.json").read_text())["training"]


# ---------------------------------------------------------------- two processes


def test_two_processes_make_one_run_like_one_with_double_batches(command, tmp_path):
    norm = ["--batch-norm", "eval", "--device", "cpu"]
    alone = [*command[:-1], str(tmp_path / "alone"), *norm, "--batch-size", "20", "--quiet"]
    assert run(alone) == 0
    done = run_warm("kernelsimp", *command, *norm, "--devices", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1
    assert done.stderr.count("epoch 2 of 2 ...") == 1
    found, expected = weights_in(tmp_path / "run"), weights_in(tmp_path / "alone")
    assert not all(torch.equal(found[name], value) for name, value in weights_before(command).items())
    for name, value in expected.items():  # sums over images are added up in another order
        assert (found[name] - value).float().norm() <= 3e-4 * value.float().norm(), name
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("run", "alone")]
    losses = [[epoch["train_loss"] for epoch in report["training"]] for report in reports]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def weights_before(command: list[str]) -> dict[str, torch.Tensor]:
    return torch.load(command[1], weights_only=True)["state_dict"]


@pytest.mark.slow
def test_torchrun_makes_one_run(command, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = run_fresh(*launcher, "-m", "kernelsimp", *command, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1
    assert json.loads((tmp_path / "run" / "report.json").read_text())["training"]


@pytest.mark.parametrize("rank", ["RANK", "SLURM_PROCID"])
def test_a_process_that_is_not_the_first_writes_and_says_nothing(
    rank, command, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv(rank, "1")
    plain = [word for word in command if word != "--finetune"]
    assert run(plain) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert not (tmp_path / "run").exists()
