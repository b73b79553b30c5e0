"""The founding claims, one entry each: what is claimed, what measures it, which arm should be better."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from study_parts.foresight import FEWEST, NOTHING
from study_parts.ground import Study, simplify_script
from study_parts.information import information
from study_parts.intent import ALIKE, FDR, MINDED, WIDEST, WIDEST_DEPTHWISE, intent
from study_parts.learning import growth, roles
from study_parts.prediction import FIGURES, NOISE, RETUNED, SHARE, Figures, prediction
from study_parts.readable import DEALT, LAYERS, decomposition, selectivity
from study_parts.repair import ALONE, repair, together, tuning
from study_parts.robustness import BLOCK, CORRUPTIONS, GROUPS, TRAINED, robustness, trained_simple
from study_parts.statistics import Measured
from study_parts.training import RECIPES
from study_parts.tuning import TUNING

CHECKPOINT, RECIPE = "checkpoint", "recipe"

BESIDE = (
    ("simplified", "original"),
    ("simplified", "random subspaces"),
    ("simplified", "cell masks"),
    ("simplified", "equal-norm noise"),
    ("found only", "original"),
    ("frozen and tuned", "untouched, tuned"),
)
"""The comparisons of what every arm is measured of."""


@dataclass(frozen=True)
class Claim:
    """One claim in words; it holds where the first arm of a pair is the better one.

    `cell` measures a network over so many draws. `unit` is what a mean goes over within a draw, `remark`
    what a reader of the table must know. `stands_on` says where its networks come from.
    """

    words: str
    cell: Callable[[Study, int], Sequence[Measured | Figures]]
    pairs: tuple[tuple[str, str], ...]
    unit: str
    remark: str
    stands_on: tuple[str, ...] = (CHECKPOINT,)

    def suits(self, network: str) -> bool:
        """Say whether a network of this name can be measured."""
        known = {CHECKPOINT: simplify_script().PLACES, RECIPE: RECIPES}
        return any(network in known[source] for source in self.stands_on)


ALL_LAYERS = (
    "A network's layers are all it has, so they are no sample, and what is told is told of this network "
    "alone; in an earlier edition they were, by which nothing could be told of two layers: **changed after "
    "looking**."
)

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
        "+0.67 with a standard error of 0.51, the other way round. So these networks do not decide the "
        "claim; ResNet-56 was measured once, when the widths stood.",
    ),
    "growth": Claim(
        "Structure beyond chance grows while a network learns",
        growth,
        (("end", "start"), ("end", "an eighth of training")),
        "seeds alone",
        "A draw is a seed, which draws the weights at the start and the order of the images. `digits` is the "
        "demo's network of 5x5 depthwise kernels (digits mirrored half of the time, 40 epochs), `digits-cnn` "
        "a plain one (no augmentation, 20 epochs).",
        stands_on=(RECIPE,),
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
        stands_on=(RECIPE,),
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
        "The same plan in linear families, without training. *One layer alone*: all other layers stay as "
        f"they were; a mean over {ALONE} layers at most, evenly spread over the depth. Random "
        "subspaces and cell masks are the "
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
        BESIDE,
        "images, blocks or parts",
        "Half of the degrees of freedom, re-solved, not tuned; controls are re-solved, too. *Found only* "
        "is the same plan with what was not found left free; *frozen and tuned* is tuned as above, and so is "
        "the original beside it. "
        f"Corruptions: {', '.join(CORRUPTIONS)} at five severities. Units are images, blocks of {BLOCK} "
        f"images for noise, shifts and PGD, and {GROUPS} parts of a jackknife for the gap and the "
        "calibration error. The jackknife takes the bias off, so an error may fall below 0. A row means "
        "something for robustness only where clean accuracy is tied: it has a row of its own. PGD, within "
        "0.1 of grey pixels and 1/255 of colours, attacks the images that all arms have right, so clean "
        "accuracy is equal there. Random "
        "subspaces and cell masks say whether it is the families or only the smaller network. Of networks "
        "without training images the images that a draw did not calibrate with are taken.",
    ),
    "trained": Claim(
        "Networks trained to be simple are more robust, less overfitted and better calibrated",
        trained_simple,
        tuple((arm, "plain") for arm in ("penalised", "constrained", "simplified")),
        "images, blocks or parts",
        "A draw is a seed. All arms train by the same recipe from the same start: penalised by "
        f"`{TRAINED['penalised']['penalty'][0]}`, constrained to `{TRAINED['constrained']['constrain'][0]}`; "
        "the last is the plain one at half of the degrees of freedom. Neither schedule nor weight was tuned "
        "for an arm, and constrained networks may want longer ones. Measures as above.",
        stands_on=(RECIPE,),
    ),
    "selectivity": Claim(
        "Simplified networks are easier to explain",
        selectivity,
        BESIDE,
        "draws alone",
        "Arms as above. That simplified kernels have names is so by design; "
        "how much of the variance these explain, and whether patches become more alike, is not. Chance is "
        "the same kernels with their cells shuffled, and patches dealt to channels at random. Means over "
        f"layers, of each draw's own calibration and test images. {ALL_LAYERS}",
    ),
    "decomposition": Claim(
        "Networks decompose by families: ablating the channels of one family hurts some classes only",
        decomposition,
        (("families", "random groups"), *BESIDE),
        "groups, or draws alone",
        "First the original network, then, over random groups, every arm. Channels of a layer are grouped by "
        f"family (as above); of {LAYERS} layers at most, evenly spread over the depth, each group of two "
        "channels or more is set to its mean output. Damage is the rise of each class's mean loss. Chance: "
        "the same sizes dealt at random, "
        f"mean of {DEALT}. Concentration is Herfindahl's index over classes; information is that of the "
        "class-by-group damage matrix, a mean over layers; a layer without two groups tells nothing, 0. "
        f"{ALL_LAYERS}",
    ),
    "information": Claim(
        "A simplified kernel carries less information: the coded file is smaller at the same divergence",
        information,
        (("with structures", "without"), ("with structures", "simplified, without")),
        "draws alone",
        "The network at half of the degrees of freedom coded by its structures, against the original, and "
        "against the same simplified network coded cell by cell: sizes at the KL on test images that the "
        "first has, between the two prices of a bit next to it. Kernels are those larger than 1x1.",
    ),
    "prediction": Claim(
        "What a network shows before it is simplified tells what that will cost",
        prediction,
        tuple((figure, NOTHING) for figure in FIGURES),
        "architectures, or networks",
        f"{SHARE:.0%} of the degrees of freedom, re-solved, no training. Figures are of the survey, before "
        f"anything is changed, but for KL under noise ({NOISE:.0%} of each layer's norm), and each was "
        "turned in advance so that more of it should cost more; the first was thought the best before "
        "anything was measured. Correlations are Spearman's, without each architecture in turn, or, within "
        f"architectures of {FEWEST} networks or more, without each network; the jackknife takes the bias "
        "off, so one may pass 1. KL is missed by a line in logarithms that was drawn without the "
        "architecture; *nothing known* draws a level. Correlations say whose cost is larger, the last row "
        "how large it is. Networks of one architecture are trained here from "
        f"the first step, or retuned from the published one for {RETUNED.epochs} epochs at {RETUNED.lr}: "
        "siblings, not strangers.",
        stands_on=(CHECKPOINT, RECIPE),
    ),
}
"""In the order of the page."""
