"""What every command answers on the device, beside the CPU's answer or a bound."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu_parts.place import ROOT, Answer, Place
from kernelsimp.evaluation.divergence import divergence
from kernelsimp.models.architectures import build_model, load_weights
from kernelsimp.models.checkpoint import load_checkpoint
from kernelsimp.records.plan_file import read_plan
from kernelsimp.report.store import read_report

SAME_CHOICES, SAME_POINTS, SAME_KL = 0.98, 1.0, 1e-3
"""How far the device may be from the CPU: equal choices in a plan, accuracy in pp, KL in nats an image."""

ONE_CARD = "one card: not run"

PLANNED = ("--dof", "0.5", "--cost", "mixed")
FINETUNE = ("--finetune", "--epochs", "1", "--lr", "0.005", "--dof", "0.6", "--cost", "absolute")


def train(place: Place) -> Answer:
    """Train from scratch under a constraint and a penalty."""
    words = (
        "--constrain",
        "0=mirror-h",
        "--penalty",
        "smoothness:0.001",
        "--epochs",
        "2",
        "--lr",
        "0.05",
    )
    out = place.folder / f"trained-{place.device}"
    place.run("train", "--arch", place.arch, "--data", place.data, "--out", out, *words)
    return Answer(ok=place.model.exists(), figure=f"{accuracy(out, 'trained'):.1f} % right")


def plan(place: Place) -> Answer:
    """Survey, choose, re-solve: the plan and the accuracy are the CPU's."""
    runs = [place.simplify("plan", *PLANNED), place.simplify("plan-beside", *PLANNED, device="cpu")]
    return alike(place, runs)


def together(place: Place) -> Answer:
    """Two devices that plan together come to what one comes to."""
    kind = place.device.partition(":")[0]
    if kind == "cuda" and torch.cuda.device_count() < 2:
        return Answer(ok=True, figure=ONE_CARD)
    runs = [
        place.simplify("two", *PLANNED, "--devices", "2", device=kind),
        place.simplify("one", *PLANNED),
    ]
    return alike(place, runs)


def alike(place: Place, runs: list[Path]) -> Answer:
    """Say whether two runs came to the same plan and to the same network, and how far they are apart."""
    plans = [read_plan(run / "plan.safetensors") for run in runs]
    pairs = list(zip(*(item.layers for item in plans), strict=True))
    same = sum(int((a.choice == b.choice).sum()) for a, b in pairs) / sum(a.choice.size for a, _ in pairs)
    right = [accuracy(run, "simplified") for run in runs]
    far = divergence_of(place, runs)
    ok = same >= SAME_CHOICES and abs(right[0] - right[1]) <= SAME_POINTS and far <= SAME_KL
    return Answer(ok=ok, figure=f"{same:.2%} of choices equal, {right[0] - right[1]:+.2f} pp, KL {far:.1e}")


def divergence_of(place: Place, runs: list[Path]) -> float:
    """Return KL(second || first), on the CPU, of the networks of two runs, in nats an image."""
    shown = np.load(place.folder / "images.npz")["test_images"]
    images = torch.from_numpy(shown).movedim(-1, 1).float() / 255
    answers = []
    for run in runs:
        model = build_model(place.arch)
        load_weights(model, load_checkpoint(run / place.model.name))
        with torch.no_grad():
            answers.append(model.eval()(images).double())
    return float(divergence(answers[1], answers[0]))


def held(*words: str) -> Callable[[Place], Answer]:
    """Fine-tune under a hold in some precision; the gate then proves that what is held kept its bits."""

    def tried(place: Place) -> Answer:
        name = "held" + "-".join(words).replace("--", "")
        out = place.simplify(name, *FINETUNE, *words)
        model = out / place.model.name
        place.run(
            "check", model, "--baseline", out / "report.json", "--arch", place.arch, "--data", place.data
        )
        return Answer(
            ok=True, figure=f"{accuracy(out, 'finetuned'):.1f} % right, the gate passes"
        )  # else it had exited with 1

    return tried


def resumed(place: Place) -> Answer:
    """A run that is killed and resumed ends with the bits of one that was not."""
    words = (*FINETUNE[:2], "3", *FINETUNE[3:], "--save-every", "0")
    whole = place.simplify("whole", *words)
    out = place.folder / f"killed-{place.device}"
    call = [
        sys.executable,
        "-m",
        "kernelsimp",
        "simplify",
        place.model,
        "--arch",
        place.arch,
        "--data",
        place.data,
    ]
    call = [*map(str, call), "--out", str(out), *words, "--device", place.device]
    process = subprocess.Popen(call, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not any((out / "resume").glob("*state*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    place.run(*call[3:-2], "--resume")
    name = place.model.name
    return Answer(ok=(whole / name).read_bytes() == (out / name).read_bytes(), figure="the same bits")


def evaluated(place: Place) -> Answer:
    """Accuracy and robustness are the CPU's."""
    words = ("--robustness", "--images", "100", "--corruptions", "fog", "--pgd-steps", "2", "--json")
    files = [place.folder / f"evaluated-{name}.json" for name in (place.device, "cpu")]
    for file, name in zip(files, (place.device, "cpu"), strict=True):
        place.run(
            "evaluate", place.model, "--arch", place.arch, "--data", place.data, *words, file, device=name
        )
    right = [figures(json.loads(file.read_text())) for file in files]
    far = max((abs(a - b) for a, b in zip(*right, strict=True)), default=float("nan"))
    return Answer(ok=far <= 2 * SAME_POINTS, figure=f"{len(right[0])} accuracies, at most {far:.2f} pp apart")


def compared(place: Place) -> Answer:
    """A comparison of the network with itself says that it is itself."""
    out = place.folder / f"compared-{place.device}.json"
    place.run("compare", place.model, place.model, "--arch", place.arch, "--data", place.data, "--json", out)
    text = json.loads(out.read_text())
    values = [row["cka"] for row in text["layers"] if row.get("cka") is not None]
    return Answer(
        ok=bool(values) and min(values) > 1 - 1e-4, figure=f"least CKA {min(values, default=0):.6f}"
    )


def pruned(place: Place) -> Answer:
    """Pruning leaves the share that was asked for."""
    out = place.folder / f"pruned-{place.device}"
    place.run("prune", place.model, "--arch", place.arch, "--data", place.data, "--dof", "0.5", "--out", out)
    left = read_report(out / "report.json").dof.fraction
    return Answer(
        ok=0.45 <= left <= 0.5,
        figure=f"{left:.1%} of the weights left, {accuracy(out, 'pruned'):.1f} % right",
    )


def accuracy(run: Path, stage: str) -> float:
    """Return the test accuracy of a stage in percent; that of the last where there is no such stage."""
    found = read_report(run / "report.json").accuracy
    assert found is not None
    return float({item.stage: item.top1 for item in found.stages}.get(stage, found.stages[-1].top1))


def figures(value: Any) -> list[float]:
    """Return every top-1 of an evaluation, in order."""
    if isinstance(value, dict):
        own = [float(value["top1"])] if isinstance(value.get("top1"), int | float) else []
        return own + [item for key, inner in value.items() if key != "top1" for item in figures(inner)]
    return [item for inner in value for item in figures(inner)] if isinstance(value, list) else []


CHECKS: dict[str, Callable[[Place], Answer]] = {
    "train": train,
    "plan": plan,
    "two cards": together,
    "freeze fp32": held(),
    "tie": held("--hold", "tie"),
    "scale": held("--hold", "tie", "--free-scale"),
    "freeze tf32": held("--precision", "tf32"),
    "freeze bf16": held("--precision", "bf16-mixed"),
    "freeze fp16": held("--precision", "16-mixed"),
    "compile": held("--compile"),
    "channels last": held("--channels-last"),
    "resume": resumed,
    "evaluate": evaluated,
    "compare": compared,
    "prune": pruned,
}

CARD_ALONE = ("freeze tf32", "freeze fp16")
"""What a CPU refuses."""
