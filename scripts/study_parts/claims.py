"""The founding claims, one entry each: what is claimed, what measures it, which arm should be better."""

from collections.abc import Callable
from dataclasses import dataclass

from study_parts.ground import Study
from study_parts.information import information
from study_parts.intent import ALIKE, FDR, MINDED, WIDEST, WIDEST_DEPTHWISE, intent
from study_parts.learning import growth, roles
from study_parts.readable import DEALT, LAYERS, decomposition, selectivity
from study_parts.repair import TUNING, repair, together, tuning
from study_parts.robustness import BLOCK, CORRUPTIONS, GROUPS, robustness
from study_parts.statistics import Measured


@dataclass(frozen=True)
class Claim:
    """One claim in words; it holds where the first arm of a pair is the better one.

    `cell` measures a network over so many draws. `unit` is what a mean goes over within a draw, `remark`
    what a reader of the table must know.
    """

    words: str
    cell: Callable[[Study, int], list[Measured]]
    pairs: tuple[tuple[str, str], ...]
    unit: str
    remark: str


CLAIMS = {
    "intent": Claim(
        "What is found is what the network meant: snapping it costs less than snapping what is imposed",
        intent,
        (("found", "imposed"), ("found", "noise on found"), ("imposed", "noise on imposed")),
        "images",
        f"Found: beyond the ring null at a false discovery rate of {FDR:.0%}. Each found kernel is paired "
        f"with an imposed one of the same dimension and grid, in any layer; both lie within {WIDEST} of a "
        f"family ({WIDEST_DEPTHWISE} in depthwise layers), their weight errors differ by {ALIKE - 1:.0%} "
        "at most and how much the loss minds an error (the trace of the kernel's Fisher information) by "
        f"{MINDED - 1:.0%}. All of one kind are snapped at once; noise has the norm of each kernel's own "
        "error, so its two columns tell how well importance was matched. **The widths were chosen after "
        "looking**: within one layer at 0.15 ResNet-20 had 2 pairs, and at 0.3 the gap of MobileNetV1 was "
        "+0.67 with a standard error of 0.51, the other way round. So this claim is not decided here.",
    ),
    "growth": Claim(
        "Structure beyond chance grows while a network learns",
        growth,
        (("end", "start"), ("end", "an eighth of training")),
        "seeds alone",
        "A draw is a seed, which draws the weights at the start and the order of the images. `digits` is the "
        "demo's network of 5x5 depthwise kernels (digits mirrored half of the time, 40 epochs), `digits-cnn` "
        "a plain one (no augmentation, 20 epochs).",
    ),
    "roles": Claim(
        "A channel's role chooses its family, whichever the seed",
        roles,
        (("matched channels", "by chance"),),
        "channels",
        "A draw is a pair of seeds, none in two pairs. Channels of two networks are matched one to one by "
        "the correlation of what they answer to the same images; chance is how often a channel of the "
        "other network's layer has the family. A channel's family is the one its kernels' energy lies in "
        "most, in standard deviations of a white kernel's. Where a layer sees the image itself, as the first "
        "depthwise one of `digits` does, kernels that answer alike are alike: a part of this is by "
        "construction.",
    ),
    "together": Claim(
        "Kernels are co-adapted: snapping all layers together costs more than each alone, summed",
        together,
        (("all together", "each alone, summed"),),
        "images",
        "The plan of half of the degrees of freedom, by plain projection.",
    ),
    "repair": Claim(
        "Co-adaptation can be repaired by solving the rest of every filter again",
        repair,
        (("re-solved", "projected"), ("re-solved", "random subspaces"), ("re-solved", "cell masks")),
        "images",
        "The same plan in linear families, without training. Random subspaces and cell masks are the "
        "product's controls: the same degrees of freedom, chosen and re-solved alike; "
        "against them a gap is what the families are worth, not what the re-solve is.",
    ),
    "tuning": Claim(
        "Co-adaptation can be repaired by tuning the rest around frozen kernels",
        tuning,
        (
            ("re-solved, tuned", "re-solved"),
            ("re-solved, tuned", "projected, tuned"),
            ("projected, tuned", "projected"),
        ),
        "images",
        f"{TUNING.epochs} epochs of SGD at {TUNING.lr} on the training images, taught by the original "
        "alone: a short schedule, the same for every arm, which favours the arm that starts nearest. "
        "Simplified kernels keep their values bit for bit. The ResNet had seen these images before; the "
        "epoch is chosen by KL or loss on validation images.",
    ),
    "robustness": Claim(
        "Simplified networks are more robust, less overfitted and better calibrated",
        robustness,
        (("simplified", "original"), ("simplified", "random subspaces")),
        "images, blocks or parts",
        "Half of the degrees of freedom, re-solved, no training; controls are re-solved, too. "
        f"Corruptions: {', '.join(CORRUPTIONS)} at five severities. Units are images, blocks of {BLOCK} "
        f"images for noise, shifts and PGD, and {GROUPS} parts of a jackknife for the gap and the "
        "calibration error. The jackknife takes the bias off, so an error may fall below 0. A row means "
        "something for robustness only where clean accuracy is tied: it has a row of its own. On seven "
        "measures, random subspaces say whether it is the families or only the smaller network.",
    ),
    "selectivity": Claim(
        "Simplified networks are easier to explain",
        selectivity,
        (("after", "before"),),
        "layers",
        "Half of the degrees of freedom, no training. That simplified kernels have names is so by design; "
        "how much of the variance these explain, and whether patches become more alike, is not. Chance is "
        "the same kernels with their cells shuffled, and patches dealt to channels at random.",
    ),
    "decomposition": Claim(
        "Networks decompose by families: ablating the channels of one family hurts some classes only",
        decomposition,
        (("families", "random groups"),),
        "groups or layers",
        f"The original networks. Channels of a layer are grouped by family (as above); of {LAYERS} layers "
        "at most, evenly spread over the depth, each group of two channels or more is set to its mean "
        "output. Damage is the rise of each class's mean loss. Chance: the same sizes dealt at random, "
        f"mean of {DEALT}. Concentration is Herfindahl's index over classes; information is that of the "
        "class-by-group damage matrix.",
    ),
    "information": Claim(
        "A simplified kernel carries less information: the coded file is smaller at the same divergence",
        information,
        (("with structures", "without"),),
        "draws alone",
        "The network at half of the degrees of freedom coded by its structures, against the original "
        "coded at two prices of a bit, bytes between them at the same KL on test images.",
    ),
}
"""In the order of the page."""
