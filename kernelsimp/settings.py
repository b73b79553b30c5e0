"""What can be set, one frozen dataclass a stage; `settings_file` makes them of files and options.

Every option of the command line is a field here, so it can also stand in a TOML file under its stage's
heading; the command line wins over the file, the file over a recipe, and that over the defaults. Field
metadata carries the help text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from kernelsimp.export_settings import CodingSettings as CodingSettings
from kernelsimp.export_settings import FactorisingSettings as FactorisingSettings
from kernelsimp.option_fields import (
    BUDGET,
    FIRST,
    LAYERS,
    MORE,
    NO_LAYERS,
    OUTPUT,
    Shown,
    in_file,
    option,
    words,
)

S = TypeVar("S")


@dataclass(frozen=True)
class ModelSettings:
    """Where the network comes from."""

    arch: str | None = option(
        None,
        "zoo:NAME, torchvision:NAME, file.py:callable or module:callable",
        Shown(first=True, values="networks", usual="none: weights alone"),
    )
    sha256: str | None = option(
        None, "refuse the checkpoint unless its file has this SHA-256", Shown(usual="any")
    )
    weights: str | None = option(
        None, "which of several to take: model, ema, or the key of a state dict", Shown(usual="the only one")
    )
    output: str | None = option(
        None, "which of several outputs classifies: a key, attribute or place", Shown(usual="the only one")
    )
    trust_pickle: bool = option(False, "run the code inside a fully pickled module (dangerous)")


@dataclass(frozen=True)
class DataSettings:
    """Where images come from and how they become the network's input."""

    data: str | None = option(
        None,
        "digits, npz:FILE, npy:X.npy,Y.npy, imagefolder:DIR, torchvision:NAME?root=DIR, file.py:callable",
        Shown(first=True, values="sources", usual="no images"),
    )
    mean: tuple[float, ...] | None = option(
        None, "mean of each channel, in pixel / 255; comma-separated", Shown(usual="none")
    )
    std: tuple[float, ...] | None = option(
        None, "standard deviation of each channel; comma-separated", Shown(usual="none")
    )
    input_size: int | None = option(
        None, "resize the shorter side to this many pixels, then crop the centre", Shown(usual="as they are")
    )
    crop: int | None = option(None, "side of the centre crop", Shown(usual="the input size"))
    channels: int | None = option(
        None, "repeat a grey image to this many channels", Shown(usual="as they are")
    )
    augment: str = option(
        "none",
        "training augmentation: none, flip, cifar (pad, crop, flip) or imagenet",
        words("none", "flip", "cifar", "imagenet"),
    )
    split: str = option("80:10:10", "train:val:test of an unsplit folder, counts or shares")
    calibration: int = option(1024, "how many unlabelled training images choose the simplification")
    calibration_flip: bool = option(False, "choose by the left-right mirror images of these, too")
    batch_size: int = option(128, "images a step")
    workers: int = option(0, "threads that load images; with 0 a GPU gets up to 8")


@dataclass(frozen=True)
class ScanSettings:
    """What a scan looks for."""

    tolerance: float = option(0.1, "a kernel matches a family at or below this relative residual", FIRST)
    families: tuple[str, ...] | None = option(
        None, "only these families, comma-separated", Shown(first=True, values="families", usual="all")
    )
    fdr: float = option(0.05, "false discovery rate at which a kernel counts as found", FIRST)
    null: str = option(
        "ring",
        "what chance means: white, ring (smooth), matched (covariance) or permuted",
        words("white", "ring", "matched", "permuted", first=True),
    )
    layers: tuple[str, ...] | None = option(
        None, "only the layers whose names match these globs", Shown(first=True, usual="all")
    )
    skip_layers: tuple[str, ...] | None = option(
        None, "not the layers whose names match these globs", NO_LAYERS
    )
    kinds: tuple[str, ...] | None = option(
        None,
        "only these kinds of layer",
        Shown(values=("dense", "depthwise", "grouped", "transposed"), usual="all"),
    )
    depth: str = option(
        "auto",
        "deep: templates, orbits, prototypes, codings everywhere; shallow: nowhere",
        words("auto", "deep", "shallow"),
    )
    seed: int = option(0, "seed of the random kernels that chance is measured with")


@dataclass(frozen=True)
class PlanSettings:
    """What becomes of the kernels."""

    tolerance: float | None = option(
        None, "simplify kernels within this relative residual", Shown(BUDGET, first=True, usual="none")
    )
    dof: float | None = option(
        None,
        "simplify until this share of the degrees of freedom is left, 0..1",
        Shown(BUDGET, first=True, usual="none"),
    )
    fdr: float = option(0.05, "false discovery rate at which a kernel counts as found, not imposed")
    families: tuple[str, ...] | None = option(
        None,
        "these alone, comma-separated; also templates, prototypes, bent, seventeen, linear (usual), all",
        Shown(first=True, values="families", usual="linear"),
    )
    simplified: float | None = option(
        None, "simplify at least this share of the kernels, 0..1", Shown(BUDGET, usual="none")
    )
    max_drop: float | None = option(
        None,
        "simplify as much as loses at most this accuracy, in pp",
        Shown(BUDGET, first=True, usual="0.5 where no budget is named and there are images"),
    )
    cost: str = option(
        "auto",
        "what an error costs: absolute, layer, filter, mixed or kind (per kernel where depthwise); or auto",
        words("auto", "absolute", "layer", "filter", "mixed", "kind"),
    )
    choice_weight: float = option(
        1.0, "what a bit that names a structure weighs beside one of a coefficient; 0: the DOF alone count"
    )
    resolve: str = in_file("auto", "fit the rest of each filter again: auto (where there are images) or none")
    only_found: bool = option(False, "simplify only kernels whose structure chance does not explain")
    layers: tuple[str, ...] | None = option(None, "only the layers whose names match these globs", LAYERS)
    skip_layers: tuple[str, ...] | None = option(
        None, "not the layers whose names match these globs", NO_LAYERS
    )
    keep_first: bool = option(False, "leave the first convolution as it is")
    denoise: str | None = option(
        None,
        "replace kernels that fit no family by this denoiser: NAME[:STRENGTH]",
        Shown(values="denoisers", usual="none"),
    )
    denoise_all: bool = option(False, "denoise every kernel, and simplify none")
    plan: str | None = option(
        None, "carry out this plan.safetensors of an earlier run", Shown(usual="chosen anew")
    )
    controls: bool = option(
        False, "measure what else the same budget buys: random structures, masks...", Shown(MORE, first=True)
    )
    similarity: bool = option(False, "compare every layer with the original on test images too", Shown(MORE))
    explain: bool = option(False, "say what channels answer to on test images, before and after", Shown(MORE))
    rounds: int = option(
        1, "go to the budget in this many rounds, with a short training after each", Shown(BUDGET)
    )
    round_epochs: int = option(1, "epochs of the training after each round", Shown(BUDGET))
    holdout: str | None = option(
        None,
        "judge --max-drop by this split (train or val) or --data form instead",
        Shown(BUDGET, values=("train", "val"), usual="val"),
    )
    metric: str | None = option(
        None, "file.py:callable (model, batches) -> float, higher is better", Shown(BUDGET, usual="accuracy")
    )


@dataclass(frozen=True)
class FinetuneSettings:
    """How the rest is trained."""

    finetune: bool = option(False, "train what is not held", FIRST)
    hold: str = option(
        "auto",
        "freeze (values, bit for bit), tie (structure) or none; auto is freeze",
        words("auto", "freeze", "tie", "none"),
    )
    epochs: int = option(12, "passes over the training split", FIRST)
    lr: float = option(0.01, "peak learning rate", FIRST)
    optimizer: str = option("sgd", "sgd or adamw", words("sgd", "adamw"))
    momentum: float = in_file(0.9, "momentum of SGD")
    weight_decay: float = option(1e-4, "weight decay")
    distill: float = option(0.9, "weight of distillation from the original network, 0..1; 0 turns it off")
    temperature: float = in_file(4.0, "temperature of distillation")
    batch_norm: str = option(
        "train",
        "batch norm: train, eval (statistics kept) or re-estimate (at the end)",
        words("train", "eval", "re-estimate"),
    )
    precision: str = option(
        "32-true",
        "32-true, bf16-mixed, or on a GPU tf32 (float32 with shorter fractions) or 16-mixed",
        words("32-true", "tf32", "bf16-mixed", "16-mixed"),
    )
    schedule: str = option(
        "cosine",
        "how the learning rate runs: cosine, one-cycle or constant",
        words("cosine", "one-cycle", "constant"),
    )
    warmup: float = option(0.0, "epochs in which the learning rate rises from 0 to its peak")
    clip: float | None = option(None, "clip the gradient to this norm", Shown(usual="no limit"))
    accumulate: int = option(1, "batches whose gradients are added up for one step")
    label_smoothing: float = option(0.0, "share of the label spread over all classes, 0..1")
    mixup: float = option(0.0, "blend pairs of images, shares from Beta(a, a) with this a, such as 1")
    cutmix: float = option(
        0.0, "paste boxes between pairs of images, areas from Beta(a, a); with mixup, by turns"
    )
    patience: int | None = option(
        None, "stop after this many epochs without a better validation result", Shown(usual="never")
    )
    free_scale: bool = option(False, "with hold = tie: keep each kernel's shape, train only its scale")
    soft: float | None = option(
        None, "pull kernels towards their structure this hard, rising, then snap", Shown(usual="off")
    )
    ema: float | None = option(
        None, "keep an average of the weights with this decay a step, such as 0.999", Shown(usual="off")
    )
    resume: bool = option(False, "go on from the state in the run's resume folder", Shown(OUTPUT, first=True))
    save_every: float | None = option(
        None, "minutes between resume states", Shown(OUTPUT, usual="one an epoch")
    )
    log: str = option(
        "tensorboard",
        "where curves go too, commas between: tensorboard, wandb, mlflow; or none",
        words("tensorboard", "wandb", "mlflow", "none", group=OUTPUT),
    )
    compile: bool = option(False, "compile the network with torch.compile", Shown(OUTPUT))
    channels_last: bool = option(False, "keep images and weights with channels last in memory", Shown(OUTPUT))
    devices: int = option(1, "processes a node, one a device", Shown(OUTPUT))
    num_nodes: int = option(1, "nodes that work together", Shown(OUTPUT))
    strategy: str = in_file("auto", "how processes work together: auto or ddp")


@dataclass(frozen=True)
class TrainSettings:
    """What training from scratch holds and penalises; how it trains stands under [finetune]."""

    constrain: tuple[str, ...] | None = option(
        None,
        "hold kernels in a family from the first step: NAME, GLOB=NAME or GLOB=NAME:SHARE+NAME:SHARE",
        Shown(first=True, usual="nothing"),
    )
    penalty: tuple[str, ...] | None = option(
        None, "NAME:WEIGHT; asymmetry, rate, entropy, smoothness or distinct", Shown(first=True, usual="none")
    )
    penalty_families: tuple[str, ...] | None = in_file(None, "families of the asymmetry, comma-separated")
    penalty_schedule: str = in_file("ramp", "how penalty weights run: constant, ramp, late or early")
    rounding: str = in_file("noise", "how the rate rounds: noise or straight-through")
    curve: int = option(1, "epochs between two measurements of bits and found structure; 0 is never")


@dataclass(frozen=True)
class RunSettings:
    """The surroundings of a run."""

    seed: int = option(0, "seed of everything random")
    device: str = option(
        "auto", "auto, cpu, cuda or cuda:N", Shown(first=True, values=("auto", "cpu", "cuda"))
    )
    recipe: str = option(
        "auto",
        "auto: what suits a large network sets what is left open; none: nothing does",
        words("auto", "none", group="How to choose"),
    )
    memory: float | None = option(None, "gigabytes that may be used", Shown(usual="half of what is free"))


@dataclass(frozen=True)
class RobustnessSettings:
    """How networks are tried where images or weights are not what they were trained on."""

    robustness: bool = option(False, "measure robustness too: corruptions, noise, shifts, adversaries", FIRST)
    images: int = option(1000, "how many test images to use, seeded; 0 uses all")
    corruptions: tuple[str, ...] | None = option(
        None, "only these corruptions, comma-separated", Shown(values="corruptions", usual="all")
    )
    cifar_c: str | None = option(
        None, "folder of the official CIFAR-10-C .npy files, instead of our own", Shown(usual="our own")
    )
    weight_noise: tuple[float, ...] = option(
        (0.01, 0.02, 0.05, 0.1), "noise in weights, in RMS of each tensor"
    )
    noise_draws: int = option(3, "draws of weight noise at each level")
    shifts: tuple[float, ...] = option((1.0, 2.0, 4.0), "pixels by which images are shifted")
    radii: tuple[float, ...] = option((0.5, 1.0, 2.0), "radii of FGSM and PGD, in 1 / 255 of the pixel range")
    pgd_steps: int = option(10, "steps of PGD")


@dataclass(frozen=True)
class PruneSettings:
    """What pruning by magnitude removes; how it trains stands under [finetune]."""

    amount: float = option(
        0.2, "share of what is left that each iteration removes, 0..1", Shown(BUDGET, first=True)
    )
    iterations: int = option(1, "how many times a part is removed", Shown(BUDGET, first=True))
    dof: float | None = option(
        None,
        "remove as much as leaves this share of all in the iterations, 0..1",
        Shown(BUDGET, first=True, usual="none"),
    )
    rewind: str = option(
        "lr",
        "lr: train with the whole schedule after each iteration; none: only at the end",
        words("lr", "none"),
    )
    scope: str = option(
        "global",
        "rank magnitudes over the whole network: global, or in each: layer",
        words("global", "layer", first=True),
    )
    granularity: str = option(
        "weights",
        "what is removed as one: weights, kernels or filters",
        words("weights", "kernels", "filters", first=True),
    )
    layers: tuple[str, ...] | None = option(None, "only the layers whose names match these globs", LAYERS)
    skip_layers: tuple[str, ...] | None = option(
        None, "not the layers whose names match these globs", NO_LAYERS
    )
    keep_first: bool = option(False, "leave the first convolution as it is")


@dataclass(frozen=True)
class AuditSettings:
    """Which cheaper layers an audit sets beside each layer."""

    bottleneck: int = option(4, "a bottleneck has the output channels divided by this")
    groups: int = option(4, "groups of the grouped alternative")


@dataclass(frozen=True)
class CompareSettings:
    """How two networks are compared on the same images."""

    arch_b: str | None = option(
        None,
        "architecture of B, where it is not that of A",
        Shown("Network", first=True, values="networks", usual="that of A"),
    )
    by: str = option(
        "channels",
        "what a sample is: channels (a position) or flat (an image)",
        words("channels", "flat", first=True),
    )
    images: int = option(1000, "how many test images to use, seeded; 0 uses all", FIRST)
    samples: int = option(4096, "positions taken of all images together, at least one an image")
    match: str = option(
        "auto",
        "which layers stand side by side: of one name, of like depth, or auto",
        words("auto", "name", "depth"),
    )
    layers: tuple[str, ...] | None = option(None, "only the layers whose names match these globs", LAYERS)
    measures: tuple[str, ...] | None = option(
        None, "only these measures, comma-separated", Shown(usual="all")
    )
    matrix: bool = option(False, "compare all layers of A against all of B too", FIRST)
    force: bool = option(False, "correlate subspaces even where there are too few samples for them")


@dataclass(frozen=True)
class Settings:
    """All stages; the field names are the headings of a settings file."""

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    scan: ScanSettings = ScanSettings()
    plan: PlanSettings = PlanSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    robustness: RobustnessSettings = RobustnessSettings()
    prune: PruneSettings = PruneSettings()
    audit: AuditSettings = AuditSettings()
    compare: CompareSettings = CompareSettings()
    run: RunSettings = RunSettings()
    train: TrainSettings = TrainSettings()
    coding: CodingSettings = CodingSettings()  # noqa: RUF009 (frozen)
    factorising: FactorisingSettings = FactorisingSettings()  # noqa: RUF009 (frozen)


Given = Mapping[str, Mapping[str, Any]]
"""What someone asked for: {stage: {key: value}}; None is 'not given'."""
