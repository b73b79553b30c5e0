"""Holds after a run, constraints before training, penalties during it: for your own training loop.

    model.load_state_dict(kernelsimp.load_weights("run/model.pt"))  # the checkpoint that the run wrote
    kernelsimp.hold(model, "run")                         # the plan and the mode are the run's
    optimizer = torch.optim.AdamW(model.parameters())
    for images, labels in loader:
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    kernelsimp.release(model)                             # plain parameters again, not one held bit moved
    torch.save(model.state_dict(), "mine.pt")

That was after: what a run simplified stays as it is. Before: kernels lie in a family from the first step,
because nothing else can be reached.

    model = MyNet()                                          # initialised as ever
    kernelsimp.nn.constrain(model, {"stem*": "full-square", "*": {"odd-h": 0.25, "rank-one": 0.5}})
    ...                                                      # train with any optimiser
    torch.save(kernelsimp.nn.plain_state(model), "mine.pt")  # loads strictly in a plain MyNet()

or a layer at a time: `ConstrainedConv2d(16, 32, 3, padding=1, family="mirror-h")`.

During: a penalty draws kernels towards few bits, towards symmetry, or towards smoothness.

    penalties = kernelsimp.nn.Penalties(model, {"rate": 1.0, "asymmetry": 0.5})
    loss = torch.nn.functional.cross_entropy(model(images), labels) + penalties(step / steps)

The optimiser may be made before or after (with `prototypes-K` and `scale` after: they bring parameters of
their own): parameters keep their identity. Kernels are (out, in / groups).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

from torch import nn

from kernelsimp.errors import KernelsimpError, did_you_mean
from kernelsimp.records.plan import Plan
from kernelsimp.records.plan_file import read_plan
from kernelsimp.settings_file import read_toml
from kernelsimp.training.constraints import constrain as constrain_by_rules
from kernelsimp.training.constraints import plain_state
from kernelsimp.training.hold import Mode, survival_in_model, verify
from kernelsimp.training.hold import hold as hold_by_plan
from kernelsimp.training.hold import release as release_weights
from kernelsimp.training.penalties import PENALTIES, Penalties, PenaltySettings
from kernelsimp.training.rules import CONSTRAINTS, Mix, Rules

__all__ = [
    "CONSTRAINTS",
    "PENALTIES",
    "ConstrainedConv1d",
    "ConstrainedConv2d",
    "ConstrainedConv3d",
    "Penalties",
    "PenaltySettings",
    "constrain",
    "hold",
    "plain_state",
    "release",
    "verify",
]


def constrain(model: nn.Module, rules: Rules, *, seed: int = 0, fresh: bool = True) -> Plan:
    """Hold kernels of `model` in the families that `rules` give them, from now on.

    `rules` is one name of `CONSTRAINTS` for every kernel larger than 1x1, or a mapping of layer globs to
    names or to mixes, {"odd-h": 0.25, "full-square": 0.5}: shares of the layer's kernels, dealt out by
    `seed`; what they leave is free. The first glob that fits a layer decides; layers that none fits are free.
    Call it after the network is initialised: with `fresh` each family's kernels keep their mean square, so
    signals keep their size; pass `fresh=False` for trained weights, which then go to their nearest members.
    `release` makes the parameters plain again and `plain_state` gives a state dict that the network without
    constraints loads strictly. Returns the plan: which kernel has which family.

    Names are those of the table of families (`mirror-h`, `radial`, `odd-h`, `equal-rows`...), `rank-one`,
    `gaussian-N` (sums of Gaussian derivatives up to order N), `prototypes-K` (a * x + b with K prototypes x
    shared by the layer) and `free`. Raises `KernelsimpError` for a glob that fits no layer, a family that is
    not offered at a layer's kernel shape, shares that are negative or exceed one, or a network that is held
    or constrained already.
    """
    return constrain_by_rules(model, rules, seed=seed, fresh=fresh)


class ConstrainedConv1d(nn.Conv1d):
    """`torch.nn.Conv1d` whose kernels lie in `family` from the first step to the last.

    Takes the arguments of `torch.nn.Conv1d`, then `family`, a name of `CONSTRAINTS` or a mix {name: share},
    and the `seed` that deals a mix out. `weight` is computed and cannot be initialised in place afterwards;
    the initialisation of `torch.nn.Conv1d` keeps its mean square. Kernels are (1, k): `mirror-h` is symmetry
    in time. Raises `KernelsimpError` as `constrain` does.
    """

    def __init__(self, *args: Any, family: str | Mix, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        constrain_by_rules(self, {"*": family}, seed=seed)


class ConstrainedConv2d(nn.Conv2d):
    """`torch.nn.Conv2d` whose kernels lie in `family` from the first step to the last.

        nn.Sequential(ConstrainedConv2d(3, 16, 3, padding=1, family={"full-square": 0.5, "odd-h": 0.25}), ...)

    Takes the arguments of `torch.nn.Conv2d`, then `family`, a name of `CONSTRAINTS` or a mix {name: share},
    and the `seed` that deals a mix out. `weight` is computed and cannot be initialised in place afterwards;
    the initialisation of `torch.nn.Conv2d` keeps its mean square. Raises `KernelsimpError` as `constrain`
    does.
    """

    def __init__(self, *args: Any, family: str | Mix, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        constrain_by_rules(self, {"*": family}, seed=seed)


class ConstrainedConv3d(nn.Conv3d):
    """`torch.nn.Conv3d` whose kernels lie in `family` from the first step to the last.

    Takes the arguments of `torch.nn.Conv3d`, then `family`, a name of `CONSTRAINTS` or a mix {name: share},
    and the `seed` that deals a mix out. Mirrors and turns act on each (kh, kw) slice alike; `rank-one`,
    `gaussian-N` and `prototypes-K` are not offered. Raises `KernelsimpError` as `constrain` does.
    """

    def __init__(self, *args: Any, family: str | Mix, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        constrain_by_rules(self, {"*": family}, seed=seed)


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
    left = survival_in_model(model, plan)
    if left.exact < left.total:
        loose = _settings_of(folder).get("hold") == "none"
        remedy = "load the checkpoint of that run into the model first"
        raise KernelsimpError(
            f"{left.total - left.exact} of {left.total} kernels are not in the structure that {folder} gave"
            f" them; {'that run held nothing while it trained' if loose else remedy}"
        )
    hold_by_plan(model, plan, cast(Mode, chosen))


def release(model: nn.Module) -> None:
    """Verify every held kernel, then make all parameters plain again: same names, same objects.

    Constrained layers keep exactly the weights they computed. Raises `HoldError` with the kernel's name if
    one held bit moved.
    """
    verify(model)
    release_weights(model)


def _mode_of(folder: Path) -> str:
    """Return how the run held its kernels: values, where it left that open or held nothing."""
    table = _settings_of(folder)
    mode = str(table.get("hold", "auto"))
    if mode == "tie" and table.get("free_scale"):
        return "scale"
    return "freeze" if mode in ("auto", "none") else mode


def _settings_of(folder: Path) -> Mapping[str, Any]:
    settings = folder / "settings.toml"
    return read_toml(settings).get("finetune", {}) if settings.exists() else {}
