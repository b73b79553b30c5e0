"""Memory that does not do, planted at every stage: batches are halved, it is said, and the end is right."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from builders import npz, tiny_state
from networks import network, smooth_images
from saying import Heard, command_refusal, refusal
from solving import HALF, calibrated
from test_robustness import brightness_net, noise_images
from torch import Tensor, nn
from tuning import PLAIN, bar_net, bars, job, values_of

from kernelsimp.batch_limit import ONE_IS_TOO_MANY, BatchLimit
from kernelsimp.cli.main import run
from kernelsimp.data.splits import Data
from kernelsimp.data.transforms import Preprocess
from kernelsimp.evaluation.accuracy import measure
from kernelsimp.evaluation.robustness import assess
from kernelsimp.evaluation.stability import Bench
from kernelsimp.settings import RobustnessSettings
from kernelsimp.solver import layerwise
from kernelsimp.solver.controls import ControlCase, run_controls
from kernelsimp.solver.distance import DistanceJudge, relative_error
from kernelsimp.solver.layerwise import reconstruct
from kernelsimp.solver.plan_builder import chooser, data_free_plan
from kernelsimp.solver.solve import Surveyed, solve_at_budget, survey_layers
from kernelsimp.solver.targets import targets_of
from kernelsimp.training.finetune import finetune
from kernelsimp.training.options import check_precision
from kernelsimp.training.validation import EpochJudge


def cramp(model: nn.Module, most: int, module: nn.Module | None = None) -> nn.Module:
    """Let a network run out of memory at more than `most` images; on its way, where a module is named."""

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    (module or model).register_forward_pre_hook(hook)
    return model


def halving(first: int, last: int) -> list[str]:
    """What is said while `first` images at once become `last`."""
    said = []
    while first > last:
        said.append(f"out of memory with {first} images at once: going on with {first // 2}")
        first //= 2
    return said


# ---------------------------------------------------------------- the limit itself


def test_parts_are_of_about_one_size_and_stay_small_once_memory_did_not_do() -> None:
    heard, sizes = Heard(), list[int]()

    def work(images: Tensor, places: range) -> int:
        sizes.append(len(images))
        assert images.tolist() == list(places)
        if len(images) > 12:
            raise MemoryError
        return len(images)

    limit = BatchLimit(heard)
    assert limit.in_parts(work, torch.arange(50), range(50)) == [10, 10, 10, 10, 10]
    assert limit.in_parts(work, torch.arange(14), range(14)) == [7, 7]
    assert sizes == [50, 25, 10, 10, 10, 10, 10, 7, 7]
    assert heard.warnings == halving(50, 12)


def test_what_failed_can_be_taken_back_and_begun_again() -> None:
    done = list[int]()

    def work(images: Tensor) -> int:
        done.append(len(images))
        if len(images) > 4 or done == [4, 4]:  # the second half fails once the first is done
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return len(images)

    assert BatchLimit().in_parts(work, torch.arange(8), restart=done.clear) == [2, 2, 2, 2]
    assert done == [2, 2, 2, 2]


def test_what_did_not_fit_is_let_go_before_anything_is_begun_again() -> None:
    class Large:
        """What a failing pass has made so far."""

    alive: list[Any] = []

    def work(images: Tensor) -> int:
        large = Large()
        alive.append(weakref.ref(large))
        if len(images) > 4:
            raise MemoryError
        return len(images)

    def restart() -> None:
        assert alive[-1]() is None

    assert BatchLimit().in_parts(work, torch.arange(8), restart=restart) == [4, 4]


def test_one_image_too_many_is_one_line_and_another_failure_is_left_alone() -> None:
    def full(_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def wrong(_: Any) -> None:
        raise RuntimeError("shapes differ")

    assert refusal(lambda: BatchLimit().in_parts(full, torch.arange(5))) == ONE_IS_TOO_MANY
    assert refusal(lambda: BatchLimit().in_batches(full, [torch.arange(5)])) == ONE_IS_TOO_MANY
    for work in (BatchLimit().in_parts, BatchLimit().in_batches):
        with pytest.raises(RuntimeError, match="shapes differ"):
            work(wrong, [torch.arange(5)])
    with pytest.raises(torch.OutOfMemoryError):
        BatchLimit(least=4).in_parts(full, torch.arange(16))


# ---------------------------------------------------------------- choosing


def test_a_re_solve_goes_on_with_smaller_batches_and_comes_to_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stood = calibrated(network())
    targets = targets_of(data_free_plan(stood.bank, HALF))
    expected, heard = reconstruct(stood, targets), Heard()
    cramp(stood.model, 5, stood.model.get_submodule("conv2"))
    stood = replace(stood, limit=BatchLimit(heard))
    fit, fitted = layerwise._fit_layer, list[str]()
    monkeypatch.setattr(
        layerwise, "_fit_layer", lambda model, use, *more: fitted.append(use.name) or fit(model, use, *more)
    )
    results = [reconstruct(stood, targets)]
    assert heard.warnings == halving(42, 5)
    assert fitted == [use.name for use in stood.traced.uses]  # none is done again
    results.append(reconstruct(stood, targets))
    assert heard.warnings == halving(42, 5)  # it is remembered
    for found in results:
        assert found.tensors.keys() == expected.tensors.keys()
        for name, value in expected.tensors.items():
            assert torch.allclose(found.tensors[name], value, rtol=1e-3, atol=1e-5), name


def test_survey_plan_re_solve_judge_and_controls_all_end_right() -> None:
    heard = Heard()

    def surveyed(most: int) -> Surveyed:
        stood = replace(calibrated(network()), limit=BatchLimit(heard))
        cramp(stood.model, most, stood.model.get_submodule("head"))
        return survey_layers(stood, HALF, heard)

    divergences = []
    for most in (99, 3):
        ground = surveyed(most)
        solution = solve_at_budget(ground, chooser(HALF), "absolute")
        (arm,) = run_controls(ControlCase(ground, solution.best), ["permuted labels"], seed=3)
        divergences += [solution.best.distance.divergence, ground.judge.distance(arm.model).divergence]
        assert bool(heard.warnings) == (most == 3)
    assert divergences[2:] == pytest.approx(divergences[:2], rel=1e-2)


def test_judges_halve_their_batches_and_measure_what_they_did() -> None:
    first, second, images = network(), network(), smooth_images(20)
    with torch.no_grad():
        second.get_submodule("conv1").weight.mul_(0.5)
    expected = DistanceJudge(first, [images]).distance(second), relative_error(first, second, [images])
    cramp(first, 6)
    cramp(second, 3)
    heard = Heard()
    found = DistanceJudge(first, [images], limit=BatchLimit(heard)).distance(second)
    assert found.divergence == pytest.approx(expected[0].divergence, rel=1e-5)
    assert found.agreement == expected[0].agreement
    assert relative_error(first, second, [images]) == pytest.approx(expected[1], rel=1e-5)
    assert heard.warnings == halving(20, 2)


# ---------------------------------------------------------------- measuring


def test_accuracy_is_measured_in_smaller_batches() -> None:
    split, heard = noise_images(), Heard()
    batches = list(Bench(Preprocess(), batch_size=30).batches(split))
    expected = measure(brightness_net(), batches)
    found = measure(cramp(brightness_net(), 8), batches, watcher=heard)
    assert (found.correct == expected.correct).all()
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert heard.warnings == halving(30, 7)


def test_robustness_is_measured_in_smaller_batches() -> None:
    split = noise_images(40)
    data = Data("x", split, split, split, 2)
    settings = RobustnessSettings(images=30, corruptions=("fog",), noise_draws=1, pgd_steps=2)
    heard = Heard()
    reports = [
        assess({"a": model}, data, Bench(Preprocess(), batch_size=30, limit=BatchLimit(watcher)), settings)
        for model, watcher in ((brightness_net(), Heard()), (cramp(brightness_net(), 8), heard))
    ]
    assert reports[0].models["a"] == reports[1].models["a"]
    assert heard.warnings == halving(30, 7)


class Slopes(nn.Module):
    """Runs out of memory on the way back alone, with more than so many images."""

    def __init__(self, inner: nn.Module, most: int) -> None:
        super().__init__()
        self.inner, self.most = inner, most

    def forward(self, images: Tensor) -> Tensor:
        made: Tensor = self.inner(images)
        if made.requires_grad:
            made.register_hook(self.look)
        return made

    def look(self, slope: Tensor) -> None:
        if len(slope) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")


def test_an_attack_whose_gradient_does_not_fit_is_made_in_parts() -> None:
    split = noise_images(40)
    data = Data("x", split, split, split, 2)
    settings = RobustnessSettings(images=30, corruptions=("fog",), noise_draws=1, pgd_steps=2)
    heard = Heard()
    bench = Bench(Preprocess(), batch_size=30, limit=BatchLimit(heard))
    found = assess({"a": Slopes(brightness_net(), 8)}, data, bench, settings)
    expected = assess({"a": brightness_net()}, data, replace(bench, limit=BatchLimit()), settings)
    assert found.models["a"].adversarial == expected.models["a"].adversarial
    assert heard.warnings == halving(30, 7)


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_is_taken_in_parts_where_its_batch_does_not_fit(backward: bool, accumulate: int) -> None:
    """Without batch norm a step in parts is the same step: gradients add up."""

    def made() -> nn.Module:
        return nn.Sequential(*(part for part in bar_net() if not isinstance(part, nn.BatchNorm2d)))

    settings = replace(PLAIN, epochs=2, momentum=0.9, accumulate=accumulate)
    work = job(train=lambda epoch, shard: bars(epoch, size=40), val=bars(100))
    expected, heard = made(), Heard()
    finetune(expected, work, settings)
    found = made()
    cramped = Slopes(found, 12) if backward else cramp(found, 12)
    trained = finetune(cramped, work, settings, heard)
    assert heard.warnings[:2] == halving(40, 10)
    assert len(trained.history) == 2
    for mine, other in zip(values_of(expected), values_of(found), strict=True):
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("failing", [(40,), (40, 20)])
def test_a_step_of_several_batches_begins_again_where_one_does_not_fit(failing: tuple[int, ...]) -> None:
    """Memory does not do in the third batch of a step, and in the first one when it is done again."""

    def made() -> nn.Module:
        return nn.Sequential(*(part for part in bar_net() if not isinstance(part, nn.BatchNorm2d)))

    class Worn(Slopes):
        def look(self, slope: Tensor) -> None:
            seen.append(len(slope))
            if len(seen) >= 3 and left and len(slope) == left[0]:
                del left[0]
                raise torch.OutOfMemoryError("CUDA out of memory")

    seen, left, heard = list[int](), list(failing), Heard()
    settings = replace(PLAIN, epochs=1, momentum=0.9, accumulate=3)
    work = job(train=lambda epoch, shard: bars(epoch, batches=6, size=40), val=[])
    expected, found = made(), made()
    finetune(expected, work, settings)
    finetune(Worn(found, 0), work, settings, heard)
    assert not left
    assert heard.warnings == halving(40, 40 // 2 ** len(failing))
    for mine, other in zip(values_of(expected), values_of(found), strict=True):
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-6)


def test_a_batch_of_which_not_even_a_part_fits_is_one_line_with_the_remedy() -> None:
    work = job(train=lambda epoch, shard: bars(epoch, size=40), val=bars(100))
    words = refusal(lambda: finetune(cramp(bar_net(), 7), work, replace(PLAIN, accumulate=2)))
    assert words.startswith("a training batch does not fit into memory; lower --batch-size")


def test_validation_is_marked_in_smaller_batches() -> None:
    heard, model = Heard(), bar_net().eval()
    expected = EpochJudge(bars(100, size=30), model, torch.device("cpu")).mark(model)
    cramp(model, 8)
    judge = EpochJudge(bars(100, size=30), model, torch.device("cpu"), BatchLimit(heard))
    found = judge.mark(model)
    assert found is not None
    assert expected is not None
    assert (found.top1, found.total) == (expected.top1, expected.total)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert heard.warnings == halving(30, 7)


@pytest.mark.parametrize(
    ("precision", "question", "lacks"),
    [("bf16-mixed", "is_bf16_supported", "bfloat16"), ("tf32", "is_tf32_supported", "TF32")],
)
def test_a_card_too_old_for_a_precision_is_one_line(
    precision: str, question: str, lacks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    able = [True]
    monkeypatch.setattr(torch.cuda, question, lambda **_: able[0])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla T4")
    check_precision(precision, "cuda")
    able[0] = False
    check_precision("32-true", "cuda")
    check_precision("bf16-mixed", "cpu")
    words = refusal(lambda: check_precision(precision, "cuda"))
    assert words == f"precision {precision}: Tesla T4 has no {lacks}; use 16-mixed or 32-true"


# ---------------------------------------------------------------- commands


@pytest.fixture
def words(tmp_path: Any) -> Callable[..., list[str]]:
    """A small network that runs out of memory at more than six images, and how commands name it."""
    code = (
        "import torch\nfrom builders import TinyNet\n\n\n"
        "def cramped():\n    model = TinyNet()\n"
        "    model.register_forward_pre_hook(look)\n    return model\n\n\n"
        "def look(_, inputs):\n    if len(inputs[0]) > 6:\n"
        "        raise torch.OutOfMemoryError('CUDA out of memory')\n"
    )
    (tmp_path / "cramped.py").write_text(code)
    torch.save(tiny_state(), tmp_path / "tiny.pt")
    npz(tmp_path / "i.npz", (8, 8, 3), count=64)

    def command(name: str, *more: str) -> list[str]:
        arch = ["--arch", f"{tmp_path / 'cramped.py'}:cramped", "--data", f"npz:{tmp_path / 'i.npz'}"]
        return [name, str(tmp_path / "tiny.pt"), *arch, "--device", "cpu", "-q", *more]

    return command


def test_a_network_is_coded_in_smaller_batches(
    words: Callable[..., list[str]], tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.kscode"
    assert run(words("export", "--to", "coded", "--kl", "0.001", "--out", str(out))) == 0
    captured = capsys.readouterr()
    assert "out of memory with " in captured.err
    assert "images held back" in captured.out
    assert out.stat().st_size > 0


def test_what_nothing_else_meets_is_one_line(
    words: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    model = words("compare")[1]
    said = command_refusal([*words("compare")[:2], model, *words("compare")[2:]], capsys)
    assert said == (
        "memory does not do for this; lower --batch-size or --memory, or pass --device cpu "
        "(CUDA out of memory)"
    )
