"""Holds for your own training loop: what a run simplified stays as it is while you train the rest.

    model.load_state_dict(torch.load("run/model.pt"))     # the checkpoint that the run wrote
    kernelsimp.nn.hold(model, "run")                      # the plan and the mode are the run's
    optimizer = torch.optim.AdamW(model.parameters())
    for images, labels in loader:
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    kernelsimp.nn.release(model)                          # plain parameters again, not one held bit moved
    torch.save(model.state_dict(), "mine.pt")

The optimiser may be made before or after: parameters keep their identity. Kernels are (out, in / groups).
"""

from pathlib import Path
from typing import cast, get_args

from torch import nn

from kernelsimp.errors import KernelsimpError, did_you_mean
from kernelsimp.records.plan_file import read_plan
from kernelsimp.settings import read_toml
from kernelsimp.training.hold import Mode, survived, verify
from kernelsimp.training.hold import hold as hold_by_plan
from kernelsimp.training.hold import release as make_plain

__all__ = ["hold", "release", "verify"]


def hold(model: nn.Module, run: str | Path, mode: str | None = None) -> None:
    """Hold in `model` what the run in the directory `run` simplified.

    `mode` is `freeze` (values, bit for bit), `tie` (structure, coefficients train) or `scale` (shape, one
    factor a kernel trains); by default what the run itself used. The model must have the run's weights.
    Raises `KernelsimpError` where the run cannot be read, does not fit the model, or has other weights.
    """
    folder = Path(run)
    plan = read_plan(folder / "plan.safetensors")
    chosen = mode or _mode_of(folder)
    if chosen not in get_args(Mode):
        raise KernelsimpError(f"unknown hold mode '{chosen}'{did_you_mean(chosen, get_args(Mode))}")
    left = survived(model, plan)
    if left.exact < left.total:
        raise KernelsimpError(
            f"{left.total - left.exact} of {left.total} kernels are not in the structure that {folder} gave"
            " them; load the checkpoint of that run into the model first"
        )
    hold_by_plan(model, plan, cast(Mode, chosen))


def release(model: nn.Module) -> None:
    """Verify every held kernel, then make all parameters plain again: same names, same objects.

    Raises `HoldError` with the kernel's name if one held bit moved.
    """
    verify(model)
    make_plain(model)


def _mode_of(folder: Path) -> str:
    """Return how the run held its kernels: values, where it left that open or held nothing."""
    settings = folder / "settings.toml"
    table = read_toml(settings).get("finetune", {}) if settings.exists() else {}
    mode = str(table.get("hold", "auto"))
    if mode == "tie" and table.get("free_scale"):
        return "scale"
    return "freeze" if mode in ("auto", "none") else mode
