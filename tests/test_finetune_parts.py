"""Fine-tuning's parts: the objective, mixing, the schedule, the judge, the settings."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from tuning import PLAIN, bar_net, bars, equal, job, values_of

from kernelsimp.errors import KernelsimpError
from kernelsimp.evaluation.divergence import divergence
from kernelsimp.models.network import device_of
from kernelsimp.settings import FinetuneSettings, RunSettings, Settings
from kernelsimp.training.distill import objective
from kernelsimp.training.engine import Engine
from kernelsimp.training.finetune import finetune
from kernelsimp.training.mixing import mix_images
from kernelsimp.training.options import check_settings
from kernelsimp.training.schedule import rate
from kernelsimp.training.validation import EpochJudge


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


def test_mixed_images_have_the_mixture_of_both_labels():
    torch.manual_seed(3)
    pictures = torch.randn(4, 1, 2, 2)
    result, share = mix_images(pictures, FinetuneSettings(mixup=1.0))
    assert 0 < share < 1
    for index in range(4):
        expected = share * pictures[index] + (1 - share) * pictures[index - 1]
        torch.testing.assert_close(result[index], expected)
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 2])
    one_hot = nn.functional.one_hot(labels, 3).float()
    target = share * one_hot + (1 - share) * one_hot.roll(1, 0)
    settings = FinetuneSettings(distill=0.0, label_smoothing=0.1)
    expected = nn.functional.cross_entropy(logits, target, label_smoothing=0.1)
    torch.testing.assert_close(objective(logits, labels, None, settings, share), expected)
    assert mix_images(pictures, FinetuneSettings()) == (pictures, 1.0)


def test_a_pasted_box_has_the_area_that_the_share_says():
    torch.manual_seed(5)
    pictures = torch.arange(3.0)[:, None, None, None].expand(3, 2, 20, 20).clone()
    for _ in range(5):
        result, share = mix_images(pictures, FinetuneSettings(cutmix=1.0))
        for index in range(3):
            own = (result[index] == index).float().mean()
            assert float(own) == pytest.approx(share, abs=1e-6)
            assert set(result[index].unique().tolist()) <= {index, (index - 1) % 3}


def test_both_ways_of_mixing_take_turns():
    torch.manual_seed(0)
    pictures = torch.arange(4.0)[:, None, None, None].expand(4, 1, 8, 8).clone()
    settings = FinetuneSettings(mixup=1.0, cutmix=1.0)
    whole = [bool((mix_images(pictures, settings)[0] % 1 == 0).all()) for _ in range(12)]
    assert 0 < sum(whole) < 12


@pytest.mark.parametrize("way", ["mixup", "cutmix"])
def test_mixing_follows_the_seed_and_changes_what_is_learnt(way):
    def end(**changes):
        model = bar_net()
        finetune(model, job(teacher=bar_net(9)), replace(PLAIN, distill=0.5, epochs=1, **changes))
        return values_of(model)

    assert equal(end(**{way: 1.0}), end(**{way: 1.0}))
    assert not equal(end(**{way: 1.0}), end())


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
    val = bars(100)
    good, bad = bar_net(), bar_net(1)
    finetune(good, job(), replace(PLAIN, epochs=6))
    student = bar_net(2)
    by_teacher = EpochJudge(val, good, torch.device("cpu"))
    mark = by_teacher.mark(student)
    assert by_teacher.rule == "divergence from the original on validation images"
    assert by_teacher.score(mark) == mark.divergence
    stacked = torch.cat([x for x, _ in val])
    expected = divergence(good.eval()(stacked), student.eval()(stacked)).detach()
    assert mark.divergence == pytest.approx(float(expected), rel=1e-5)
    by_label = EpochJudge(val, bad, torch.device("cpu"))
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
        ({"mixup": -1.0}, "mixup is -1.0; expected 0 or more"),
        ({"cutmix": math.inf}, "cutmix is inf; expected 0 or more"),
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
        ({"precision": "16"}, "unknown precision '16'; known: 16-mixed, 32-true, bf16-mixed, tf32"),
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
        ("cpu", "16-mixed", "precision 16-mixed needs a GPU; on the CPU use bf16-mixed or 32-true"),
        ("cpu", "tf32", "precision tf32 needs a GPU; on the CPU use bf16-mixed or 32-true"),
    ],
)
def test_a_device_or_precision_that_is_not_there_is_refused(device, precision, words):
    with pytest.raises(KernelsimpError) as caught:
        Engine(device, FinetuneSettings(precision=precision))
    assert str(caught.value) == words


def test_more_gpus_than_there_are_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(KernelsimpError, match=r"^--devices 3: 2 CUDA devices found; ask for fewer"):
        Engine("auto", FinetuneSettings(devices=3))
    with pytest.raises(KernelsimpError, match=r"^device 'cuda:2' is not there: 2 CUDA devices found"):
        Engine("cuda:2", FinetuneSettings())
    with pytest.raises(KernelsimpError, match=r"^--device cuda:2: 2 CUDA devices are here, from cuda:0"):
        device_of(Settings(run=RunSettings(device="cuda:2")))
    with pytest.raises(KernelsimpError, match=r"^--device cuda:1 is one device, --devices 2 are several"):
        Engine("cuda:1", FinetuneSettings(devices=2))


def test_a_missing_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(KernelsimpError) as caught:
        Engine("cuda:3", FinetuneSettings())
    assert str(caught.value) == "device 'cuda:3' is not there: 0 CUDA devices found; use --device auto"
