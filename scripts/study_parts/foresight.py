"""How well what is seen before tells what simplifying costs: over networks, and for those left out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from study_parts.prediction import ACCURACY, FIGURES, KL, LOST
from study_parts.statistics import Floats, Measured, Row, pseudo_values

NOTHING = "nothing known"

FEWEST = 4
"""Networks of an architecture that are ranked among themselves."""

Labels = Sequence[str]


@dataclass(frozen=True)
class Networks:
    """Figures by name (networks,), and the architecture of each."""

    values: dict[str, Floats]
    kinds: Labels

    @staticmethod
    def of(cells: Sequence[Row]) -> "Networks":
        found = [(cell["network"], item) for cell in cells for item in networks_of(cell).values()]
        names = (*FIGURES, KL, LOST)
        return Networks(
            {name: np.array([item[name] for _, item in found]) for name in names}, [kind for kind, _ in found]
        )

    @property
    def architectures(self) -> list[str]:
        return list(dict.fromkeys(self.kinds))

    def among(self, kinds: Sequence[str]) -> "Networks":
        return self.at(np.array([kind in kinds for kind in self.kinds]))

    def at(self, places: np.ndarray) -> "Networks":  # type: ignore[type-arg]
        kinds = np.array(self.kinds)[places].tolist()
        return Networks({name: values[places] for name, values in self.values.items()}, kinds)


def networks_of(cell: Row) -> dict[str, dict[str, float]]:
    """Return the figures of a cell's networks by name."""
    found: dict[str, dict[str, float]] = cell["rows"][0]["networks"]
    return found


def judged(cells: Sequence[Row], pairs: Sequence[tuple[str, str]]) -> Row:
    """Return the cell of all networks together, as the page shows it."""
    networks = Networks.of(cells)
    count = f"{len(networks.kinds)} networks of {len(networks.architectures)} architectures"
    rows = [item.row(pairs) for item in measures(networks)]
    seconds = sum(cell["seconds"] for cell in cells)
    return {
        "claim": "prediction",
        "network": count,
        "draws": 1,
        "rows": rows,
        "seconds": seconds,
        "listed": list(listed(cells)),
    }


def measures(networks: Networks) -> Iterator[Measured]:
    """Yield rank correlations over architectures and within them, and errors on those left out."""
    kinds = networks.architectures
    for outcome in (KL, LOST):
        yield _jackknifed(
            f"rank correlation with {outcome.split(' at ')[0]}",
            len(kinds),
            lambda kept, figure, outcome=outcome: ranked(  # type: ignore[misc]
                networks.among([kinds[at] for at in kept]), figure, outcome
            ),
        )
    many = networks.among([kind for kind in kinds if list(networks.kinds).count(kind) >= FEWEST])
    for outcome in (KL, LOST):
        yield _jackknifed(
            f"rank correlation with {outcome.split(' at ')[0]} within an architecture",
            len(many.kinds),
            lambda kept, figure, outcome=outcome: ranked_within(many.at(kept), figure, outcome),  # type: ignore[misc]
        )
    errors = {figure: [left_out(networks, networks.values[figure])] for figure in FIGURES}
    errors[NOTHING] = [left_out(networks, np.ones(len(networks.kinds)))]
    yield Measured("factor by which KL is missed, in powers of 2", errors, fact="an architecture left out")


def _jackknifed(measure: str, count: int, statistic: Callable[[Floats, str], float]) -> Measured:
    """Return a statistic of each figure by its pseudo-values, each without one architecture or network."""
    arms = {
        figure: [pseudo_values(count, count, lambda kept, figure=figure: statistic(kept, figure))]  # type: ignore[misc]
        for figure in FIGURES
    }
    return Measured(measure, {**arms, NOTHING: [np.zeros(count)]}, less=False)


def ranked(networks: Networks, figure: str, outcome: str) -> float:
    """Return Spearman's correlation."""
    return _correlation(rankdata(networks.values[figure]), rankdata(networks.values[outcome]))


def ranked_within(networks: Networks, figure: str, outcome: str) -> float:
    """Return the correlation of ranks that are each network's among those of its architecture."""
    first, second = (
        np.concatenate(
            [_centred_ranks(networks.among([kind]).values[name]) for kind in networks.architectures]
        )
        for name in (figure, outcome)
    )
    return _correlation(first, second)


def _centred_ranks(values: Floats) -> Floats:
    ranks: Floats = rankdata(values) / (len(values) + 1)
    return ranks - ranks.mean()


def _correlation(first: Floats, second: Floats) -> float:
    """Return Pearson's correlation, 0 where one does not vary.

    >>> round(_correlation(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])), 6)
    1.0
    """
    first, second = first - first.mean(), second - second.mean()
    size = float(np.sqrt(np.square(first).sum() * np.square(second).sum()))
    return float((first * second).sum()) / size if size else 0.0


def left_out(networks: Networks, values: Floats) -> Floats:
    """Return by architecture how far log2 KL is from a line in the figure's logarithm drawn without it."""
    kinds = np.array(networks.kinds)
    x, y = (np.log2(np.maximum(item, 1e-9)) for item in (values, networks.values[KL]))
    missed = []
    for kind in networks.architectures:
        here = kinds == kind
        slope, height = fitted_line(x[~here], y[~here], kinds[~here].tolist())
        missed.append(np.abs(y[here] - height - slope * x[here]).mean())
    return np.array(missed)


def fitted_line(x: Floats, y: Floats, kinds: Labels) -> tuple[float, float]:
    """Return slope and height by least squares, every architecture counting alike; a level where x is one.

    >>> slope, height = fitted_line(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0]), ["a", "b", "b"])
    >>> round(slope, 6), round(height, 6)
    (2.0, 1.0)
    """
    weights = np.array([1 / list(kinds).count(kind) for kind in kinds])
    weights /= weights.sum()
    mean_x, mean_y = float(weights @ x), float(weights @ y)
    spread = float(weights @ np.square(x - mean_x))
    slope = float(weights @ ((x - mean_x) * (y - mean_y))) / spread if spread > 1e-12 else 0.0
    return slope, mean_y - slope * mean_x


def listed(cells: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of a table of networks, means over seeds."""
    heads = ("network", "trained", "accuracy, %", *FIGURES, KL, LOST)
    yield from (f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads))
    for cell in cells:
        by_way: dict[str, list[dict[str, float]]] = {}
        for name, figures in networks_of(cell).items():
            by_way.setdefault(name.split(", seed")[0], []).append(figures)
        for way, seeds in by_way.items():
            means = [np.mean([item[name] for item in seeds]) for name in (ACCURACY, *FIGURES, KL, LOST)]
            figures = [f"{means[0]:.1f}", *(f"{value:.3g}" for value in means[1:-1]), f"{means[-1]:+.1f}"]
            count = f" ({len(seeds)} seeds)" if len(seeds) > 1 else ""
            yield f"| {cell['network']} | {way}{count} | {' | '.join(figures)} |"
