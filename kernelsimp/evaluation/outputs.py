"""Which part of what a network returns are the scores of the classes: the one function that decides it.

Accuracy, distances, the survey and training all ask here, so that they speak of one tensor.
"""

from torch import Tensor

from kernelsimp.errors import KernelsimpError
from kernelsimp.models.outputs import describe_output, entries_of

SCORE_NAMES = (
    *("logits", "class_logits", "cls_logits", "scores", "output", "outputs", "out"),
    *("pred", "preds", "prediction", "predictions", "y_pred", "y_hat"),
)
"""What scores are called where outputs have names, the surest first."""


def class_scores(output: object) -> Tensor | None:
    """Return the scores of the classes, (n, classes), at least two; None where nothing tells which they are.

    A tensor is itself; of named outputs (a mapping, a dataclass, a named tuple) it is the one with a score's
    name, of a plain sequence the first, and a lone entry is what it holds. So (logits, features) classifies,
    and (reconstruction, code) does not.
    """
    if isinstance(output, Tensor):
        scores = output.ndim == 2 and output.shape[1] > 1 and output.is_floating_point()
        return output if scores else None
    parts = [(key, value) for key, value in entries_of(output) if value is not None]
    named = {key.lower(): value for key, value in parts}
    for name in SCORE_NAMES:
        if name in named:
            return class_scores(named[name])
    first = bool(parts) and (len(parts) == 1 or isinstance(output, tuple | list))
    return class_scores(parts[0][1]) if first else None


def scores_of(output: object) -> Tensor:
    """Return the scores of the classes; raises `KernelsimpError` where nothing tells which they are."""
    scores = class_scores(output)
    if scores is None:
        raise KernelsimpError(
            f"the network returns {describe_output(output)}; name the scores of the classes with --output KEY"
        )
    return scores
