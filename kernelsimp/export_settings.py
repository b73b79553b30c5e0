"""What can be set of exports: a part of `settings`, with fields as there."""

from dataclasses import dataclass

from kernelsimp.option_fields import MORE, Shown, option, words

ENGINES = ("eager", "compile", "onnx")
"""What runs a whole network: torch as it is, torch.compile, ONNX Runtime."""


@dataclass(frozen=True)
class CodingSettings:
    """What a coded checkpoint may cost; one of these."""

    max_drop: float | None = option(
        None,
        "coded, factorised: lose at most this accuracy, in pp",
        Shown(usual="coded with images: 0.5 where no budget is named"),
    )
    kl: float | None = option(None, "coded: stay within this KL of the original, in nats an image")
    size: int | None = option(None, "coded: stay within this many bytes")


@dataclass(frozen=True)
class FactorisingSettings:
    """How a network is made faster by thinner layers; without a budget only what costs nothing is done."""

    speedup: float | None = option(None, "factorised: be this many times as fast, as measured here")
    macs: float | None = option(None, "factorised: leave this share of the multiplications, 0..1")
    layout: str = option(
        "contiguous",
        "factorised: how images lie in memory, contiguous or channels-last",
        words("contiguous", "channels-last", group=MORE),
    )
    time_batch: int = option(1, "factorised: images at once at which layers are timed", Shown(MORE))
    times: str | None = option(
        None,
        "factorised: file that keeps what was timed on this machine",
        Shown(MORE, usual="kernelsimp/times.json in the user's cache"),
    )
    engines: tuple[str, ...] | None = option(
        None,
        "factorised: time the whole network in these alone, of eager, compile and onnx",
        Shown(MORE, values=ENGINES, usual="all that are installed"),
    )
