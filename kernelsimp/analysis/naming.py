"""A name for every kernel and a sentence for every layer.

Names come from `kernels.pictures`. Where a scan does not look deep only kernels that match something are
described, the rest have no simple structure by definition; a dead kernel is called dead, or zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernelsimp.analysis.examine import Examined
from kernelsimp.analysis.nonlinear import NonlinearStructures, planar
from kernelsimp.kernels import pictures, template_fit
from kernelsimp.kernels.template_fit import TemplateFit

DEAD = "dead"


@dataclass(frozen=True, eq=False)
class Names:
    """The different names of a layer, and each kernel's among them, (n,)."""

    words: tuple[str, ...]
    word: NDArray[np.int32]

    @property
    def sentence(self) -> str:
        """The layer in one sentence: its commonest kernels with their counts, the dead apart."""
        spoken = [self.words[place] for place in self.word.tolist()]
        alive = [name for name in spoken if name != DEAD]
        dead = len(spoken) - len(alive)
        if not alive and dead:
            return f"{dead} kernel{'s' * (dead != 1)}, dead"
        return pictures.sentence(alive) + (f", and {dead} dead" if dead else "")


def names_of(
    examined: Examined, shapes: NonlinearStructures, matched: NDArray[np.bool_], best: NDArray[np.int64]
) -> Names:
    """Name the kernels of a layer; `matched` (n,) says which are worth describing, `best` their family."""
    kernels = planar(examined)
    wanted = np.flatnonzero((matched if shapes.fitted is None else True) & ~examined.dead)
    spoken = _describe_kernels(examined, shapes, kernels, (wanted, best[wanted])) if len(wanted) else ()
    words = tuple(sorted({pictures.NOTHING, DEAD, *spoken}))
    places = {name: place for place, name in enumerate(words)}
    word = np.full(len(best), places[pictures.NOTHING], dtype=np.int32)
    word[wanted] = [places[name] for name in spoken]
    word[examined.dead] = places[DEAD]
    return Names(words, word)


def _describe_kernels(
    examined: Examined,
    shapes: NonlinearStructures,
    kernels: Tensor | None,
    at: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> Sequence[str]:
    """Describe the kernels at `at[0]`, whose linear families are `at[1]`; by family alone in three sides."""
    rows, best = at
    families = tuple(family.name for family in examined.families)
    if kernels is None:
        return [_family_words(families[place]) if place >= 0 else pictures.NOTHING for place in best.tolist()]
    chosen = kernels[torch.from_numpy(rows)]
    fitted = template_fit.fit(chosen, ()) if shapes.fitted is None else part_of(shapes.fitted, rows)
    matches = pictures.Matches(families, examined.dims, best)
    return pictures.describe(chosen, matches, fitted)


def _family_words(family: str) -> str:
    return pictures.PHRASES.get(family, family.replace("-", " "))


def part_of(fitted: TemplateFit, rows: NDArray[np.int64]) -> TemplateFit:
    """Return the fit of some of the kernels, by their places."""
    at = torch.from_numpy(rows)
    arrays = [getattr(fitted, name)[at] for name in ("template", "parameters", "a", "b", "residual", "bic")]
    return TemplateFit(fitted.grid, fitted.names, *arrays)
