"""The table of rules: what a check can bound. Each row is one figure of a network and its usual limit.

Shares are 0..1, accuracies percent, drops pp. To add a rule, add a row here and its figure to
`measures.py`; the reference of the docs and the did-you-mean read this table.
"""

import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kernelsimp.error_text import printable
from kernelsimp.errors import KernelsimpError, did_you_mean
from kernelsimp.records.limits import BOUNDS, Limit, Limits

Needs = Literal["weights", "data"]


@dataclass(frozen=True)
class Rule:
    """One row: the figure's name, what it means, what it needs, and its limit where none is given."""

    name: str
    meaning: str
    needs: Needs = "weights"
    usual: Limit | None = None


def _at_most(rule: str, bound: float) -> Limit:
    return Limit(rule, max=bound)


RULES: tuple[Rule, ...] = (
    Rule(
        "accuracy.drop_pp",
        "accuracy lost since the baseline's stage, in percentage points",
        "data",
        _at_most("accuracy.drop_pp", 0.5),
    ),
    Rule("accuracy.top1", "test images right, in percent", "data"),
    Rule(
        "kernels.frozen_changed",
        "frozen kernels whose stored bytes changed",
        usual=_at_most("kernels.frozen_changed", 0),
    ),
    Rule(
        "kernels.structure_broken",
        "kernels that left the structure they were given",
        usual=_at_most("kernels.structure_broken", 0),
    ),
    Rule("kernels.nan", "kernels holding NaN or infinity", usual=_at_most("kernels.nan", 0)),
    Rule(
        "weights.nan",
        "tensors other than kernels larger than 1x1 that hold NaN or +infinity",
        usual=_at_most("weights.nan", 0),
    ),
    Rule(
        "weights.unreal",
        "layers that a scan refuses: mostly one weight beyond 10,000 times its layer's RMS",
        usual=_at_most("weights.unreal", 0),
    ),
    Rule("kernels.simplified_share", "share of kernels that lie in the structure they were given, 0..1"),
    Rule("kernels.dead_share", "share of kernels with under 1 % of their layer's mean energy, 0..1"),
    Rule("dof.fraction", "independent values left in kernels, as a share of their cells, 0..1"),
    Rule("bits.per_kernel", "bits of a kernel's independent values, with the choice of its structure"),
    Rule("size.coded_bytes", "bytes of a coded file"),
    Rule("bits.per_weight", "bits of a coded file for each of its weights, biases and vectors apart"),
    Rule(
        "layers.changed",
        "layers and other tensors missing, added or of another shape or dtype",
        usual=_at_most("layers.changed", 0),
    ),
    Rule(
        "tensors.extra",
        "tensors of the file outside the network, neither copies of it nor as the baseline has them",
        usual=_at_most("tensors.extra", 0),
    ),
    Rule(
        "layers.zeroed",
        "layers whose kernels have all become zero",
        usual=Limit("layers.zeroed", max_delta=0),
    ),
    Rule(
        "layers.unseen",
        "convolutions of a graph whose weights cannot be read, so that no rule has seen them",
        usual=Limit("layers.unseen", max_delta=0),
    ),
)

NAMES: tuple[str, ...] = tuple(rule.name for rule in RULES)

USUAL = Limits(tuple(rule.usual for rule in RULES if rule.usual is not None))
"""The limits where none are given."""


def read_limits(path: Path) -> Limits:
    """Read limits from a TOML file, or from `[tool.kernelsimp.check]` of a pyproject.toml.

    A rule is a table, `[kernels.dead_share]` with `max = 0.1`; rules not named keep their usual limit.
    Raises `KernelsimpError` for an unreadable file, an unknown rule or key, and a limit that is no number.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise KernelsimpError(f"{path}: not a TOML file: {printable(str(error))}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise KernelsimpError(f"{path}: cannot read limits: {printable(str(error))}") from error
    if path.name == "pyproject.toml":
        raw = raw.get("tool", {}).get("kernelsimp", {}).get("check", {})
    return limits_from(raw, str(path))


def limits_beside(folder: Path) -> Limits:
    """Return the limits of the pyproject.toml in `folder`, the usual ones where there is none."""
    path = folder / "pyproject.toml"
    return read_limits(path) if path.is_file() else USUAL


def limits_from(raw: Mapping[str, Any], where: str = "limits") -> Limits:
    """Return the usual limits with those of `raw` in their place."""
    given = {rule: _limit(rule, table, where) for rule, table in _flat(raw)}
    chosen = (given.get(name, USUAL.of(name)) for name in NAMES)
    return Limits(tuple(limit for limit in chosen if limit is not None))


def with_max(limits: Limits, rule: str, bound: float) -> Limits:
    """Return `limits` with the `max` of one rule replaced: what an option of the command line does."""
    given = {limit.rule: limit for limit in limits.rules}
    raw = {rule: {"max": bound, "level": given[rule].level if rule in given else "error"}}
    given |= {rule: limits_from(raw, "option").of(rule) or Limit(rule)}
    return Limits(tuple(given[name] for name in NAMES if name in given))


def _flat(raw: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (rule, table) from `{kernels: {nan: {...}}}` or `{"kernels.nan": {...}}`."""
    groups = {name.partition(".")[0] for name in NAMES}
    for key, value in raw.items():
        if key in groups and isinstance(value, Mapping):
            yield from ((f"{key}.{name}", table) for name, table in value.items())
        else:
            yield key, value


def _limit(rule: str, table: Any, where: str) -> Limit:
    if rule not in NAMES:
        raise KernelsimpError(f"{where}: unknown rule '{printable(rule)}'{did_you_mean(rule, NAMES)}")
    if not isinstance(table, Mapping):
        raise KernelsimpError(
            f"{where}: rule '{rule}' is {table!r}; expected a table such as {{ max = 0.1 }}"
        )
    bounds: dict[str, Any] = {}
    for key, value in table.items():
        if key not in (*BOUNDS, "level"):
            near = did_you_mean(key, (*BOUNDS, "level"))
            raise KernelsimpError(f"{where}: rule '{rule}' has unknown key '{printable(key)}'{near}")
        bounds[key] = _level(rule, value, where) if key == "level" else _bound(rule, key, value, where)
    if not set(bounds) & set(BOUNDS):
        raise KernelsimpError(f"{where}: rule '{rule}' bounds nothing; give it {', '.join(BOUNDS)}")
    _check_order(rule, bounds, where)
    return Limit(rule, **bounds)


def _level(rule: str, value: Any, where: str) -> Any:
    if value not in ("error", "warn"):
        raise KernelsimpError(f"{where}: rule '{rule}' has level {value!r}; expected 'error' or 'warn'")
    return value


def _bound(rule: str, key: str, value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise KernelsimpError(f"{where}: rule '{rule}' has {key} {value!r}; expected a finite number")
    return float(value)


def _check_order(rule: str, bounds: Mapping[str, Any], where: str) -> None:
    for low, high in (("min", "max"), ("min_delta", "max_delta")):
        if low in bounds and high in bounds and bounds[low] > bounds[high]:
            raise KernelsimpError(
                f"{where}: rule '{rule}' has {low} {bounds[low]:g} above {high} {bounds[high]:g}; "
                "nothing can pass"
            )
