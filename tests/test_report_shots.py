"""Pages of real runs, photographed at two widths, light and dark: no error, no request, nothing wider.

The pictures land in the folder that KERNELSIMP_SCREENSHOTS names, which CI keeps, else in a temporary one.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import SMALL, npz, tiny_state, write_zip
from PIL import Image

from kernelsimp.cli.main import run
from scripts import script

CHROMIUM = Path("/usr/bin/chromium")
MOST_PALE = 0.02
"""Share of the pixels of a dark picture of kernels that may be nearly white: the letters beside them."""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is absent: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def shots() -> Any:
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    return script("report_shots")


@pytest.fixture(scope="module")
def browser(shots: Any) -> Iterator[Any]:
    with shots.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=str(CHROMIUM), args=shots.FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the pages of two runs, one with controls and curves, and of a scan, a pair and several runs."""
    place = tmp_path_factory.mktemp("runs")
    model = write_zip({"state_dict": tiny_state()}, place / "tiny.pt")
    data = ["--data", npz(place / "images.npz", (8, 8, 3))]
    simplify = ["simplify", str(model), *data, *SMALL]
    one, two = place / "one", place / "two"
    assert (
        run([*simplify, "--dof", "0.6", "--controls", "--finetune", "--epochs", "3", "--out", str(one)]) == 0
    )
    assert run([*simplify, "--dof", "0.4", "--tie", "--out", str(two)]) == 0
    assert run(["scan", str(model), "--html", str(place / "scan.html"), "--quiet"]) == 0
    assert run(["report", str(one), str(two), "--out", str(place / "both")]) == 0
    return {
        "run": one / "report.html",
        "scan": place / "scan.html",
        "pair": place / "both" / "pair.html",
        "runs": place / "both" / "runs.html",
    }


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of a run of the demo's network on its own images."""
    from kernelsimp.commands.demo import NETWORK

    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    model = Path(__file__).parents[1] / "kernelsimp" / "models" / "weights" / NETWORK
    out = tmp_path_factory.mktemp("digits") / "run"
    asked = ["--arch", "zoo:digits-depthwise", "--data", "digits", "--dof", "0.6", "--freeze", "--quiet"]
    assert run(["simplify", str(model), *asked, "--out", str(out)]) == 0
    return out / "report.html"


def folder_for(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("KERNELSIMP_SCREENSHOTS", tmp_path)).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def photograph(shots: Any, browser: Any, page: Path, folder: Path, name: str) -> None:
    """Write eight pictures of a page under its name; fail for what is wrong with it."""
    named = folder / f"{name}.html"
    named.write_bytes(page.read_bytes())
    assert list(shots.shoot(browser, named, folder, full=True)) == []
    taken = {path.name for path in folder.glob(f"{name}-*.png")}
    sides = [f"{name}-{width}-{scheme}" for width in (1400, 390) for scheme in ("light", "dark")]
    assert {f"{side}{end}.png" for side in sides for end in ("", "-full")} <= taken


@pytest.mark.parametrize("name", ["run", "scan", "pair", "runs"])
def test_a_page_is_photographed_without_a_fault(
    shots: Any, browser: Any, pages: dict[str, Path], tmp_path: Path, name: str
) -> None:
    photograph(shots, browser, pages[name], folder_for(tmp_path), name)


def test_the_digits_are_photographed_and_their_kernels_are_no_white_boxes_in_the_dark(
    shots: Any, browser: Any, digits: Path, tmp_path: Path
) -> None:
    folder = folder_for(tmp_path)
    photograph(shots, browser, digits, folder, "digits")
    pale = {}
    for scheme in ("light", "dark"):
        page = browser.new_page(viewport={"width": 1400, "height": 1000}, color_scheme=scheme)
        page.goto(digits.resolve().as_uri())
        page.locator(".strip").screenshot(path=str(tmp_path / "strip.png"))
        page.close()
        pixels = np.asarray(Image.open(tmp_path / "strip.png").convert("RGB"))
        pale[scheme] = float((pixels.min(axis=-1) > 190).mean())
    assert pale["dark"] <= MOST_PALE < pale["light"]


def test_the_first_screen_of_a_phone_shows_kernels_and_nothing_under_the_switch(
    browser: Any, digits: Path
) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(digits.resolve().as_uri())
    figure = page.locator(".strip figure").first.bounding_box()
    assert figure["y"] + figure["height"] <= 844
    links, switch = (page.locator(name).bounding_box() for name in (".links", "#theme"))
    assert links["x"] + links["width"] <= switch["x"]
    assert page.evaluate(
        "document.querySelector('.links').scrollWidth > document.querySelector('.links').clientWidth"
    )
    page.close()


@pytest.mark.parametrize("width", [390, 1400])
def test_the_names_over_a_kernel_keep_inside_its_figure(browser: Any, digits: Path, width: int) -> None:
    """The row of names is as wide as the pictures under it, so each stands over its own."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(digits.resolve().as_uri())
    said = page.evaluate("getComputedStyle(document.querySelector('figure.k'), '::before').content")
    words = said.strip('"').split(" ")
    assert [word.strip("\u2007") for word in words] == ["before", "ideal", "after", "difference"]
    assert {len(word) for word in words} == {10}
    assert page.evaluate(
        "document.querySelector('figure.k').scrollWidth <= document.querySelector('figure.k').clientWidth"
    )
    page.close()
