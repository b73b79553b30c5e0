"""What the layers of a network give on a set of images, sampled so that it fits in memory.

A layer is a convolution or a linear map; its activations are its own outputs, before any norm or
non-linearity, at its first call of a forward pass. They come as rows (n, columns), and all layers of two
networks are sampled at the same images and, where their grids agree, at the same positions.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from kernelsimp.data.transforms import epoch_seed
from kernelsimp.error_text import short
from kernelsimp.errors import KernelsimpError
from kernelsimp.memory import is_out_of_memory
from kernelsimp.models.hooks import listening_to
from kernelsimp.models.layers import conv_modules

BY = ("channels", "flat")


@dataclass(frozen=True)
class LayerShape:
    """A layer that ran: `channels` numbers at each position of its `grid`, which is () without one."""

    name: str
    channels: int
    grid: tuple[int, ...]

    @property
    def positions(self) -> int:
        return prod(self.grid)


@dataclass(frozen=True)
class PositionSampling:
    """Which numbers of a layer make a sample, of how many images; `seed` chooses positions.

    By channels: one seeded position in each of `samples // images` equal runs of the raster (all of them
    where there are fewer), a position being a sample of as many columns as there are channels. Flat: an
    image is a sample, and every cell of every channel a column.
    """

    by: str
    images: int
    samples: int
    seed: int

    def per_image(self, shape: LayerShape) -> int:
        """Return how many samples an image gives."""
        return 1 if self.by == "flat" else min(shape.positions, max(1, self.samples // self.images))

    def places(self, shape: LayerShape) -> Tensor:
        """Return the positions in the raster (images, per image); they depend on the grid alone."""
        count = self.per_image(shape)
        edges = torch.arange(count + 1) * shape.positions // count
        words = "x".join(map(str, shape.grid))
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, 0, f"positions {words}"))
        draws = torch.rand(self.images, count, generator=generator, dtype=torch.float64)
        return edges[:-1] + (draws * edges.diff()).long()

    def bytes_of(self, shape: LayerShape) -> int:
        """Return what `collect` keeps of a layer."""
        if self.by == "flat":
            return 4 * self.images * shape.positions * shape.channels
        return 4 * self.images * shape.channels * (self.per_image(shape) + 1)

    @property
    def words(self) -> str:
        """The rule in words."""
        if self.by == "flat":
            return "flat: a sample is an image, its columns every cell of every channel"
        return (
            "channels: a sample is a position, its columns the channels; an image gives one seeded position "
            f"in each of {max(1, self.samples // self.images)} equal runs of the raster, or all where there "
            "are fewer; layers of different grids are averaged over positions, a sample an image"
        )


@dataclass(frozen=True, eq=False)
class Activations:
    """One layer: `rows` (n, columns), each image's first position first; `means` (images, channels)."""

    shape: LayerShape
    rows: Tensor
    means: Tensor | None


@dataclass(frozen=True, eq=False)
class ActivationSubject:
    """A network in evaluation mode, and what an error calls it."""

    model: nn.Module
    name: str

    def __call__(self, images: Tensor) -> object:
        """Run the network; raises `KernelsimpError` with its own words where it refuses the images."""
        try:
            return self.model(images)
        except Exception as error:  # a network can raise anything
            if is_out_of_memory(error):
                raise
            shape = " x ".join(map(str, images.shape[1:]))
            advice = "both networks must take the same images; see --input-size, --crop and --channels"
            raise KernelsimpError(
                f"{self.name}: the network cannot take images {shape}: {short(error)}; {advice}"
            ) from error

    def layers(self) -> dict[str, nn.Module]:
        """Return the convolutions and linear maps by name, each shared weight once."""
        linear = {name: part for name, part in self.model.named_modules() if isinstance(part, nn.Linear)}
        return conv_modules(self.model) | linear


@torch.no_grad()
def shapes_of(subject: ActivationSubject, images: Tensor) -> tuple[LayerShape, ...]:
    """Return the layers that run, in order of their first call; those whose output is not one an image
    are left out.
    """
    found: dict[str, LayerShape] = {}
    layers = subject.layers()

    def note(name: str, output: Tensor) -> None:
        values = _by_position(output, layers[name])
        if name not in found and len(output) == len(images) and values is not None:
            grid = output.shape[1:-1] if isinstance(layers[name], nn.Linear) else output.shape[2:]
            found[name] = LayerShape(name, values.shape[2], tuple(grid))

    with listening_to(layers, note):
        subject(images)
    if not found:
        raise KernelsimpError(f"{subject.name}: no convolution or linear layer ran; nothing to compare")
    return tuple(found.values())


@torch.no_grad()
def collect(
    subject: ActivationSubject,
    shapes: Sequence[LayerShape],
    batches: Iterable[Tensor],
    sampling: PositionSampling,
    receive: Callable[[object], None],
) -> dict[str, Activations]:
    """Run all batches and return the sampled activations of the layers; `receive` gets every output."""
    layers = subject.layers()
    known = {shape.name: shape for shape in shapes}
    places = {shape.grid: sampling.places(shape) for shape in shapes if sampling.by == "channels"}
    kept: dict[str, list[tuple[Tensor, Tensor | None]]] = {name: [] for name in known}
    done, batch = 0, 0

    def take(name: str, output: Tensor) -> None:
        if len(kept[name]) > batch:
            return  # a later call of the same pass
        values = _by_position(output, layers[name])
        if values is None or values.shape[1:] != (known[name].positions, known[name].channels):
            raise KernelsimpError(
                f"{subject.name}: {name} gave another shape than before; images must be of one size"
            )
        here = places[known[name].grid][done : done + len(values)] if places else None
        kept[name].append(sample_rows(values, here))

    with listening_to({name: layers[name] for name in known}, take):
        for images in batches:
            receive(subject(images))
            done, batch = done + len(images), batch + 1
    return {name: _join_activations(known[name], kept.pop(name)) for name in known}


def _by_position(output: Tensor, layer: nn.Module) -> Tensor | None:
    """Return an output as (images, positions, channels), a view; None where it has not two axes."""
    if output.ndim < 2:
        return None
    if isinstance(layer, nn.Linear):
        return output.reshape(len(output), -1, output.shape[-1])
    return output.flatten(2).transpose(1, 2) if output.ndim > 2 else output[:, None]


def sample_rows(values: Tensor, places: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return copies on the CPU, float32: the network may go on to work in place."""
    if places is None:
        return values.flatten(1).float().cpu().clone(), None
    index = places.to(values.device)[:, :, None].expand(-1, -1, values.shape[2])
    return values.gather(1, index).float().cpu(), values.float().mean(1).cpu()


def _join_activations(shape: LayerShape, parts: list[tuple[Tensor, Tensor | None]]) -> Activations:
    rows = torch.cat([part for part, _ in parts])
    if rows.ndim == 3:  # (images, per image, channels): neighbours in a minibatch are different images
        rows = rows.transpose(0, 1).reshape(-1, rows.shape[2])
    means = [part for _, part in parts if part is not None]
    return Activations(shape, rows, torch.cat(means) if means else None)


def beside(a: Activations, b: Activations) -> tuple[Tensor, Tensor, str]:
    """Return the samples of two layers, row for row, and what a sample is: a position or an image."""
    if a.means is None or b.means is None:
        return a.rows, b.rows, "images"
    if a.shape.grid == b.shape.grid:
        return a.rows, b.rows, "positions" if a.shape.positions > 1 else "images"
    return a.means, b.means, "images"
