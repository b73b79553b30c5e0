"""Which recipe a large network gets where nobody names one, and who it gives way to."""

from dataclasses import replace

import pytest
import torch
from saying import Heard, refusal
from torch import nn

from kernelsimp.commands.recipes import recipe_of_kind, with_recipe
from kernelsimp.models.layers import bank_from_model
from kernelsimp.models.network import Network
from kernelsimp.settings import DataSettings, PlanSettings, RunSettings, Settings
from kernelsimp.settings_file import config_path, settle


def network_of(*layers: nn.Module) -> Network:
    torch.manual_seed(0)
    bank = bank_from_model(nn.Sequential(*layers))
    return Network(None, bank, None, torch.device("cpu"))  # type: ignore[arg-type]


DENSE = (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
DEPTHWISE = (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 64, 1), nn.Conv2d(64, 64, 5, groups=64))
LARGE = Settings(data=DataSettings(input_size=224))


@pytest.mark.parametrize(
    ("layers", "side", "expected"),
    [
        (DENSE, 224, "imagenet-dense"),
        (DEPTHWISE, 224, "imagenet-depthwise"),
        (DENSE, 32, None),
        (DEPTHWISE, None, None),
        ((nn.Conv2d(3, 8, 1),), 224, None),
    ],
)
def test_large_networks_get_the_recipe_of_their_kind(
    layers: tuple[nn.Module, ...], side: int | None, expected: str | None
) -> None:
    assert recipe_of_kind(network_of(*layers).bank, side) == expected


def test_a_recipe_sets_what_was_left_open_and_nothing_else() -> None:
    heard = Heard()
    asked = replace(LARGE, plan=PlanSettings(dof=0.4, cost="mixed"))
    made = with_recipe(network_of(*DEPTHWISE), asked, heard)
    assert made.plan == replace(asked.plan, families=("linear", "prototypes", "zero"))
    assert made.data.calibration_flip
    assert made.finetune.hold == "tie"
    assert len(heard.notes) == 1
    assert heard.notes[0].startswith("recipe:imagenet-depthwise sets what was left open")
    assert with_recipe(network_of(*DEPTHWISE), made, heard) == made
    assert len(heard.notes) == 1


def test_whoever_says_none_or_names_a_settings_file_has_chosen() -> None:
    network = network_of(*DENSE)
    none = replace(LARGE, run=RunSettings(recipe="none"))
    assert with_recipe(network, none, Heard()) == none
    named = settle({"data": {"input_size": 224}}, "recipe:imagenet")
    assert with_recipe(network, named, Heard()) == named


def test_an_unknown_word_for_the_recipe_is_one_line() -> None:
    asked = replace(LARGE, run=RunSettings(recipe="imagenet"))
    words = refusal(lambda: with_recipe(network_of(*DENSE), asked, Heard()))
    assert words == "--recipe is 'imagenet'; expected auto or none, or --config recipe:NAME"


@pytest.mark.parametrize("name", ["imagenet-dense", "imagenet-depthwise"])
def test_the_recipes_of_kinds_are_there_and_are_settings(name: str) -> None:
    assert config_path(f"recipe:{name}").is_file()
    assert settle({}, f"recipe:{name}").run.recipe == "none"
