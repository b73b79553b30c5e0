"""Which figures the page has, and what each shows of the kept cells."""

from collections.abc import Mapping, Sequence

from study_parts.drawings import Axis, Panel, panels
from study_parts.foresight import networks_of
from study_parts.learning import MARKS
from study_parts.prediction import FIGURES, KL
from study_parts.statistics import Row

Named = tuple[str, str]
"""What a figure says in words, and the drawing."""

NATS = Axis("KL in nats", powers=True)


def claim_figures(cells: Sequence[Row]) -> dict[str, Named]:
    """Return by claim the figure of its section, of those that have one and were measured."""
    found = {}
    for claim, draw in DRAWN.items():
        here = [cell for cell in cells if cell["claim"] == claim]
        if here:
            found[claim] = draw(here)
    return found


def _repaired(cells: Sequence[Row]) -> Named:
    """Draw what every way of carrying out a plan costs by the share that is left, a panel a network."""
    words = "KL by the share of the degrees of freedom that is left, for every way to get there"
    share = Axis("degrees of freedom left, %")
    items = [Panel(cell["network"], _by_share(cell), share, NATS) for cell in cells]
    return words, panels(words, items)


def _by_share(cell: Row) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for row in cell["rows"]:
        if row["measure"].startswith("KL at "):
            share = float(row["measure"].removeprefix("KL at ").split("%")[0])
            for arm, mean in row["means"].items():
                found.setdefault(arm, []).append((share, mean))
    return found


def _grown(cells: Sequence[Row]) -> Named:
    """Draw how many kernels are found through training."""
    words = "Kernels found beyond chance through training"
    series = {
        cell["network"]: [(100 * at, cell["rows"][0]["means"][mark]) for mark, at in MARKS.items()]
        for cell in cells
    }
    panel = Panel("Through training", series, Axis("epochs done, %"), Axis("kernels found, %"))
    return words, panels(words, [panel])


def _foreseen(cells: Sequence[Row]) -> Named:
    """Draw what simplifying cost each network over what was predicted first."""
    figure = next(iter(FIGURES))
    words = f"KL after simplifying over {figure}, a point a network"
    series: Mapping[str, list[tuple[float, float]]] = {
        cell["network"]: [(item[figure], item[KL]) for item in networks_of(cell).values()] for cell in cells
    }
    panel = Panel("A point a network", series, Axis(f"{figure}, nats", powers=True), NATS, joined=False)
    return words, panels(words, [panel])


DRAWN = {"growth": _grown, "repair": _repaired, "prediction": _foreseen}
