"""What a factorised export says of every layer: a row each, and the counts of the whole."""

from collections.abc import Collection
from dataclasses import replace

from kernelsimp.analysis.layer_times import LayerTime
from kernelsimp.commands.factorise import Decision, Ground
from kernelsimp.kernels.separable import full_rank
from kernelsimp.models.factorised import factorise
from kernelsimp.models.layers import conv_modules
from kernelsimp.models.stored_order import module_name
from kernelsimp.records.factorised import Factorised, FactorisedLayer

OVER_BUDGET = "faster at some rank (the best time stands here), but beyond the budget"
"""Why a layer stays whole although it need not."""


def layer_rows(ground: Ground, decision: Decision) -> tuple[FactorisedLayer, ...]:
    """Return a row a layer; the ways chosen without being timed are timed now."""
    rows = [_row(ground, decision, name) for name in ground.layers]
    return (*rows, *_whole_rows(ground))


def _row(ground: Ground, decision: Decision, name: str) -> FactorisedLayer:
    layer, way = ground.layers[name], decision.plan.get(name)
    known = ground.measure(name, () if way is None else (way,))
    fastest = max(known.values(), key=lambda item: item.ratio.value, default=None)
    time = fastest if way is None else known[way]
    shape, seen = tuple(layer.weight.shape), ground.shapes[name]
    before = sum(item.numel() for item in layer.parameters())
    return FactorisedLayer(
        name,
        shape,
        layer.groups,
        seen.inputs,
        rank=way.rank if way else 0,
        full_rank=full_rank(shape, layer.groups),
        channels=len(way.channels) if way else 0,
        exact=name not in decision.fitted,
        parameters_before=before,
        parameters_after=before,
        macs_before=seen.macs(layer),
        macs_after=seen.macs(layer, way),
        before=time.whole if time else None,
        after=time.thin if time else None,
        ratio=time.ratio if time else None,
        why="" if way else _why_whole(known.values()),
    )


def _why_whole(times: Collection[LayerTime]) -> str:
    if not times:
        return "no rank tried"
    return OVER_BUDGET if any(item.ratio.faster for item in times) else "not faster at any rank tried"


def _whole_rows(ground: Ground) -> list[FactorisedLayer]:
    """Return the rows of the layers that cannot be taken apart."""
    banked = {layer.name: layer for layer in ground.task.network.bank.layers}
    modules = conv_modules(ground.model)
    rows = []
    for name, why in ground.reasons.items():
        if name in banked:
            size = sum(item.numel() for item in modules[name].parameters())
            shape, groups = banked[name].weight_shape, banked[name].groups
            rows.append(
                FactorisedLayer(name, shape, groups, None, 0, 0, 0, True, size, size, *(None,) * 5, why)
            )
    return rows


def record_of(ground: Ground, decision: Decision) -> Factorised:
    """Return what is known of an export before anything is written."""
    network, settings = ground.task.network, ground.settings
    after = factorise(decision.whole, decision.plan)
    counts = [sum(item.numel() for item in model.parameters()) for model in (decision.whole, after)]
    modules = dict(after.named_modules())
    layers = tuple(
        replace(
            row, parameters_after=sum(item.numel() for item in modules[module_name(row.name)].parameters())
        )
        if row.rank
        else row
        for row in layer_rows(ground, decision)
    )
    return Factorised(
        {"path": str(network.checkpoint.path), "sha256": network.checkpoint.sha256, "arch": network.arch},
        ground.times.machine,
        settings.factorising.layout,
        settings.factorising.time_batch,
        "multiplications" if settings.factorising.macs is not None else "seconds as measured",
        layers,
        (counts[0], counts[1]),
        decision.macs,
        notes=decision.notes,
    )
