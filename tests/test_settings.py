from pathlib import Path

import pytest

from kernelsimp.errors import KernelsimpError
from kernelsimp.settings import Settings
from kernelsimp.settings_file import as_toml, config_path, recipe, settle


def settled(tmp_path: Path, text: str) -> Settings:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    return settle({}, str(file))


def test_the_command_line_wins_over_the_file_and_the_file_over_the_base(tmp_path):
    file = tmp_path / "s.toml"
    file.write_text('[data]\naugment = "cifar"\nchannels = 3\n')
    base = {"data": {"augment": "imagenet", "channels": 1, "crop": 24}}
    data = settle({"data": {"channels": 4, "crop": None}}, str(file), base).data
    assert (data.channels, data.augment, data.crop) == (4, "cifar", 24)


def test_settings_written_as_toml_read_back_the_same(tmp_path):
    settings = settle({"data": {"mean": "0.1,0.2", "data": 'odd "name"\\'}, "plan": {"dof": 0.25}})
    assert settled(tmp_path, as_toml(settings)) == settings


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[data]\nmeen = 1\n", "[data]: unknown key 'meen'; did you mean 'mean'?"),
        ("[dat]\n", "unknown stage [dat]; did you mean 'data'?"),
        ("x = 1\n", "key 'x' stands outside a stage; put it under its heading, such as [data]"),
        ('[data]\nmean = "a"\n', "[data]: 'mean' is 'a'; expected a list of float"),
        ('[plan]\ndof = "x"\n', "[plan]: 'dof' is 'x'; expected a number"),
        ("[data]\ncrop = true\n", "[data]: 'crop' is True; expected a whole number"),
        ("[data\n", "not a TOML file"),
    ],
)
def test_a_bad_file_gets_one_clear_line(tmp_path, text, words):
    with pytest.raises(KernelsimpError) as caught:
        settled(tmp_path, text)
    assert words in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(KernelsimpError, match=r"nowhere\.toml: no such file of settings; check the path$"):
        settle({}, str(tmp_path / "nowhere.toml"))
    with pytest.raises(KernelsimpError, match=r": cannot read settings: Is a directory$"):
        settle({}, str(tmp_path))


def test_recipes_come_with_the_package_and_unknown_ones_are_named():
    assert settle({}, "recipe:digits").data.data == "digits"
    assert recipe("cifar10-resnet")["data"]["augment"] == "cifar"
    with pytest.raises(KernelsimpError, match="unknown recipe 'digit'; did you mean 'digits'"):
        config_path("recipe:digit")


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parents[1].glob("configs/*.toml")), ids=lambda p: p.stem
)
def test_every_shipped_config_is_readable(path):
    of_a_kind = path.stem in ("imagenet-dense", "imagenet-depthwise")  # of networks with any images
    assert (settle({}, str(path)).data.mean is None) == of_a_kind
