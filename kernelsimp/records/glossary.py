"""What the words of tables and reports mean, in a sentence each."""

from kernelsimp.errors import KernelsimpError, did_you_mean

GLOSSARY = {
    "DOF": "degrees of freedom: how many independent values kernels have left; a free 3x3 kernel has 9, one "
    "that is its own mirror image 6",
    "family": "a symmetry, or equal rows or columns: all kernels that have it form a linear subspace",
    "structure": "a family, a rank, a template or few values: whatever a kernel may be simplified to",
    "residual": "how far a kernel is from a family: ||w - Pw|| / ||w||, 0 for a member, 1 for no likeness",
    "matching": "a kernel within --tolerance of any structure; by chance or not is another question, see "
    "found",
    "found": "nearer to a family than chance explains, at the false discovery rate --fdr; a kernel may be "
    "found and yet not within the tolerance (not matching), and the other way round",
    "imposed": "simplified because the budget asked for it, where chance explains the likeness",
    "null": "what chance gives: random kernels as smooth as those of the layer (ring), white ones, ones of "
    "the same covariance (matched) or the layer's own with cells shuffled (permuted)",
    "FDR": "false discovery rate: the share of the kernels called found that chance would have given",
    "dead": "a kernel with under 1 % of its layer's mean energy; it does nothing and is counted apart",
    "snap": "to replace a kernel by the nearest one that has a structure exactly",
    "freeze": "to hold a simplified kernel bit for bit while the rest is trained",
    "tie": "to hold a kernel in its structure, whose few values are still trained",
    "calibration": "the training images, without labels, that choose what becomes of each kernel",
    "multiplier": "the price of a bit (a Lagrange multiplier): every kernel takes the structure at which its "
    "error plus this price times its bits is least; one price for the whole network meets the budget",
    "choice": "the bits it takes to say which structure a kernel has, beside those of its values",
    "pp": "percentage points: from 91.0 % to 90.5 % is -0.5 pp",
    "interval": "the 95 % interval of Wilson for a share of images that are right: where the true share lies "
    "for 95 of 100 test sets",
    "McNemar": "a test of two networks on the same images: of those that only one has right, is the split "
    "further from half and half than chance makes it? A small p says that they differ",
    "KL": "Kullback-Leibler divergence: how far the answers (probabilities) of one network are from those of "
    "another, in nats; 0 where they are the same",
    "CKA": "centred kernel alignment: likeness of what two layers give on the same images, 0 to 1, blind to "
    "rotations and one scale",
    "CCA": "canonical correlation analysis: how well directions in one layer are predicted from another",
    "SVCCA": "CCA on the directions that hold nearly all the variance",
    "PWCCA": "CCA, each direction weighted by how much of the layer's output it carries",
    "NBS": "normalised Bures similarity: likeness of the covariances of two layers, 0 to 1",
    "orbit": "kernels of a layer that are turns or mirror images of one another",
    "prototype": "a kernel that stands for many of a layer, turned, mirrored, scaled and shifted",
    "template": "a known shape such as Sobel or Gabor, times a number, plus a number",
    "rank": "how many products of a column and a row a kernel is the sum of; rank one is separable",
    "depthwise": "a convolution in which each channel has one kernel of its own",
    "explained": "the share of a channel's variance over images that its named kernels, made exact, give "
    "alone; beside it, what the same kernels with their cells shuffled give",
    "alike": "the mean cosine of two patches of images among those that drive a channel most, light and "
    "contrast apart; mixed: of patches dealt to channels at random",
    "control": "what else the same budget would have bought: random structures, cell masks, noise",
    "baseline": "what `check` compares with: a run's report, or a small file of --update-baseline",
    "budget": "what a run may leave or lose: --dof, --simplified, --max-drop or --tolerance",
    "distillation": "training towards the answers of the original network beside the labels",
}
"""Words by their usual spelling; a case or a plural s makes no difference where one is looked up."""


def meaning_of(word: str) -> tuple[str, str]:
    """Return a word as it is spelled in the glossary, and its meaning.

    >>> meaning_of("mcnemar")[0]
    'McNemar'

    Raises `KernelsimpError` for a word that is not in it, with the nearest one.
    """
    known = {name.lower(): name for name in GLOSSARY}
    asked = word.lower()
    name = known.get(asked) or known.get(asked.removesuffix("s")) or known.get(asked.removesuffix("d"))
    if name is None:
        raise KernelsimpError(f"no command and no word '{word}'{did_you_mean(asked, known)}")
    return name, GLOSSARY[name]
