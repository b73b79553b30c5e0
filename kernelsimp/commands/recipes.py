"""Which packaged recipe suits a network of ImageNet's size, where nobody named one."""

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.bank import KernelBank
from kernelsimp.models.network import Network
from kernelsimp.settings import Settings
from kernelsimp.settings_file import build, config_path, read_toml
from kernelsimp.watch import Watcher

LEAST_SIDE = 128
"""Images of fewer pixels a side are not ImageNet's."""


def recipe_of_kind(bank: KernelBank, side: int | None) -> str | None:
    """Return the recipe for the kernels of a network that sees images of `side` pixels, if there is one."""
    if side is None or side < LEAST_SIDE or not bank.spatial:
        return None
    depthwise = sum(layer.count for layer in bank.spatial if layer.kind == "depthwise")
    kernels = sum(layer.count for layer in bank.spatial)
    return "imagenet-depthwise" if 2 * depthwise > kernels else "imagenet-dense"


def with_recipe(network: Network, settings: Settings, watcher: Watcher) -> Settings:
    """Return the settings with those of the network's kind wherever they stand at their default; say so.

    Raises `KernelsimpError` where --recipe is neither auto nor none.
    """
    data, asked = settings.data, settings.run.recipe
    if asked not in ("auto", "none"):
        raise KernelsimpError(f"--recipe is '{asked}'; expected auto or none, or --config recipe:NAME")
    name = recipe_of_kind(network.bank, data.crop or data.input_size)
    if name is None or asked == "none":
        return settings
    stages = {stage.name: getattr(settings, stage.name) for stage in fields(settings)}
    for heading, values in read_toml(config_path(f"recipe:{name}")).items():
        mine, usual = stages[heading], type(stages[heading])()
        left = {key: value for key, value in values.items() if getattr(mine, key) == getattr(usual, key)}
        stages[heading] = replace(mine, **fields_of(build(type(mine), left, where=name), left))
    made = replace(settings, **stages)
    if made != settings:
        watcher.note(f"recipe:{name} sets what was left open (--recipe none: nothing, --config: another one)")
    return made


def fields_of(stage: Any, keys: Iterable[str]) -> dict[str, Any]:
    """Return some fields of a settings stage by name."""
    return {key: getattr(stage, key) for key in keys}
