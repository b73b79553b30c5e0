"""Fine-tuning: what one step does, and averages, soft holds and formats."""

from dataclasses import replace

import pytest
import torch
from held import plan_for, simplified
from saying import Heard
from tuning import PLAIN, bar_net, bars, equal, job, values_of

from kernelsimp.errors import KernelsimpError
from kernelsimp.settings import DataSettings, FinetuneSettings, Settings
from kernelsimp.training import finetune as room
from kernelsimp.training.finetune import finetune
from kernelsimp.training.hold import hold, projections, release, survival_in_model
from kernelsimp.training.job import loading_of
from kernelsimp.training.options import make_optimizer
from kernelsimp.training.penalties import Pull
from kernelsimp.training.statistics import re_estimate
from kernelsimp.training.validation import EpochJudge

# ---------------------------------------------------------------- the step


def accumulated(batches, accumulate, epochs):
    """Train the usual network in float64 on `batches`, and return its bits."""
    model = bar_net().double()
    exact = [(x.double(), y) for x, y in batches]
    settings = replace(PLAIN, accumulate=accumulate, batch_norm="eval", epochs=epochs)
    finetune(model, job(train=lambda epoch, shard: exact, val=[]), settings)
    return values_of(model)


def test_accumulated_batches_make_the_same_steps_as_one_large_batch():
    """Ten images in threes: the last group is short, and each image still counts the same in its step."""
    ends = []
    for accumulate in (1, 2):
        size = 8 // accumulate
        train = [
            (x[start : start + size], y[start : start + size])
            for x, y in bars(1)
            for start in range(0, 8, size)
        ]
        ends.append(accumulated(train, accumulate, epochs=2))
    for first, second in zip(*ends, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-8)


def test_a_short_last_group_of_accumulated_batches_is_averaged_over_its_own_length():
    train = bars(1, batches=3, size=4)
    joined = [
        (torch.cat([x for x, _ in part]), torch.cat([y for _, y in part])) for part in (train[:2], train[2:])
    ]
    ends = []
    for batches, accumulate in ((train, 2), (joined, 1)):
        ends.append(accumulated(batches, accumulate, epochs=1))
    for first, second in zip(*ends, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_batch_norm_statistics_move_only_in_training_mode(mode):
    model = bar_net()
    before = model[1].running_mean.clone()
    finetune(model, job(), replace(PLAIN, batch_norm=mode))
    assert torch.equal(model[1].running_mean, before) == (mode == "eval")
    assert not torch.equal(model[1].weight, torch.ones(6))


def test_re_estimated_statistics_are_those_of_the_images():
    model = bar_net(dropout=0.5)
    model[1].running_mean.fill_(3.0)
    batches = bars(5)
    modes = [module.training for module in model.modules()]
    re_estimate(model, batches, torch.device("cpu"))
    with torch.no_grad():
        before_norm = [model[0](x) for x, _ in batches]
    mean = torch.stack([y.mean((0, 2, 3)) for y in before_norm]).mean(0)
    variance = torch.stack([y.var((0, 2, 3), unbiased=True) for y in before_norm]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, variance)
    assert model[1].momentum == 0.1
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("good", [True, False])
def test_re_estimated_statistics_are_kept_only_where_validation_says_so(good):
    """Where the epoch that gives the statistics has other images than validation, they are worse."""

    def train(epoch, shard):
        return bars(epoch) if good or epoch > 1 else [(20 - 5 * x, y) for x, y in bars(epoch)]

    settings = replace(PLAIN, epochs=6, lr=0.02)
    model, heard = bar_net(), Heard()
    finetune(model, job(train=train), replace(settings, batch_norm="re-estimate"), heard)
    plain = bar_net()
    trained = finetune(plain, job(train=train), settings)
    before = EpochJudge(bars(100), None, torch.device("cpu")).mark(plain).loss
    after = EpochJudge(bars(100), None, torch.device("cpu")).mark(model).loss
    assert trained.best_epoch
    assert heard.notes[0].startswith(f"batch norm re-estimated: {'kept' if after < before else 'not kept'} (")
    assert equal(values_of(model), values_of(plain)) == (not good)
    assert after <= before


def test_clipping_bounds_the_step():
    model = bar_net()
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    settings = replace(
        PLAIN, clip=1e-3, momentum=0.0, weight_decay=0.0, epochs=1, lr=1.0, schedule="constant"
    )
    finetune(model, job(train=lambda epoch, shard: bars(1, batches=1), val=[]), settings)
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert float((after - before).norm()) == pytest.approx(1e-3, rel=1e-2)


def test_weight_decay_spares_vectors():
    groups = make_optimizer(bar_net(), replace(PLAIN, weight_decay=0.3)).param_groups
    assert [(group["weight_decay"], {p.ndim for p in group["params"]}) for group in groups] == [
        (0.3, {4, 2}),
        (0.0, {1}),
    ]


def test_on_a_gpu_a_step_is_fused_unless_the_loss_is_scaled():
    cuda = torch.device("cuda")
    for optimizer in ("sgd", "adamw"):
        settings = replace(PLAIN, optimizer=optimizer)
        scaled = replace(settings, precision="16-mixed")
        plain, fused = make_optimizer(bar_net(), settings), make_optimizer(bar_net(), settings, cuda)
        assert (plain.defaults["fused"], fused.defaults["fused"]) == (None, True)
        assert make_optimizer(bar_net(), scaled, cuda).defaults["fused"] is None
        ends = []
        for stepper in (plain, fused):  # the CPU has fused steps, too
            free = [p for group in stepper.param_groups for p in group["params"]]
            for turn in range(3):
                for p in free:
                    p.grad = torch.full_like(p, 0.1 * (turn + 1))
                stepper.step()
            ends.append(torch.cat([p.detach().flatten() for p in free]))
        torch.testing.assert_close(*ends)


@pytest.mark.parametrize(
    ("device", "workers", "devices", "expected"),
    [
        ("cpu", 3, 1, {"workers": 3}),
        ("cpu", 0, 4, {"workers": 0}),
        ("cuda", 0, 1, {"workers": 8, "pinned": True}),
        ("cuda", 0, 4, {"workers": 4, "pinned": True}),
        ("cuda", 0, 32, {"workers": 1, "pinned": True}),
        ("cuda", 3, 4, {"workers": 3, "pinned": True}),
    ],
)
def test_images_for_a_gpu_are_loaded_ahead_into_pinned_memory(
    device, workers, devices, expected, monkeypatch
):
    monkeypatch.setattr("kernelsimp.training.job.device_of", lambda _: torch.device(device))
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    settings = Settings(data=DataSettings(workers=workers), finetune=FinetuneSettings(devices=devices))
    assert loading_of(settings, workers) == expected


def test_the_teacher_is_left_as_it_is():
    teacher = bar_net(1).train()
    before = values_of(teacher)
    finetune(bar_net(), job(teacher=teacher), replace(PLAIN, distill=0.5))
    assert equal(values_of(teacher), before)
    assert all(p.grad is None for p in teacher.parameters())


def test_distillation_alone_pulls_the_network_to_its_teacher_whatever_the_labels():
    teacher = bar_net(1)
    finetune(teacher, job(), replace(PLAIN, epochs=8))
    student = bar_net(2)
    wrong = job(teacher=teacher, train=lambda epoch, shard: [(x, 1 - y) for x, y in bars(epoch)])
    finetune(student, wrong, replace(PLAIN, distill=1.0, epochs=12, temperature=1.0))
    assert EpochJudge(bars(7), teacher, torch.device("cpu")).mark(student).top1 > 90


# ---------------------------------------------------------------- averages, soft holds, formats


def test_the_average_is_the_recursion_written_out_and_is_what_is_kept():
    """One batch, no momentum: the weights of each step are seen by a loader that looks before it."""
    model, seen = bar_net(), []
    batch = bars(1, batches=1)

    class Looking(list):
        def __iter__(self):
            seen.append({name: value.clone() for name, value in model.state_dict().items()})
            return iter(batch)

    settings = replace(PLAIN, epochs=15, ema=0.5, schedule="constant")
    trained = finetune(model, job(train=lambda epoch, shard: Looking(batch), val=[]), settings)
    assert trained.best_epoch == 15
    average = {name: value.clone() for name, value in seen[0].items()}
    finetune(
        last_model := bar_net(), job(train=lambda epoch, shard: batch, val=[]), replace(settings, ema=None)
    )
    for step, weights in enumerate([*seen[1:], last_model.state_dict()]):
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in weights.items():
            if value.is_floating_point():
                average[name] = decay * average[name] + (1 - decay) * value
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, average[name], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(model[0].weight, last_model[0].weight, rtol=1e-4)


def test_an_average_of_held_weights_is_held():
    model = bar_net()
    plan = plan_for(model)
    simplified(model, plan)
    hold(model, plan, "tie")
    trained = finetune(model, job(), replace(PLAIN, ema=0.9))
    assert trained.best_epoch
    release(model)
    whole = survival_in_model(model, plan)
    assert whole.exact == whole.total


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_soft_hold_ends_in_the_structure_and_draws_harder_with_rho(optimizer):
    distances = []
    for rho in (0.1, 1000.0):
        model = bar_net()
        plan = plan_for(model)
        settings = replace(PLAIN, soft=rho, optimizer=optimizer, epochs=4, lr=0.02, schedule="constant")
        pulls = []
        original = room.Pull.snap

        def snap(self, pulls=pulls, original=original):
            pulls.append(self.outside())
            original(self)

        room.Pull.snap = snap
        try:
            trained = finetune(model, job(plan=plan), settings)
        finally:
            room.Pull.snap = original
        assert trained.best_epoch
        whole = survival_in_model(model, plan)
        assert whole.exact == whole.total
        mark = EpochJudge(bars(100), None, torch.device("cpu")).mark(model)
        assert mark.loss == pytest.approx(trained.history[trained.best_epoch - 1].val_loss, rel=1e-5)
        distances.append(pulls[trained.best_epoch - 1])
    assert distances[1] < 0.05 < distances[0]


def test_the_pull_is_the_proximal_step_of_its_penalty():
    """argmin rho * ||(I - P) v||^2 + ||v - w||^2 / (2 lr), by gradient descent in float64."""
    model = bar_net().double()
    plan = plan_for(model)
    parts = projections(model, plan)
    before = [weight.detach().clone() for weight, _ in parts]
    Pull(model, plan, 3.0).step(lr=0.5, progress=0.25)
    for (weight, tied), w in zip(parts, before, strict=True):
        v = w.clone().requires_grad_()
        outside = torch.optim.SGD([v], 0.2)
        for _ in range(200):
            loss = 3.0 * 0.25 * (v - tied.project(v.detach())).square().sum() + (v - w).square().sum() / 1.0
            outside.zero_grad()
            loss.backward()
            outside.step()
        torch.testing.assert_close(weight.detach(), v.detach(), rtol=1e-8, atol=1e-10)


def test_a_soft_hold_needs_a_plan():
    with pytest.raises(KernelsimpError) as caught:
        finetune(bar_net(), job(), replace(PLAIN, soft=1.0))
    assert str(caught.value) == "soft is set, but there is no plan to pull towards; simplify first"


@pytest.mark.parametrize("mode", ["freeze", "tie", "scale"])
def test_channels_last_trains_the_same_network(mode):
    ends = []
    for channels_last in (False, True):
        model = bar_net()
        plan = plan_for(model)
        simplified(model, plan)
        hold(model, plan, mode)
        finetune(model, job(), replace(PLAIN, channels_last=channels_last, epochs=2, lr=0.01))
        release(model)
        assert model[3].weight.is_contiguous()
        ends.append(values_of(model))
    for first, second in zip(*ends, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("mode", ["freeze", "tie", "scale"])
def test_a_compiled_network_trains_with_its_holds(mode, monkeypatch):
    """The compiler's front end traces the holds; its back end needs a C++ compiler, so it is left out."""
    compilations, compiler = [], torch.compile

    def compile_(model, **options):
        compilations.append(model)
        return compiler(model, **{"backend": "aot_eager", **options})

    monkeypatch.setattr(torch, "compile", compile_)
    ends = []
    for compiled in (False, True):
        model = bar_net()
        plan = plan_for(model)
        simplified(model, plan)
        hold(model, plan, mode)
        trained = finetune(model, job(), replace(PLAIN, compile=compiled, epochs=1, lr=0.01))
        assert trained.best_epoch == 1
        assert bool(compilations) == compiled
        release(model)
        ends.append(values_of(model))
    for first, second in zip(*ends, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)
