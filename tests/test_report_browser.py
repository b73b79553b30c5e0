"""report.html in a real browser: no error, no request, sorting, filtering, pictures, two widths, contrast.

Screenshots land in the folder that KERNELSIMP_SCREENSHOTS names, where it is set.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reports

from kernelsimp.report import Gallery, choose, pair_html, report_html, scan_html

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
]
HOSTILE = "<script>alert(1)</script>"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is absent: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the pages of a run, a hostile run, a scan and a pair."""
    before, after, plan = reports.before_and_after()
    report, gallery = reports.report(), choose(plan, before, after)
    names = {"conv1": HOSTILE}
    bad = Gallery(tuple(replace(p, layer=names.get(p.layer, p.layer)) for p in gallery.pictures))
    place = tmp_path_factory.mktemp("pages")
    pages = {
        "run": report_html(report, gallery),
        "hostile": report_html(reports.renamed(report, names), bad),
        "scan": scan_html(reports.scan()),
        "pair": pair_html((report, replace(report, layers=report.layers[:2])), ("a", "b")),
    }
    for name, text in pages.items():
        (place / f"{name}.html").write_text(text, encoding="utf-8")
    return place


class Opened:
    """A page with everything it said and asked for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append("dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def column(self, number: int, table: str = "table.sortable") -> list[str]:
        rows = "[...t.tBodies[0].rows].filter(r => !r.hidden)"
        script = f"t => {rows}.map(r => r.cells[{number}].textContent.trim())"
        return list(self.page.eval_on_selector(table, script))


@pytest.mark.parametrize("name", ["run", "hostile", "scan", "pair"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_is_quiet_asks_for_nothing_and_fits(browser: Any, folder: Path, name: str, width: int) -> None:
    opened = Opened(browser, folder / f"{name}.html", viewport={"width": width, "height": 900})
    assert opened.said == []
    assert [url for url in opened.asked if not url.startswith("data:")] == [
        (folder / f"{name}.html").as_uri()
    ]
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if "KERNELSIMP_SCREENSHOTS" in os.environ:
        target = Path(os.environ["KERNELSIMP_SCREENSHOTS"]).resolve() / f"{name}-{width}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        opened.page.screenshot(path=str(target), full_page=True)
    opened.page.close()


def test_sorting_by_a_figure_goes_down_up_and_back(browser: Any, folder: Path) -> None:
    opened = Opened(browser, folder / "run.html")
    head = opened.page.locator("table.sortable th button", has_text="kernels")
    original = opened.column(3)
    assert original == ["24", "128", "6"]
    head.click()
    assert opened.column(3) == ["128", "24", "6"]
    assert opened.page.locator("th[aria-sort=descending]").count() == 1
    head.click()
    assert opened.column(3) == ["6", "24", "128"]
    head.click()
    assert opened.column(3) == original
    assert opened.page.locator("th[aria-sort]").count() == 0
    opened.page.close()


def test_sorting_works_from_the_keyboard_and_by_name(browser: Any, folder: Path) -> None:
    opened = Opened(browser, folder / "run.html")
    opened.page.locator("table.sortable th button").first.focus()
    opened.page.keyboard.press("Enter")
    assert opened.column(0) == ["conv1", "layer1.0.conv1", "layer2.0.conv1"]
    opened.page.keyboard.press("Space")
    assert opened.column(0) == ["layer2.0.conv1", "layer1.0.conv1", "conv1"]
    opened.page.close()


def test_filtering_rows_hides_the_others_and_says_how_many(browser: Any, folder: Path) -> None:
    opened = Opened(browser, folder / "run.html")
    opened.page.get_by_label("Filter rows").fill("LAYER")
    assert opened.column(0) == ["layer1.0.conv1", "layer2.0.conv1"]
    assert opened.page.locator("#layers .tally").text_content() == "2 of 3 rows"
    opened.page.get_by_label("Filter rows").fill("")
    assert len(opened.column(0)) == 3
    opened.page.close()


def test_the_gallery_filters_by_structure_and_layer(browser: Any, folder: Path) -> None:
    opened = Opened(browser, folder / "run.html")
    opened.page.get_by_label("Structure", exact=True).select_option("equal-rows")
    report = reports.report()
    wanted = sum(layer.families["equal-rows"] for layer in report.layers)
    tally = opened.page.locator("#kernels .tally")
    assert tally.text_content() == f"{wanted} kernels"
    opened.page.get_by_label("Layer", exact=True).fill("layer1")
    assert tally.text_content() == f"{report.layers[1].families['equal-rows']} kernels"
    assert opened.page.locator("details.layer:visible").count() == 1
    opened.page.close()


def test_every_picture_loads_and_shows_its_kernel(browser: Any, folder: Path) -> None:
    opened = Opened(browser, folder / "run.html")
    sizes = opened.page.evaluate(
        """async () => Promise.all([...document.querySelectorAll('image')].map(async (image) => {
            const picture = new Image();
            picture.src = image.getAttribute('href');
            await picture.decode();
            return [picture.naturalWidth, picture.naturalHeight, image.width.baseVal.value];
        }))"""
    )
    assert len(sizes) == 3
    assert all(width > 0 and height > 0 and width == placed for width, height, placed in sizes)
    opened.page.locator("details.layer summary").first.click()
    figure = opened.page.locator("details.layer figure svg").first
    colours = set(figure.screenshot())
    assert len(colours) > 40  # a blank box compresses to a handful of byte values
    opened.page.close()


def test_a_hostile_layer_name_is_shown_as_text(browser: Any, folder: Path) -> None:
    opened = Opened(browser, folder / "hostile.html")
    assert opened.said == []
    assert HOSTILE in opened.column(0)
    assert opened.page.locator("details.layer summary").first.inner_text().startswith(HOSTILE)
    opened.page.close()


def test_inline_code_that_is_not_ours_is_refused(browser: Any, folder: Path, tmp_path: Path) -> None:
    text = (folder / "run.html").read_text(encoding="utf-8")
    injected = tmp_path / "injected.html"
    injected.write_text(text.replace("</main>", "<script>document.title = 'owned'</script></main>"))
    opened = Opened(browser, injected)
    assert opened.page.title() != "owned"
    assert any("Content Security Policy" in line for line in opened.said)
    opened.page.close()


def test_the_command_is_copied_or_selected(browser: Any, folder: Path) -> None:
    opened = Opened(browser, folder / "run.html")
    opened.page.locator("#copy").click()
    opened.page.wait_for_function("document.getElementById('copy').textContent !== 'Copy'")
    selected = opened.page.evaluate("getSelection().toString()")
    assert selected.strip() == reports.report().provenance["command"]
    opened.page.close()


def test_without_script_everything_is_still_there(browser: Any, folder: Path) -> None:
    opened = Opened(browser, folder / "run.html", java_script_enabled=False)
    assert opened.page.locator("table.sortable tbody tr:visible").count() == 3
    assert opened.page.locator("input:visible, select:visible, button:visible").count() == 0
    opened.page.close()


CONTRAST = """() => {
  const linear = (v) => v <= 10 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
  const lum = (c) => .2126 * linear(c[0]) + .7152 * linear(c[1]) + .0722 * linear(c[2]);
  const rgb = (text) => {
    const p = text.match(/[\\d.]+/g).map(Number);
    return { c: p.slice(0, 3), a: p[3] ?? 1 };
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const b = rgb(getComputedStyle(e).backgroundColor);
      if (b.a === 1) return b.c;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length || ['SCRIPT', 'STYLE'].includes(e.tagName)) continue;
    const style = getComputedStyle(e);
    const front = rgb(e.namespaceURI.endsWith('svg') ? style.fill : style.color).c;
    const [x, y] = [lum(front), lum(behind(e))].sort((a, b) => b - a);
    if ((x + .05) / (y + .05) < 4.5) poor.push(e.tagName + ' ' + e.textContent.trim().slice(0, 40));
  }
  return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_aa(browser: Any, folder: Path, scheme: str) -> None:
    opened = Opened(browser, folder / "run.html", color_scheme=scheme)
    assert opened.page.evaluate(CONTRAST) == []
    opened.page.close()


def test_a_kernel_opens_large_by_mouse_and_by_key_and_closes(browser: Any, folder: Path) -> None:
    opened = Opened(browser, folder / "run.html")
    figure = opened.page.locator(".strip figure").first
    assert figure.locator("svg").bounding_box()["width"] / 15 * 3 >= 40
    figure.click()
    assert opened.page.locator("dialog[open] svg").bounding_box()["width"] > 600
    opened.page.get_by_role("button", name="Close").click()
    assert opened.page.locator("dialog[open]").count() == 0
    figure.press("Enter")
    said = figure.locator("figcaption").text_content()
    assert opened.page.locator("dialog[open] figcaption").text_content() == said
    assert opened.said == []
    opened.page.close()


def test_the_theme_is_switched_and_print_stays_light(browser: Any, folder: Path) -> None:
    opened = Opened(browser, folder / "run.html", color_scheme="light")
    paper = "getComputedStyle(document.body).backgroundColor"
    light = opened.page.evaluate(paper)
    opened.page.locator("#theme").click()
    assert opened.page.evaluate(paper) != light
    assert opened.page.evaluate(CONTRAST) == []
    opened.page.emulate_media(media="print")
    assert opened.page.evaluate(paper) == "rgb(255, 255, 255)"
    opened.page.close()


def test_dark_and_light_differ(browser: Any, folder: Path) -> None:
    papers = []
    for scheme in ("light", "dark"):
        opened = Opened(browser, folder / "run.html", color_scheme=scheme)
        papers.append(opened.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        opened.page.close()
    assert papers[0] != papers[1]


def test_everything_to_press_is_reachable_by_keyboard(browser: Any, folder: Path) -> None:
    opened = Opened(browser, folder / "run.html")
    wanted = opened.page.evaluate(
        """() => {
             const all = [...document.querySelectorAll('a[href], button, input, select, summary, figure.k')]
               .filter((e) => e.tagName !== 'FIGURE' || !e.closest('details'));
             window.left = new Set(all.filter((e) => e.getClientRects().length));
             return window.left.size;
           }"""
    )
    for _ in range(wanted + 40):
        opened.page.keyboard.press("Tab")
        opened.page.evaluate("window.left.delete(document.activeElement)")
    missed = opened.page.evaluate("[...window.left].map((e) => e.outerHTML.slice(0, 80))")
    assert wanted > 20
    assert missed == []
    opened.page.close()


def test_print_leaves_out_what_cannot_be_pressed(browser: Any, folder: Path) -> None:
    opened = Opened(browser, folder / "run.html", color_scheme="dark")
    opened.page.emulate_media(media="print")
    for selector in ("nav", ".tools", "#copy", "details.layer"):
        assert opened.page.locator(f"{selector}:visible").count() == 0, selector
    assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.page.locator("#layers table:visible").count() == 1
    opened.page.close()


@pytest.mark.parametrize("name", ["run", "scan", "pair"])
def test_a_printed_page_fits_the_paper(browser: Any, folder: Path, name: str) -> None:
    a4 = {"width": 703, "height": 1030}  # 210 x 297 mm less 12 mm on each side
    opened = Opened(browser, folder / f"{name}.html", viewport=a4)
    opened.page.emulate_media(media="print")
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= a4["width"]
    opened.page.close()
