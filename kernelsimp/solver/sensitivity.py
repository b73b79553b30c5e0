"""What each layer's change alone costs the network: predicted by the survey, and measured."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import nn

from kernelsimp.kernels.bank import KernelBank
from kernelsimp.records.plan import Plan
from kernelsimp.shelf import count_images, first_images
from kernelsimp.solver.apply import snap_layer
from kernelsimp.solver.candidates import rows_of_layer
from kernelsimp.solver.costs import predicted_loss
from kernelsimp.solver.distance import DistanceJudge
from kernelsimp.solver.fisher import Sensitivity
from kernelsimp.solver.layerwise import CalibratedNetwork
from kernelsimp.solver.solve import PlanTrial
from kernelsimp.watch import SILENT, Watcher

MOST_IMAGES = 64
"""How many of the held-back images measure a layer: one pass over them for each layer that changed."""


def predicted_losses(plan: Plan, bank: KernelBank, seen: Mapping[str, Sensitivity]) -> dict[str, float]:
    """Return what the survey predicts of each layer of a plan made elsewhere, in nats an image."""
    losses = {}
    for item in plan.layers:
        layer = bank.by_name[item.name]
        made = replace(layer, kernels=snap_layer(layer.kernels, item, plan.structures))
        errors = rows_of_layer(layer) - rows_of_layer(made)
        losses[item.name] = predicted_loss(layer, errors, seen.get(item.name))
    return losses


def layer_losses(
    calibrated: CalibratedNetwork, tried: PlanTrial, watcher: Watcher = SILENT
) -> dict[str, tuple[float, float]]:
    """Return (predicted, measured) loss of each layer that the plan changes, in nats an image.

    Measured is KL(original || the original with this layer alone as it was rebuilt: its weight, and the
    bias or running mean that took up its shift) on held-back calibration images; for a network that is no
    classifier, the relative output error. Predicted is the survey's, before the re-solve. Nothing where no
    images were held back.
    """
    changed = [layer.name for layer in tried.plan.layers if layer.changed.any()]
    if not count_images(calibrated.held_back) or not changed:
        return {}
    some = first_images(calibrated.held_back, MOST_IMAGES)
    judge = DistanceJudge(calibrated.model, some, calibrated.group, calibrated.limit)
    model = copy.deepcopy(calibrated.model)
    watcher.start("measuring each layer's change alone", len(changed))
    losses = {}
    for name in changed:
        names = set(_tensors_of(calibrated, name)) & tried.reconstruction.tensors.keys()
        with torch.no_grad():
            _put(model, tried.reconstruction.model, names)
            measured = judge.distance(model).divergence
            _put(model, calibrated.model, names)
        losses[name] = (tried.predicted.get(name, 0.0), measured)
        watcher.step()
    return losses


def _tensors_of(calibrated: CalibratedNetwork, layer: str) -> Iterator[str]:
    """Yield the tensors that a reconstruction may change on behalf of one layer."""
    norms = {use.name: use.norm for use in calibrated.traced.uses}
    prefix = f"{layer}." if layer else ""
    yield from (f"{prefix}weight", f"{prefix}bias")
    if norms.get(layer):
        yield f"{norms[layer]}.running_mean"


def _put(model: nn.Module, source: nn.Module, names: set[str]) -> None:
    """Copy some tensors from one network into another of the same build."""
    here, there = model.state_dict(), source.state_dict()
    for name in names:
        here[name].copy_(there[name])
