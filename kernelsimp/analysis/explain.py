"""Everything about one kernel: its name, its residuals, and what chance says of each.

The layer around it is measured as in a scan, since chance is the layer's; templates are fitted to this one
kernel only, each for itself.
"""

import re

import torch
from torch import Tensor

from kernelsimp.analysis.examine import examine
from kernelsimp.analysis.nonlinear import MOST_CELLS, planar
from kernelsimp.analysis.scan import JudgedLayer, check, judge_structures
from kernelsimp.analysis.threads import one_thread
from kernelsimp.errors import KernelsimpError, did_you_mean
from kernelsimp.kernels import few_values, pictures, template_fit, templates
from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.kernels.cells import grid_of
from kernelsimp.models.soundness import check_weights
from kernelsimp.records.scan import Candidate, Explanation
from kernelsimp.settings import ScanSettings

PLACE = re.compile(r"(?P<layer>.*)\[(?P<out>\d+),\s*(?P<into>\d+)\]")


@one_thread()
def explain(bank: KernelBank, place: str, settings: ScanSettings) -> Explanation:
    """Explain the kernel at `place`, written 'LAYER[OUT,IN]'.

    Raises `KernelsimpError` for another form, an unknown layer, a pointwise one, numbers out of range or a
    layer that holds NaN.
    """
    check(settings)
    layer, index = find_kernel(bank, place)
    check_weights(KernelBank((layer,)))
    judged = judge_structures(examine(layer, settings.families), settings, deep=False)
    row = index[0] * int(layer.kernels.shape[1]) + index[1]
    kernel = layer.kernels.detach()[index]
    candidates = [*_linear(judged, row), *_others(judged, row)]
    flat = planar(judged.examined)
    name = ""
    if flat is not None and judged.examined.cells <= MOST_CELLS:
        candidates += _alone(flat[row][None], settings.tolerance, {item.name for item in candidates})
        name = pictures.describe(flat[row][None], tolerance=settings.tolerance)[0]
    candidates.sort(key=lambda item: (not item.matches, item.dim if item.matches else 0, item.residual))
    return Explanation(
        layer=layer.name,
        index=index,
        cells=kernel.float().numpy(),
        name=name or (candidates[0].name if candidates and candidates[0].matches else pictures.NOTHING),
        dead=bool(judged.examined.dead[row]),
        p=float(judged.asked_verdict.p[row]),
        found=bool(judged.asked_verdict.found[row]),
        beyond=bool(judged.beyond[row]),
        null=settings.null,
        candidates=tuple(candidates),
        notes=tuple(item.note for item in judged.verdicts.values() if item.note),
    )


def find_kernel(bank: KernelBank, place: str) -> tuple[LayerKernels, tuple[int, int]]:
    """Return the layer and (out, in) that 'LAYER[OUT,IN]' names."""
    parsed = PLACE.fullmatch(place.strip())
    if parsed is None:
        raise KernelsimpError(f"--explain is '{place}'; expected LAYER[OUT,IN], such as conv1[0,2]")
    name = parsed["layer"]
    layer = next((item for item in bank.layers if item.name == name), None)
    if layer is None:
        raise KernelsimpError(
            f"--explain: no layer '{name}'{did_you_mean(name, [item.name for item in bank.spatial])}"
        )
    if layer.pointwise:
        raise KernelsimpError(f"--explain: kernels of '{name}' are 1x1; choose a layer with larger ones")
    index, sides = (int(parsed["out"]), int(parsed["into"])), tuple(layer.kernels.shape[:2])
    if index[0] >= sides[0] or index[1] >= sides[1]:
        last = f"[{sides[0] - 1},{sides[1] - 1}]"
        raise KernelsimpError(
            f"--explain: '{name}' has no kernel [{index[0]},{index[1]}]; the last is {last}"
        )
    return layer, index


def _linear(judged: JudgedLayer, row: int) -> list[Candidate]:
    """Return the linear families of one kernel with the p-value of each null, one family at a time."""
    found = []
    for place, family in enumerate(judged.examined.families):
        r = float(judged.examined.residual[row, place])
        p = {
            name: float(item.null.log_p(place, torch.tensor(r)).double().exp())
            for name, item in judged.verdicts.items()
        }
        found.append(Candidate(family.name, family.subspace.dim, r, _near(r, judged), p))
    return found


def _others(judged: JudgedLayer, row: int) -> list[Candidate]:
    found = []
    for item in judged.nonlinear.structures:
        r = float(item.measured.residual[row])
        p = float(item.chance.log_p(torch.tensor(r)).exp())
        found.append(Candidate(item.name, item.measured.dim, r, _near(r, judged), {item.null: p}))
    return found


def _alone(kernel: Tensor, tolerance: float, known: set[str]) -> list[Candidate]:
    """Return templates and counts of values fitted to this kernel (1, kh, kw) alone, without chance."""
    grid = grid_of(kernel)
    found = []
    for template in templates.offered_templates(grid):
        r = float(template_fit.fit(kernel, (template.name,)).residual[0])
        dof = templates.degrees_of_freedom(template, grid)
        found.append(Candidate(template.name, dof, r, r <= tolerance, {}))
    counts = [
        u for u in few_values.COUNTS if few_values.is_offered(grid, u) and f"few-values-{u}" not in known
    ]
    for item in few_values.fit_all(kernel, counts) if counts else ():
        r = float(item.residual[0])
        found.append(Candidate(f"few-values-{item.values}", item.dof, r, r <= tolerance, {}))
    return found


def _near(r: float, judged: JudgedLayer) -> bool:
    return r <= judged.settings.tolerance
