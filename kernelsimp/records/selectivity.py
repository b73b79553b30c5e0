"""How readable a layer is, measured on images: its names, and what its channels answer to."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerSelectivity:
    """One convolution larger than 1x1. Shares are of 1; those by chance are of kernels with shuffled cells.

    `named` is the share of live kernels within the tolerance of a linear family, of `words` different ones,
    which take `bits` a kernel to tell apart (the entropy of the families, unnamed kernels one of them).
    `explained` is the share of a channel's variance over images and positions that its named kernels,
    projected onto their families, give by themselves; a mean over channels. `alike` is the mean cosine of
    pairs among a channel's top patches, `alike_mixed` that among patches dealt to channels at random.
    """

    name: str
    kind: str
    channels: int
    kernels: int
    named: float
    words: int
    bits: float
    explained: float
    named_by_chance: float
    explained_by_chance: float
    alike: float
    alike_mixed: float


@dataclass(frozen=True)
class Selectivity:
    """All layers that were measured, on how many images, and by name and reason those that were not."""

    layers: tuple[LayerSelectivity, ...]
    images: int
    tolerance: float
    top: int
    skipped: tuple[tuple[str, str], ...] = ()

    def mean(self, figure: str) -> float:
        """Return the mean of a figure over channels; NaN without layers.

        >>> Selectivity((), 1, 0.1, 64).mean("explained")
        nan
        """
        channels = sum(layer.channels for layer in self.layers)
        total = sum(float(getattr(layer, figure)) * layer.channels for layer in self.layers)
        return total / channels if channels else float("nan")
