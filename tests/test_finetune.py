"""Fine-tuning: what a run promises about its epochs, its objective, its holds and its failures."""

import copy
import math
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_hold import plan_for, simplified
from torch import nn

from kernelsimp.errors import HoldError, KernelsimpError
from kernelsimp.settings import FinetuneSettings
from kernelsimp.training import finetune as room
from kernelsimp.training.distill import divergence, objective
from kernelsimp.training.engine import Engine
from kernelsimp.training.finetune import FinetuneJob, finetune
from kernelsimp.training.hold import hold, projections, release, survived
from kernelsimp.training.judge import Judge
from kernelsimp.training.options import check_settings, make_optimizer
from kernelsimp.training.penalties import Pull
from kernelsimp.training.ranks import first_process, processes
from kernelsimp.training.schedule import rate
from kernelsimp.training.statistics import re_estimate
from kernelsimp.watch import Watcher

PLAIN = FinetuneSettings(epochs=3, lr=0.05, distill=0.0)


class Heard(Watcher):
    """Keeps what it is told."""

    def __init__(self):
        self.notes, self.warnings, self.stages, self.steps = [], [], [], 0

    def start(self, stage, total=None):
        self.stages.append((stage, total))

    def step(self, amount=1, **figures):
        self.steps += amount

    def note(self, text):
        self.notes.append(text)

    def warn(self, text):
        self.warnings.append(text)


def net(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 2),
    )


def images(seed, batches=4, size=8):
    """Bars that stand (0) or lie (1), in noise."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for _ in range(batches):
        labels = torch.randint(0, 2, (size,), generator=generator)
        picture = torch.randn(size, 1, 6, 6, generator=generator) * 0.5
        picture[labels == 0, :, :, 2] += 2
        picture[labels == 1, :, 2, :] += 2
        result.append((picture, labels))
    return result


def job(**changes):
    usual = FinetuneJob(train=lambda epoch, shard: images(epoch), val=images(100), device="cpu")
    return replace(usual, **changes)


def bits(model):
    return [value.clone() for value in model.state_dict().values()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# ---------------------------------------------------------------- the run


def test_training_learns_and_keeps_the_epoch_it_reports():
    model, heard, seen = net(), Heard(), []
    trained = finetune(model, job(on_epoch=seen.append), replace(PLAIN, epochs=6), heard)
    assert tuple(seen) == trained.history
    assert [epoch.epoch for epoch in trained.history] == [1, 2, 3, 4, 5, 6]
    assert trained.history[-1].val_top1 > 90
    assert trained.stopped == ""
    assert trained.chosen_by == "validation loss"
    best = min(trained.history, key=lambda epoch: epoch.val_loss)
    assert trained.best_epoch == best.epoch
    mark = Judge(images(100), None, torch.device("cpu")).mark(model)
    assert mark.loss == pytest.approx(best.val_loss, rel=1e-6)
    assert mark.top1 == best.val_top1
    assert not model.training
    assert heard.stages == [(f"fine-tuning, epoch {i} of 6", 4) for i in range(1, 7)]
    assert heard.steps == 24
    last_steps = [rate(4 * epoch - 1, 24, 4, replace(PLAIN, epochs=6)) for epoch in range(1, 7)]
    assert [epoch.lr for epoch in trained.history] == last_steps
    assert [epoch.held for epoch in trained.history] == [True] * 6
    assert heard.notes == [f"kept epoch {best.epoch} of 6, chosen by validation loss"]


def test_the_best_epoch_is_put_back_when_later_ones_are_worse():
    """From epoch 3 on the labels lie, so validation gets worse again."""

    def train(epoch, shard):
        return [(x, y if epoch < 3 else 1 - y) for x, y in images(epoch)]

    model = net()
    trained = finetune(model, job(train=train), replace(PLAIN, epochs=5, schedule="constant"))
    assert trained.best_epoch == 2
    mark = Judge(images(100), None, torch.device("cpu")).mark(model)
    assert mark.loss == pytest.approx(trained.history[1].val_loss, rel=1e-6)
    assert trained.history[-1].val_loss > 1.3 * mark.loss


def test_a_run_that_only_harms_keeps_the_network_as_it_came():
    model, heard = net(), Heard()
    finetune(model, job(), replace(PLAIN, epochs=6))
    before = bits(model)
    trained = finetune(
        model, job(train=lambda epoch, shard: [(x, 1 - y) for x, y in images(epoch)]), PLAIN, heard
    )
    assert trained.best_epoch == 0
    assert same(bits(model), before)
    assert heard.warnings == [
        "no epoch was better than the network as it came, by validation loss; lower --lr"
    ]


def test_the_original_itself_does_not_stand_against_its_own_tuning():
    """KL(original || original) is 0, which no epoch beats: the control arm must still train."""
    original = net()
    finetune(original, job(), replace(PLAIN, epochs=6))
    student = copy.deepcopy(original)
    trained = finetune(student, job(teacher=original), replace(PLAIN, distill=0.5))
    assert trained.chosen_by == "divergence from the original on validation images"
    assert trained.best_epoch > 0


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_two_runs_with_one_seed_end_with_the_same_bits(optimizer):
    settings = replace(PLAIN, epochs=2, lr=0.01, optimizer=optimizer)
    ends = []
    for seed in (1, 1, 2):
        model = net(dropout=0.3)
        torch.manual_seed(len(ends))  # what was drawn before the run does not matter
        finetune(model, job(seed=seed), settings)
        ends.append(bits(model))
    assert same(ends[0], ends[1])
    assert not same(ends[0], ends[2])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("mode", ["freeze", "tie"])
def test_a_hold_survives_a_run_and_the_rest_trains(mode, optimizer, precision):
    model = net()
    plan = plan_for(model)
    simplified(model, plan)
    before = model[3].weight.detach().clone()
    hold(model, plan, mode)
    settings = replace(PLAIN, lr=0.02, optimizer=optimizer, precision=precision, clip=1.0)
    trained = finetune(model, job(), settings)  # verifies, too
    assert all(epoch.held for epoch in trained.history)
    release(model)
    held = torch.from_numpy(plan.layers[1].changed)
    assert trained.best_epoch
    assert torch.equal(model[3].weight[held], before[held]) == (mode == "freeze")
    assert not torch.equal(model[3].weight[~held], before[~held])


def test_an_epoch_in_which_the_hold_broke_is_never_kept(monkeypatch):
    calls = []

    def verify(model):
        calls.append(1)
        if len(calls) in (2, 3):
            raise HoldError("0: kernel (0, 0) moved")

    monkeypatch.setattr(room, "verify", verify)
    model, heard = net(), Heard()
    trained = finetune(model, job(), replace(PLAIN, schedule="constant"), heard)
    assert [epoch.held for epoch in trained.history] == [True, False, False]
    assert trained.history[2].val_loss < trained.history[0].val_loss
    assert trained.best_epoch == 1
    assert heard.warnings == ["0: kernel (0, 0) moved"] * 2


def test_nothing_to_train_is_said_and_skipped():
    model, heard = net().requires_grad_(False), Heard()
    before = bits(model)
    trained = finetune(model, job(), PLAIN, heard)
    assert trained.history == ()
    assert trained.stopped == "nothing to train"
    assert heard.notes == ["nothing to train: every parameter is held; fine-tuning is skipped"]
    assert same(bits(model), before)


def test_a_loss_that_is_not_finite_ends_the_run_at_the_last_good_state():
    seen = []

    class Counted(list):
        def __iter__(self):
            for batch in list.__iter__(self):
                seen.append(batch)
                yield batch

    def train(epoch, shard):
        batches = images(epoch)
        return Counted(batches if epoch < 3 else [(batches[0][0] * math.nan, batches[0][1]), *batches[1:]])

    model, heard = net(), Heard()
    trained = finetune(model, job(train=train), replace(PLAIN, epochs=5), heard)
    assert trained.stopped == "diverged"
    assert len(trained.history) == 2
    assert len(seen) == 9  # the first bad batch is the last one
    mark = Judge(images(100), None, torch.device("cpu")).mark(model)
    assert mark.loss == pytest.approx(trained.history[trained.best_epoch - 1].val_loss, rel=1e-6)
    assert heard.warnings == [
        f"the loss is not finite in epoch 3: training stopped at epoch {trained.best_epoch};"
        " lower --lr, add --warmup or --clip"
    ]


def test_a_run_that_diverges_at_once_leaves_the_network_as_it_came():
    model = net()
    before = bits(model)
    trained = finetune(model, job(), replace(PLAIN, lr=1e30))
    assert trained.stopped == "diverged"
    assert trained.best_epoch == 0
    assert same(bits(model), before)


class Greedy(nn.Linear):
    """Fails the way a full memory does."""

    def __init__(self, error):
        super().__init__(2, 2)
        self.error = error

    def forward(self, inputs):
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_batch_that_does_not_fit_is_one_line_with_the_remedy(error):
    with pytest.raises(KernelsimpError) as caught:
        finetune(Greedy(error), job(val=[]), PLAIN)
    assert str(caught.value) == (
        "a training batch does not fit into memory;"
        " lower --batch-size, and raise --accumulate by as much to keep the step the same"
    )


def test_another_failure_of_the_network_is_not_taken_for_full_memory():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        finetune(Greedy(RuntimeError("mat1 and mat2 shapes cannot be multiplied")), job(val=[]), PLAIN)


def test_patience_ends_a_run_that_gets_no_better():
    def train(epoch, shard):
        return [(x, y if epoch < 3 else 1 - y) for x, y in images(epoch)]

    settings = replace(PLAIN, epochs=9, schedule="constant", patience=2)
    trained = finetune(net(), job(train=train), settings)
    assert trained.stopped == "early"
    assert len(trained.history) == 4
    assert trained.best_epoch == 2


def test_without_validation_images_the_last_epoch_is_kept():
    trained = finetune(net(), job(val=[]), PLAIN)
    assert trained.best_epoch == 3
    assert trained.history[-1].val_top1 is None
    assert trained.history[-1].val_loss is None


def test_an_empty_training_split_is_refused():
    with pytest.raises(KernelsimpError) as caught:
        finetune(net(), job(train=lambda epoch, shard: []), PLAIN)
    assert str(caught.value) == "the training split is empty; fine-tuning needs images to train on"


# ---------------------------------------------------------------- the step


def test_accumulated_batches_make_the_same_steps_as_one_large_batch():
    """Ten images in threes: the last group is short, and each image still counts the same in its step."""
    ends = []
    for accumulate in (1, 2):
        size = 8 // accumulate
        train = [
            (x[start : start + size], y[start : start + size])
            for x, y in images(1)
            for start in range(0, 8, size)
        ]
        model = net().double()
        batches = [(x.double(), y) for x, y in train]
        settings = replace(PLAIN, accumulate=accumulate, batch_norm="eval", epochs=2)
        finetune(model, job(train=lambda epoch, shard, b=batches: b, val=[]), settings)
        ends.append(bits(model))
    for first, second in zip(*ends, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-8)


def test_a_short_last_group_of_accumulated_batches_is_averaged_over_its_own_length():
    train = images(1, batches=3, size=4)
    joined = [
        (torch.cat([x for x, _ in part]), torch.cat([y for _, y in part])) for part in (train[:2], train[2:])
    ]
    ends = []
    for batches, accumulate in ((train, 2), (joined, 1)):
        model = net().double()
        batches = [(x.double(), y) for x, y in batches]
        settings = replace(PLAIN, accumulate=accumulate, batch_norm="eval", epochs=1)
        finetune(model, job(train=lambda epoch, shard, b=batches: b, val=[]), settings)
        ends.append(bits(model))
    for first, second in zip(*ends, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_batch_norm_statistics_move_only_in_training_mode(mode):
    model = net()
    before = model[1].running_mean.clone()
    finetune(model, job(), replace(PLAIN, batch_norm=mode))
    assert torch.equal(model[1].running_mean, before) == (mode == "eval")
    assert not torch.equal(model[1].weight, torch.ones(6))


def test_re_estimated_statistics_are_those_of_the_images():
    model = net(dropout=0.5)
    model[1].running_mean.fill_(3.0)
    batches = images(5)
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
        return images(epoch) if good or epoch > 1 else [(20 - 5 * x, y) for x, y in images(epoch)]

    settings = replace(PLAIN, epochs=6, lr=0.02)
    model, heard = net(), Heard()
    finetune(model, job(train=train), replace(settings, batch_norm="re-estimate"), heard)
    plain = net()
    trained = finetune(plain, job(train=train), settings)
    before = Judge(images(100), None, torch.device("cpu")).mark(plain).loss
    after = Judge(images(100), None, torch.device("cpu")).mark(model).loss
    assert trained.best_epoch
    assert heard.notes[0].startswith(f"batch norm re-estimated: {'kept' if after < before else 'not kept'} (")
    assert same(bits(model), bits(plain)) == (not good)
    assert after <= before


def test_clipping_bounds_the_step():
    model = net()
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    settings = replace(
        PLAIN, clip=1e-3, momentum=0.0, weight_decay=0.0, epochs=1, lr=1.0, schedule="constant"
    )
    finetune(model, job(train=lambda epoch, shard: images(1, batches=1), val=[]), settings)
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert float((after - before).norm()) == pytest.approx(1e-3, rel=1e-2)


def test_weight_decay_spares_vectors():
    groups = make_optimizer(net(), replace(PLAIN, weight_decay=0.3)).param_groups
    assert [(group["weight_decay"], {p.ndim for p in group["params"]}) for group in groups] == [
        (0.3, {4, 2}),
        (0.0, {1}),
    ]


def test_the_teacher_is_left_as_it_is():
    teacher = net(1).train()
    before = bits(teacher)
    finetune(net(), job(teacher=teacher), replace(PLAIN, distill=0.5))
    assert same(bits(teacher), before)
    assert all(p.grad is None for p in teacher.parameters())


def test_distillation_alone_pulls_the_network_to_its_teacher_whatever_the_labels():
    teacher = net(1)
    finetune(teacher, job(), replace(PLAIN, epochs=8))
    student = net(2)
    wrong = job(teacher=teacher, train=lambda epoch, shard: [(x, 1 - y) for x, y in images(epoch)])
    finetune(student, wrong, replace(PLAIN, distill=1.0, epochs=12, temperature=1.0))
    assert Judge(images(7), teacher, torch.device("cpu")).mark(student).top1 > 90


# ---------------------------------------------------------------- averages, soft holds, formats


def test_the_average_is_the_recursion_written_out_and_is_what_is_kept():
    """One batch, no momentum: the weights of each step are seen by a loader that looks before it."""
    model, seen = net(), []
    batch = images(1, batches=1)

    class Looking(list):
        def __iter__(self):
            seen.append({name: value.clone() for name, value in model.state_dict().items()})
            return iter(batch)

    settings = replace(PLAIN, epochs=15, ema=0.5, schedule="constant")
    trained = finetune(model, job(train=lambda epoch, shard: Looking(batch), val=[]), settings)
    assert trained.best_epoch == 15
    average = {name: value.clone() for name, value in seen[0].items()}
    finetune(last_model := net(), job(train=lambda epoch, shard: batch, val=[]), replace(settings, ema=None))
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
    model = net()
    plan = plan_for(model)
    simplified(model, plan)
    hold(model, plan, "tie")
    trained = finetune(model, job(), replace(PLAIN, ema=0.9))
    assert trained.best_epoch
    release(model)
    whole = survived(model, plan)
    assert whole.exact == whole.total


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_soft_hold_ends_in_the_structure_and_draws_harder_with_rho(optimizer):
    distances = []
    for rho in (0.1, 1000.0):
        model = net()
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
        whole = survived(model, plan)
        assert whole.exact == whole.total
        mark = Judge(images(100), None, torch.device("cpu")).mark(model)
        assert mark.loss == pytest.approx(trained.history[trained.best_epoch - 1].val_loss, rel=1e-5)
        distances.append(pulls[trained.best_epoch - 1])
    assert distances[1] < 0.05 < distances[0]


def test_the_pull_is_the_proximal_step_of_its_penalty():
    """argmin rho * ||(I - P) v||^2 + ||v - w||^2 / (2 lr), by gradient descent in float64."""
    model = net().double()
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
        finetune(net(), job(), replace(PLAIN, soft=1.0))
    assert str(caught.value) == "soft is set, but there is no plan to pull towards; simplify first"


@pytest.mark.parametrize("mode", ["freeze", "tie", "scale"])
def test_channels_last_trains_the_same_network(mode):
    ends = []
    for channels_last in (False, True):
        model = net()
        plan = plan_for(model)
        simplified(model, plan)
        hold(model, plan, mode)
        finetune(model, job(), replace(PLAIN, channels_last=channels_last, epochs=2, lr=0.01))
        release(model)
        assert model[3].weight.is_contiguous()
        ends.append(bits(model))
    for first, second in zip(*ends, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("mode", ["freeze", "scale"])
def test_a_compiled_network_trains_with_its_holds(mode, monkeypatch):
    """The compiler's front end traces the holds; its back end needs a C++ compiler, so it is left out."""
    compilations, compiler = [], torch.compile

    def compile_(model, **options):
        compilations.append(model)
        return compiler(model, **{"backend": "aot_eager", **options})

    monkeypatch.setattr(torch, "compile", compile_)
    ends = []
    for compiled in (False, True):
        model = net()
        plan = plan_for(model)
        simplified(model, plan)
        hold(model, plan, mode)
        trained = finetune(model, job(), replace(PLAIN, compile=compiled, epochs=1, lr=0.01))
        assert trained.best_epoch == 1
        assert bool(compilations) == compiled
        release(model)
        ends.append(bits(model))
    for first, second in zip(*ends, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------- its parts


def test_objective_is_the_formula_written_out():
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (torch.randn(5, 4, generator=generator).double() for _ in range(2))
    labels = torch.tensor([0, 1, 2, 3, 0])
    settings = FinetuneSettings(distill=0.7, temperature=3.0, label_smoothing=0.1)
    total = 0.0
    for row, taught, label in zip(logits, teacher, labels, strict=True):
        log_q = row - row.exp().sum().log()
        target = torch.full((4,), 0.1 / 4).double()
        target[label] += 0.9
        p = (taught / 3).exp() / (taught / 3).exp().sum()
        q = (row / 3).exp() / (row / 3).exp().sum()
        total += 0.3 * -(target * log_q).sum() + 0.7 * 9 * (p * (p / q).log()).sum()
    torch.testing.assert_close(objective(logits, labels, teacher, settings), total / 5)
    plain = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(objective(logits, labels, None, settings), plain)
    assert float(divergence(teacher, teacher)) == pytest.approx(0, abs=1e-12)


def test_rates_of_every_schedule():
    cosine = FinetuneSettings(lr=2.0, warmup=0.5)
    rates = [rate(step, 40, 20, cosine) for step in range(40)]
    assert rates[:10] == pytest.approx([2 * (i + 1) / 11 for i in range(10)])
    assert rates[10] == 2.0
    assert rates[25] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[39] < 0.01
    constant = FinetuneSettings(lr=2.0, schedule="constant", warmup=1.0)
    assert [rate(step, 4, 2, constant) for step in range(4)] == pytest.approx([2 / 3, 4 / 3, 2, 2])
    cycle = FinetuneSettings(lr=2.0, schedule="one-cycle")
    rates = [rate(step, 101, 20, cycle) for step in range(101)]
    assert rates[0] == pytest.approx(2 / 25)
    assert max(rates) == rates[30] == 2.0
    assert rates[100] == pytest.approx(2e-4)
    assert rate(0, 1, 1, replace(cosine, warmup=9.0)) == 2.0


def test_the_judge_goes_by_the_teacher_only_where_labels_no_longer_tell():
    val = images(100)
    good, bad = net(), net(1)
    finetune(good, job(), replace(PLAIN, epochs=6))
    student = net(2)
    by_teacher = Judge(val, good, torch.device("cpu"))
    mark = by_teacher.mark(student)
    assert by_teacher.rule == "divergence from the original on validation images"
    assert by_teacher.score(mark) == mark.divergence
    stacked = torch.cat([x for x, _ in val])
    expected = divergence(good.eval()(stacked), student.eval()(stacked)).detach()
    assert mark.divergence == pytest.approx(float(expected), rel=1e-5)
    by_label = Judge(val, bad, torch.device("cpu"))
    mark = by_label.mark(student)
    assert by_label.rule == "validation loss"
    assert by_label.score(mark) == mark.loss


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optimizer": "sdg"}, "unknown optimizer 'sdg'; did you mean 'sgd'?"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'; did you mean 'cosine'?"),
        ({"batch_norm": "x"}, "unknown batch-norm 'x'; known: eval, re-estimate, train"),
        ({"epochs": 0}, "epochs is 0; expected 1 or more"),
        ({"lr": 0.0}, "lr is 0.0; expected greater than 0"),
        ({"lr": math.nan}, "lr is nan; expected greater than 0"),
        ({"distill": 1.5}, "distill is 1.5; expected 0..1"),
        ({"label_smoothing": 1.0}, "label-smoothing is 1.0; expected 0 or more and less than 1"),
        ({"temperature": 0.0}, "temperature is 0.0; expected greater than 0"),
        ({"accumulate": 0}, "accumulate is 0; expected 1 or more"),
        ({"momentum": 1.0}, "momentum is 1.0; expected 0 or more and less than 1"),
        ({"weight_decay": -1.0}, "weight-decay is -1.0; expected 0 or more"),
        ({"warmup": -1.0}, "warmup is -1.0; expected 0 or more epochs"),
        ({"clip": 0.0}, "clip is 0.0; expected greater than 0"),
        ({"patience": 0}, "patience is 0; expected 1 or more epochs"),
        ({"soft": 0.0}, "soft is 0.0; expected greater than 0"),
        ({"ema": 1.0}, "ema is 1.0; expected 0 or more and less than 1"),
        ({"save_every": -1.0}, "save-every is -1.0; expected 0 or more minutes"),
        ({"devices": 0}, "devices is 0; expected 1 or more"),
        ({"num_nodes": 0}, "num-nodes is 0; expected 1 or more"),
        ({"strategy": "fsdp"}, "unknown strategy 'fsdp'; known: auto, ddp"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, words):
    with pytest.raises(KernelsimpError) as caught:
        check_settings(replace(FinetuneSettings(), **change))
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("device", "precision", "words"),
    [
        ("tpu", "32-true", "unknown device 'tpu'; expected auto, cpu, cuda or cuda:N"),
        ("cuda:x", "32-true", "unknown device 'cuda:x'; expected auto, cpu, cuda or cuda:N"),
        ("cpu", "16", "unknown precision '16'; known: 16-mixed, 32-true, bf16-mixed"),
        ("cpu", "16-mixed", "precision 16-mixed needs a GPU; on the CPU use bf16-mixed or 32-true"),
    ],
)
def test_a_device_or_precision_that_is_not_there_is_refused(device, precision, words):
    with pytest.raises(KernelsimpError) as caught:
        Engine(device, FinetuneSettings(precision=precision))
    assert str(caught.value) == words


def test_a_missing_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(KernelsimpError) as caught:
        Engine("cuda:3", FinetuneSettings())
    assert str(caught.value) == "device 'cuda:3' is not there: 0 CUDA devices found; use --device auto"


# ---------------------------------------------------------------- two processes

TWO = """
    import json, os, sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    from test_finetune import trained_by_two

    if __name__ == "__main__":
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        for norm in ("eval", "train"):
            model, trained = trained_by_two(norm, Path(sys.argv[1]))
            whole = {"state": model.state_dict(), "epochs": [vars(epoch) for epoch in trained.history]}
            torch.save(whole, Path(sys.argv[1]) / f"{norm}{rank}.pt")
"""


def halves(epoch, shard):
    """Each process takes every world-th image of each batch, as the data room's shards do."""
    rank, world = shard
    return [(x[rank::world], y[rank::world]) for x, y in images(epoch, size=16)]


def trained_by_two(norm, folder, devices=2):
    """Train a held network on `devices` processes; they see the same images together."""
    model, teacher = net(), net(1)
    plan = plan_for(model)
    simplified(model, plan)
    hold(model, plan, "freeze")
    settings = replace(PLAIN, batch_norm=norm, devices=devices, distill=0.5, clip=0.5, lr=0.02)
    usual = job(train=halves, teacher=teacher, folder=folder / f"{norm}-state")
    trained = finetune(model, usual, settings)
    release(model)
    return model, trained


def test_two_processes_train_the_network_that_one_trains_on_double_batches(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(textwrap.dedent(TWO))
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)])}
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    runs = {name: torch.load(tmp_path / f"{name}.pt") for name in ("eval0", "eval1", "train0", "train1")}
    for norm in ("eval", "train"):
        first, second = runs[f"{norm}0"], runs[f"{norm}1"]
        assert same(first["state"].values(), second["state"].values()), norm
        assert [e["val_loss"] for e in first["epochs"]] == [e["val_loss"] for e in second["epochs"]]
        assert (tmp_path / f"{norm}-state" / "finetune.pt").exists()
        model, trained = trained_by_two(norm, tmp_path / "alone", devices=1)
        for key in ("val_loss", "train_loss"):
            alone = [getattr(epoch, key) for epoch in trained.history]
            together = [epoch[key] for epoch in first["epochs"]]
            assert together == pytest.approx(alone, rel=1e-5 if norm == "eval" else 0.2), (norm, key)
        if norm == "eval":
            for name, value in model.state_dict().items():
                torch.testing.assert_close(first["state"][name], value, rtol=1e-4, atol=1e-6)
        else:
            assert first["epochs"][-1]["val_top1"] == pytest.approx(trained.history[-1].val_top1, abs=10)


def test_what_torchrun_started_is_what_runs(monkeypatch):
    assert processes(FinetuneSettings(devices=3, num_nodes=2)) == (3, 2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert processes(FinetuneSettings(devices=1)) == (4, 2)


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, True),
        ({"RANK": "1", "LOCAL_RANK": "1"}, False),
        ({"RANK": "4", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
        ({"SLURM_PROCID": "3"}, False),
    ],
)
def test_only_the_first_process_of_any_launcher_writes(environment, first):
    assert first_process(environment) == first
