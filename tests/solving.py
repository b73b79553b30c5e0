"""Solving `networks.network` within half its degrees of freedom: what the tests of the solver share."""

import torch
from networks import smooth_images
from torch import Tensor, nn

from kernelsimp.kernels.families import SEVENTEEN
from kernelsimp.models.layers import bank_from_model
from kernelsimp.records.plan import Plan
from kernelsimp.settings import PlanSettings
from kernelsimp.solver.layerwise import CalibratedNetwork
from kernelsimp.solver.plan_builder import chooser
from kernelsimp.solver.solve import Solution, calibrated_network, solve_at_budget, survey_layers
from kernelsimp.training.survival import outside

FAMILIES = (*SEVENTEEN, "zero")


HALF = PlanSettings(dof=0.5, families=FAMILIES, cost="absolute")


def solve(calibrated: CalibratedNetwork, settings: PlanSettings) -> Solution:
    return solve_at_budget(survey_layers(calibrated, settings), chooser(settings), settings.cost)


def road_of(model: nn.Module, settings: PlanSettings = HALF, images: Tensor | None = None) -> Solution:
    batches = (smooth_images(48) if images is None else images).split(16)
    return solve(calibrated_network(model, bank_from_model(model), batches, 0), settings)


def with_tensors(model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    state = model.state_dict()
    assert all(name in state and value.shape == state[name].shape for name, value in tensors.items())
    model.load_state_dict({**state, **tensors}, strict=True)
    return model.eval()


def error_of(made: nn.Module, original: nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        return float((made(images) - original(images)).norm() / original(images).norm())


def all_exact(model: nn.Module, plan: Plan) -> bool:
    layers = {layer.name: layer.kernels for layer in bank_from_model(model).layers}
    return not any(outside(layers[layer.name], layer, plan.structures).any() for layer in plan.layers)


def calibrated(model: nn.Module, images: Tensor | None = None) -> CalibratedNetwork:
    return calibrated_network(
        model, bank_from_model(model), (smooth_images(48) if images is None else images).split(16), 0
    )
