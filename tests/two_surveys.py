"""Planning by two processes: `two_surveys.py FOLDER` leaves what each of them came to."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from networks import network, smooth_images
from solving import HALF
from tuning import PLAIN

from kernelsimp.errors import KernelsimpError
from kernelsimp.memory import Room
from kernelsimp.models.layers import bank_from_model
from kernelsimp.solver import moments
from kernelsimp.solver.denoise import denoise_rest
from kernelsimp.solver.plan_builder import chooser
from kernelsimp.solver.process_group import ProcessGroup
from kernelsimp.solver.search import BudgetJudge, search
from kernelsimp.solver.sensitivity import layer_losses
from kernelsimp.solver.solve import calibrated_network, solve_at_budget, survey_layers
from kernelsimp.training.engine import Engine

SETTINGS = replace(HALF, cost="auto", denoise="gaussian")


@patch.multiple(moments, ROWS_AT_LEAST=512, ROWS_A_CELL=16, IMAGES_AT_LEAST=8)
def came_to(group: ProcessGroup, folder: Path) -> dict:
    """Survey, choose with every cost, re-solve, denoise and search on 51 images in uneven batches.

    Layers are read at some of the windows, the first ones at some of the images.
    """
    model = network()
    images = smooth_images(51)
    calibrated = calibrated_network(
        model, bank_from_model(model), images.split(16), 0, Room(batch=7), flip=True, group=group
    )
    surveyed = survey_layers(calibrated, SETTINGS, cache=folder / "survey.safetensors")
    solution = solve_at_budget(surveyed, chooser(SETTINGS), SETTINGS.cost)
    with torch.no_grad():
        labels = model(unseen := smooth_images(40, 5)).argmax(1)
    judge = BudgetJudge(model, [(unseen, labels)], group=group)
    found = search(surveyed, 5.0, judge, record=folder / "search.json")
    denoised = denoise_rest(surveyed, solution)
    return {
        "seen": {
            name: (item.blocks, item.fisher, item.kernels)
            for name, item in surveyed.prepared.sensitivities.items()
        },
        "plans": [
            [layer.choice for layer in trial.plan.layers]
            for trial in (*solution.tried, found.solution.best, denoised.best)
        ],
        "weights": [dict(part.tensors) for part in (solution, found.solution, denoised)],
        "far": [(trial.distance.divergence, trial.distance.agreement) for trial in denoised.tried],
        "trials": [vars(trial) for trial in found.trials],
        "losses": layer_losses(calibrated, solution.best),
        "images": sum(len(part) for part in calibrated.images),
    }


def words_of_failures(group: ProcessGroup) -> str:
    """Fail in the first process, which the other is told, and ends at; return what is said of either."""
    try:
        group.from_first(lambda: 1 / 0)
    except ZeroDivisionError:
        pass
    except KernelsimpError as error:
        return str(error)
    try:
        group.total([1.0])
    except KernelsimpError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    Engine("cpu", replace(PLAIN, devices=2))
    group = ProcessGroup.of_launched()
    found = came_to(group, folder / "resume")
    torch.save(found | {"words": words_of_failures(group)}, folder / f"{os.environ['LOCAL_RANK']}.pt")
