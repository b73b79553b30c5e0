"""Networks that are trained here from the first step, by the recipes that come with the product."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from kernelsimp.commands.train import fresh_network
from kernelsimp.data.sources import Data
from kernelsimp.models.architectures import build_model
from kernelsimp.settings import Settings
from kernelsimp.settings_file import settle
from kernelsimp.training.constraints import plain_state
from kernelsimp.training.finetune import finetune
from kernelsimp.training.job import job_of

Given = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Recipe:
    """What is trained and how: `{folder}` stands for the data's folder."""

    arch: str
    file: str | None = None
    given: Given = field(default_factory=dict)


RECIPES = {
    "digits": Recipe("zoo:digits-depthwise", "recipe:digits-depthwise"),
    "digits-cnn": Recipe("zoo:digits-cnn", "recipe:digits-train"),
    "lenet": Recipe(
        "{folder}/nets.py:lenet_mnist",
        given={"data": {"data": "npz:{folder}/mnist-part.npz"}, "finetune": {"epochs": 6, "lr": 0.05}},
    ),
}


def settings_of(name: str, folder: Path | None, seed: int, **stages: Mapping[str, Any]) -> Settings:
    """Return how a network is trained from one seed; `stages` change the recipe."""
    recipe = RECIPES[name]
    base = {
        stage: {
            key: value.format(folder=folder) if isinstance(value, str) else value
            for key, value in own.items()
        }
        for stage, own in recipe.given.items()
    }
    model = {"arch": recipe.arch.format(folder=folder)}
    given = {"model": model, "run": {"seed": seed, "device": "cpu"}, **stages}
    return settle(given, recipe.file, base)


def train_network(
    settings: Settings, look: Callable[[int, nn.Module], None] = lambda _, __: None
) -> tuple[nn.Module, Data]:
    """Return a trained network and its images; `look` is called before the first epoch, 0, and after each.

    The seed draws the weights at the start and the order of the images. The split of digits hangs on a seed
    too: all networks are shown the images of the first.
    """
    data = fresh_network(replace(settings, run=replace(settings.run, seed=0))).data
    fresh = fresh_network(settings)
    look(0, fresh.model)
    job = replace(
        job_of(data, settings, None),
        penalty=fresh.penalties,
        held=fresh.held,
        on_epoch=lambda epoch: look(epoch.epoch, fresh.model),
    )
    finetune(fresh.model, job, replace(settings.finetune, distill=0.0, log="none"))
    assert settings.model.arch is not None
    plain = build_model(settings.model.arch)
    plain.load_state_dict(plain_state(fresh.model))
    return plain.eval(), data
