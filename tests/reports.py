"""A synthetic run for tests: banks, a plan, pictures and a report that agree with each other."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kernelsimp.kernels.families import find
from kernelsimp.records.factorised import (
    CheckedOutput,
    Factorised,
    FactorisedLayer,
    Latency,
    Ratio,
    Timing,
)
from kernelsimp.records.held import hold_layer
from kernelsimp.records.plan import LayerPlan, Plan
from kernelsimp.records.report import (
    Accuracy,
    Control,
    Dof,
    Epoch,
    KernelCounts,
    LayerReport,
    Report,
    Size,
    Stage,
)
from kernelsimp.records.scan import FamilyScan, LayerScan, NullCount, Scan

STRUCTURES = ("free", "mirror-h", "equal-rows", "zero")
LAYERS = {"conv1": (8, 3, 3, 3), "layer1.0.conv1": (16, 8, 3, 3), "layer2.0.conv1": (6, 1, 5, 5)}
KINDS = {"conv1": "dense", "layer1.0.conv1": "dense", "layer2.0.conv1": "depthwise"}
TOTAL = 1000


def snapped(kernels: Tensor, choice: np.ndarray, structures: tuple[str, ...] = STRUCTURES) -> Tensor:
    """Write each kernel into its structure."""
    flat = kernels.clone().reshape(-1, *kernels.shape[2:])
    flat_choice = choice.reshape(-1)
    for number, name in enumerate(structures):
        here = torch.from_numpy(np.flatnonzero(flat_choice == number))
        if name == "zero":
            flat[here] = 0
        elif name != "free":
            flat[here] = find(name, tuple(kernels.shape[2:])).snap(flat[here])
    return flat.reshape(kernels.shape)


def before_and_after(dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], dict[str, Tensor], Plan]:
    """Return canonical kernels before and after, and the plan between them."""
    generator = torch.Generator().manual_seed(5)
    rng = np.random.default_rng(5)
    before = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in LAYERS.items()}
    layers = []
    for name, kernels in before.items():
        choice = rng.integers(0, len(STRUCTURES), size=tuple(kernels.shape[:2])).astype(np.int16)
        grid = tuple(kernels.shape[2:])
        dims = [int(np.prod(grid)), find("mirror-h", grid).dim, find("equal-rows", grid).dim, 0]
        layers.append(
            LayerPlan(
                name=name,
                kind=KINDS[name],
                groups=kernels.shape[0] if KINDS[name] == "depthwise" else 1,
                grid=grid,
                choice=choice,
                found=(choice == 2) & (rng.random(choice.shape) < 0.5),
                dead=np.zeros(choice.shape, dtype=bool),
                residual=rng.random(choice.shape).astype(np.float32) * 0.2,
                dims=np.array(dims, dtype=np.int16),
            )
        )
    plan = Plan(STRUCTURES, tuple(layers), {"rule": "tolerance"})
    after = {layer.name: snapped(before[layer.name], layer.choice) for layer in layers}
    return before, after, plan


def bits(correct: int, total: int = TOTAL, seed: int = 0) -> str:
    """Return the bit field of `correct` right answers at seeded places."""
    import base64

    right = np.zeros(total, dtype=bool)
    right[np.random.default_rng(seed).permutation(total)[:correct]] = True
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def stage(name: str, correct: int, total: int = TOTAL, seed: int = 0) -> Stage:
    top1 = 100 * correct / total
    return Stage(name, top1, correct, total, 0.3, (top1 - 1.8, top1 + 1.7), bits(correct, total, seed))


def layer_report(layer: LayerPlan, after: Tensor, *, frozen: bool = True) -> LayerReport:
    stored = after.contiguous().view(torch.uint8).reshape(layer.choice.size, -1).numpy()
    names, counts = np.unique(layer.choice, return_counts=True)
    families = {STRUCTURES[n]: int(c) for n, c in zip(names, counts, strict=True) if n}
    return LayerReport(
        name=layer.name,
        kind=layer.kind,
        groups=layer.groups,
        weight_shape=tuple(after.shape),
        kernels=layer.choice.size,
        simplified=int(layer.changed.sum()),
        found=int(layer.found.sum()),
        families=families,
        dof=layer.dof_after,
        weight_error=0.21,
        output_error=0.13,
        hold=hold_layer(layer.choice, stored, frozen=frozen),
    )


def report(*, hold: str = "freeze") -> Report:
    """Return a whole report of a run of three layers."""
    _, after, plan = before_and_after()
    layers = tuple(layer_report(layer, after[layer.name], frozen=hold == "freeze") for layer in plan.layers)
    zeroed = sum(int((layer.choice == 3).sum()) for layer in plan.layers)
    found = sum(layer.found for layer in layers)
    total = sum(layer.kernels for layer in layers)
    dof = Dof(plan.dof_before, plan.dof_after, plan.dof_after / plan.dof_before, 0.61)
    after_bits = plan.dof_after * 3.5 + 900
    stages = (stage("original", 932), stage("simplified", 894, seed=1), stage("finetuned", 929, seed=2))
    return Report(
        structures=STRUCTURES,
        accuracy=Accuracy(stages, -0.3, (-1.2, 0.6), 0.63),
        kernels=KernelCounts(
            total, plan.simplified, found, plan.simplified - found - zeroed, zeroed, 2,
            plan.simplified if hold == "freeze" else 0, plan.simplified if hold == "tie" else 0,
        ),
        dof=dof,
        bits={"before": plan.dof_before * 3.5, "after": after_bits, "choices": 900.0, "coefficient": 3.5},
        size=Size(1_103_432, 812_345, 302_222, 1_103_432, 1_012_345),
        layers=layers,
        settings={"plan": {"tolerance": 0.1, "dof": None}, "run": {"seed": 0, "device": "cpu"}},
        provenance={
            "input_sha256": "ab" * 32,
            "data_fingerprint": "cd" * 32,
            "seed": 0,
            "versions": {"torch": "2.15.0"},
            "command": "kernelsimp simplify model.pt --arch zoo:resnet20 --data npz:images.npz --out run",
        },
        hold=hold,
        training=tuple(epochs()),
        controls=controls(),
        buffers_changed=("bn1.running_mean",),
        notes=("batch norm was not measured again: it did not help",),
        pictures={"chance": chance()},
    )  # fmt: skip


def factorised(word: str = "conv1") -> Factorised:
    """Return an export of two layers, one of them whole; `word` stands in every text."""
    time, ratio = Timing(1.0e-3, 0.9e-3, 1.1e-3), Ratio(1.5, 1.4, 1.6)
    thin = FactorisedLayer(
        word, (8, 3, 3, 3), 1, (3, 8, 8), 2, 9, 0, False, 224, 112, 13824, 6912, time, time, ratio
    )
    whole = replace(thin, rank=0, why=word, before=None, after=None, ratio=None)
    stages = (stage("before", 932), stage("factorised", 894, seed=1), stage("finetuned", 929, seed=2))
    return Factorised(
        {"path": word},
        word,
        "contiguous",
        1,
        "multiplications",
        (thin, whole),
        (448, 336),
        (27648, 20736),
        latency=(Latency("eager", 1, time, time, ratio), Latency("onnx", 32, None, None, None, word)),
        outputs=(CheckedOutput(word, 1e-7, word, word),),
        accuracy=Accuracy(stages, -0.3, (-1.2, 0.6), 0.63),
        training=tuple(epochs()),
        notes=(word,),
    )


def epochs() -> list[Epoch]:
    return [
        Epoch(n, 1.2 / n, 90 + n * 0.4, 0.5 / n, 0.01 * (1 - n / 13), 2.5, 1800.0, kept=n == 10)
        for n in range(1, 13)
    ]


def controls() -> tuple[Control, ...]:
    return (
        Control("random subspaces", 0.5, 91.2, 912, -2.0, 0.03),
        Control("cell masks", 0.5, 92.8, 928, -0.4, 0.6),
        Control("untouched, same schedule", 1.0, 93.9, 939, 0.7, 0.3),
    )


def chance() -> dict[str, object]:
    seen = {"mirror-h": (130, 121.0), "equal-rows": (310, 52.5), "constant": (3, 7.2)}
    return {
        name: {
            "observed": n,
            "layers": 3,
            "null": {"white": {"expected": e, "enrichment": n / e, "found": None}},
        }
        for name, (n, e) in seen.items()
    }


def renamed(source: Report, names: dict[str, str]) -> Report:
    """Return the report with some layers called otherwise."""
    layers = tuple(replace(layer, name=names.get(layer.name, layer.name)) for layer in source.layers)
    return replace(source, layers=layers)


def scan() -> Scan:
    """Return a scan of two layers; one median residual is NaN."""
    white = NullCount(4.5, 2.0, 3, 0.4)
    mirror = FamilyScan(6, 9, {"white": white}, 0.4, float("nan"))
    rows = FamilyScan(3, 2, {"white": NullCount(0.0, None)}, float("nan"))
    first = LayerScan(
        name="conv1",
        kind="dense",
        kind_source="weights",
        weight_shape=(4, 3, 3, 3),
        kernels=12,
        dead=1,
        families={"mirror-h": mirror, "equal-rows": rows},
        best=np.array([0, 0, 1, -1, 0, -1, -1, -1, -1, -1, -1, -1], dtype=np.int16),
        residual=np.full(12, 0.05, dtype=np.float32),
        p=np.full(12, 0.5),
        found=np.arange(12) < 2,
        histogram=(1, 2, 9),
        extra={"bits_per_kernel": {"structure": 18.5, "uniform": 20.25}},
    )
    second = replace(first, name="conv2", families={"mirror-h": mirror}, extra={})
    return Scan(
        {"path": "model.pt", "sha256": "ef" * 32, "format": "zip"},
        {"tolerance": 0.1, "null": "white"},
        ("mirror-h", "equal-rows"),
        (first, second),
        (("fc.weight", "2-D weight"),),
        1234,
        64,
    )
