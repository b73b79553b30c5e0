"""Co-adaptation: what snapping costs alone and together, and what re-solving and tuning repair."""

from collections.abc import Collection, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from kernelsimp.records.plan import Plan
from kernelsimp.solver.apply import apply_plan
from kernelsimp.solver.solve import try_plan
from study_parts.ground import Judge, Study, evenly, with_tensors, wrong
from study_parts.statistics import Floats, Measured
from study_parts.tuning import tuned

SHARES = (0.75, 0.5, 0.25)

RIVALS = ("random subspaces", "cell masks")

ALONE_AT, TUNED_AT = 0.5, 0.25

ALONE = 8
"""Layers that are simplified alone, one at a time."""


def projected_network(study: Study, plan: Plan) -> nn.Module:
    """Return the network with a plan carried out by plain projection."""
    return with_tensors(study.model, apply_plan(study.bench.bank, plan))


def repair(study: Study, draws: int) -> list[Measured]:
    """Carry out the same plan by projection alone and re-solved, beside other structures of that size."""
    whole = [_all_layers(study, draws, share) for share in SHARES]
    return [*whole, _errors(study, draws), *_one_layer(study, draws)]


def _all_layers(study: Study, draws: int, share: float) -> Measured:
    arms: dict[str, list[Floats]] = {name: [] for name in ("re-solved", "projected", *RIVALS)}
    for seed in range(draws):
        judge = Judge(study.model, study.images(seed))
        plan = study.solution(seed, share).plan
        arms["re-solved"].append(judge.divergence(study.simplified(seed, share)))
        arms["projected"].append(judge.divergence(projected_network(study, plan)))
        for name in RIVALS:
            arms[name].append(judge.divergence(study.arm(seed, share, name)))
    return Measured(f"KL at {share:.0%}, nats", arms, places=_places(study, draws))


def _errors(study: Study, draws: int) -> Measured:
    """Count what is wrong at the share at which layers are taken alone, too."""
    arms: dict[str, list[Floats]] = {name: [] for name in ("original", "re-solved", "projected")}
    for seed in range(draws):
        plan = study.solution(seed, ALONE_AT).plan
        networks = (study.model, study.simplified(seed, ALONE_AT), projected_network(study, plan))
        for values, network in zip(arms.values(), networks, strict=True):
            values.append(wrong(network, study.batches(seed)))
    return Measured(f"wrong at {ALONE_AT:.0%}, %", arms, places=_places(study, draws))


def _one_layer(study: Study, draws: int) -> list[Measured]:
    """Carry out the plan in one layer alone: means over layers of each image."""
    far: dict[str, list[Floats]] = {"re-solved": [], "projected": []}
    errors: dict[str, list[Floats]] = {"re-solved": [], "projected": []}
    for seed in range(draws):
        judge = Judge(study.model, study.images(seed))
        for name, networks in _alone(study, seed).items():
            pairs = [(judge.divergence(model), wrong(model, study.batches(seed))) for model in networks]
            for measured, values in zip((far, errors), zip(*pairs, strict=True), strict=True):
                measured[name].append(np.mean(values, axis=0))
    places = _places(study, draws)
    return [
        Measured(f"KL of one layer alone at {ALONE_AT:.0%}, nats", far, places=places),
        Measured(f"wrong with one layer alone at {ALONE_AT:.0%}, %", errors, places=places),
    ]


def _alone(study: Study, seed: int) -> dict[str, Iterator[nn.Module]]:
    """Return by arm the networks in which one of some layers is simplified."""
    surveyed, plan = study.surveyed(seed), study.solution(seed, ALONE_AT).plan
    changed = [layer.name for layer in plan.layers if layer.changed.any()]
    chosen = [changed[at] for at in evenly(len(changed), ALONE)]
    plans = [only(plan, {name}) for name in chosen]
    return {
        "re-solved": (try_plan(surveyed, (item, {})).reconstruction.model for item in plans),
        "projected": (projected_network(study, item) for item in plans),
    }


def only(plan: Plan, names: Collection[str]) -> Plan:
    """Return a plan that leaves all layers but those of these names as they are."""
    return replace(plan, layers=tuple(layer for layer in plan.layers if layer.name in names))


def _places(study: Study, draws: int) -> list[NDArray[np.int64]]:
    return [study.places(seed) for seed in range(draws)]


def together(study: Study, draws: int) -> list[Measured]:
    """Snap each layer alone, and all at once, without a re-solve: the sum of the costs beside the cost."""
    arms: dict[str, list[Floats]] = {"all together": [], "each alone, summed": []}
    for seed in range(draws):
        judge = Judge(study.model, study.images(seed))
        plan = study.solution(seed, ALONE_AT).plan
        arms["all together"].append(judge.divergence(projected_network(study, plan)))
        alone = [
            judge.divergence(projected_network(study, only(plan, {layer.name})))
            for layer in plan.layers
            if layer.changed.any()
        ]
        arms["each alone, summed"].append(np.sum(alone, axis=0))
    return [Measured(f"KL at {ALONE_AT:.0%}, nats", arms, less=False, places=_places(study, draws))]


def tuning(study: Study, draws: int) -> list[Measured]:
    """Tune what is not simplified, its values frozen, from a projected and from a re-solved network."""
    far: dict[str, list[Floats]] = {}
    errors: dict[str, list[Floats]] = {}
    for seed in range(draws):
        judge = Judge(study.model, study.images(seed))
        for name, model in tuned_networks(study, seed).items():
            far.setdefault(name, []).append(judge.divergence(model))
            errors.setdefault(name, []).append(wrong(model, study.batches(seed)))
    places = _places(study, draws)
    return [
        Measured(f"KL at {TUNED_AT:.0%}, nats", far, places=places),
        Measured(f"wrong at {TUNED_AT:.0%}, %", errors, places=places),
    ]


def tuned_networks(study: Study, seed: int) -> dict[str, nn.Module]:
    """Return every arm's network: as it came from the plan, and tuned."""
    plan, ground = study.solution(seed, TUNED_AT).plan, study.bench
    starts = {"re-solved": study.simplified(seed, TUNED_AT), "projected": projected_network(study, plan)}
    ends = {f"{name}, tuned": tuned(ground, model, plan, seed) for name, model in starts.items()}
    return {**starts, **ends, "untouched, tuned": tuned(ground, study.model, None, seed)}
