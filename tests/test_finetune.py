"""Fine-tuning: what a run promises about its epochs, its objective, its holds and its failures."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from held import plan_for, simplified
from saying import Heard
from torch import nn
from tuning import PLAIN, bar_net, bars, equal, job, values_of

from kernelsimp.errors import HoldError, KernelsimpError
from kernelsimp.training import finetune as room
from kernelsimp.training.finetune import finetune
from kernelsimp.training.hold import hold, release
from kernelsimp.training.schedule import rate
from kernelsimp.training.validation import EpochJudge


def test_training_learns_and_keeps_the_epoch_it_reports():
    model, heard, seen = bar_net(), Heard(), []
    trained = finetune(model, job(on_epoch=seen.append), replace(PLAIN, epochs=6), heard)
    assert tuple(seen) == tuple(replace(epoch, kept=False) for epoch in trained.history)
    assert [epoch.epoch for epoch in trained.history] == [1, 2, 3, 4, 5, 6]
    assert trained.history[-1].val_top1 > 90
    assert trained.stopped == ""
    assert trained.chosen_by == "validation loss"
    best = min(trained.history, key=lambda epoch: epoch.val_loss)
    assert trained.best_epoch == best.epoch
    assert [epoch.epoch for epoch in trained.history if epoch.kept] == [best.epoch]
    mark = EpochJudge(bars(100), None, torch.device("cpu")).mark(model)
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
        return [(x, y if epoch < 3 else 1 - y) for x, y in bars(epoch)]

    model = bar_net()
    trained = finetune(model, job(train=train), replace(PLAIN, epochs=5, schedule="constant"))
    assert trained.best_epoch == 2
    mark = EpochJudge(bars(100), None, torch.device("cpu")).mark(model)
    assert mark.loss == pytest.approx(trained.history[1].val_loss, rel=1e-6)
    assert trained.history[-1].val_loss > 1.3 * mark.loss


def test_a_run_that_only_harms_keeps_the_network_as_it_came():
    model, heard = bar_net(), Heard()
    finetune(model, job(), replace(PLAIN, epochs=6))
    before = values_of(model)
    trained = finetune(
        model, job(train=lambda epoch, shard: [(x, 1 - y) for x, y in bars(epoch)]), PLAIN, heard
    )
    assert trained.best_epoch == 0
    assert not any(epoch.kept for epoch in trained.history)
    assert equal(values_of(model), before)
    assert heard.warnings == [
        "no epoch was better than the network as it came, by validation loss; lower --lr"
    ]


def test_the_original_itself_does_not_stand_against_its_own_tuning():
    """KL(original || original) is 0, which no epoch beats: the control arm must still train."""
    original = bar_net()
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
        model = bar_net(dropout=0.3)
        torch.manual_seed(len(ends))  # what was drawn before the run does not matter
        finetune(model, job(seed=seed), settings)
        ends.append(values_of(model))
    assert equal(ends[0], ends[1])
    assert not equal(ends[0], ends[2])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("mode", ["freeze", "tie"])
def test_a_hold_survives_a_run_and_the_rest_trains(mode, optimizer, precision):
    model = bar_net()
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
    model, heard = bar_net(), Heard()
    trained = finetune(model, job(), replace(PLAIN, schedule="constant"), heard)
    assert [epoch.held for epoch in trained.history] == [True, False, False]
    assert trained.history[2].val_loss < trained.history[0].val_loss
    assert trained.best_epoch == 1
    assert heard.warnings == ["0: kernel (0, 0) moved"] * 2


def test_nothing_to_train_is_said_and_skipped():
    model, heard = bar_net().requires_grad_(False), Heard()
    before = values_of(model)
    trained = finetune(model, job(), PLAIN, heard)
    assert trained.history == ()
    assert trained.stopped == "nothing to train"
    assert heard.notes == ["nothing to train: every parameter is held; fine-tuning is skipped"]
    assert equal(values_of(model), before)


def test_a_loss_that_is_not_finite_ends_the_run_at_the_last_good_state():
    seen = []

    class Counted(list):
        def __iter__(self):
            for batch in list.__iter__(self):
                seen.append(batch)
                yield batch

    def train(epoch, shard):
        batches = bars(epoch)
        return Counted(batches if epoch < 3 else [(batches[0][0] * math.nan, batches[0][1]), *batches[1:]])

    model, heard = bar_net(), Heard()
    trained = finetune(model, job(train=train), replace(PLAIN, epochs=5), heard)
    assert trained.stopped == "diverged"
    assert len(trained.history) == 2
    assert len(seen) == 9  # the first bad batch is the last one
    mark = EpochJudge(bars(100), None, torch.device("cpu")).mark(model)
    assert mark.loss == pytest.approx(trained.history[trained.best_epoch - 1].val_loss, rel=1e-6)
    assert heard.warnings == [
        f"the loss is not finite in epoch 3: training stopped at epoch {trained.best_epoch};"
        " lower --lr, add --warmup or --clip"
    ]


def test_a_run_that_diverges_at_once_leaves_the_network_as_it_came():
    model = bar_net()
    before = values_of(model)
    trained = finetune(model, job(), replace(PLAIN, lr=1e30))
    assert trained.stopped == "diverged"
    assert trained.best_epoch == 0
    assert equal(values_of(model), before)


class Greedy(nn.Linear):
    """Fails the way a full memory does, or a lost process."""

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


def test_a_lost_process_is_one_line_with_the_way_on():
    error = RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:24792")
    with pytest.raises(KernelsimpError) as caught:
        finetune(Greedy(error), job(val=[]), PLAIN)
    assert str(caught.value) == (
        "another process of this run is gone; its own messages say why;"
        " the same command with --resume goes on from the last state"
    )


def test_another_failure_of_the_network_is_not_taken_for_full_memory():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        finetune(Greedy(RuntimeError("mat1 and mat2 shapes cannot be multiplied")), job(val=[]), PLAIN)


def test_patience_ends_a_run_that_gets_no_better():
    def train(epoch, shard):
        return [(x, y if epoch < 3 else 1 - y) for x, y in bars(epoch)]

    settings = replace(PLAIN, epochs=9, schedule="constant", patience=2)
    trained = finetune(bar_net(), job(train=train), settings)
    assert trained.stopped == "early"
    assert len(trained.history) == 4
    assert trained.best_epoch == 2


def test_without_validation_images_the_last_epoch_is_kept():
    trained = finetune(bar_net(), job(val=[]), PLAIN)
    assert trained.best_epoch == 3
    assert trained.history[-1].val_top1 is None
    assert trained.history[-1].val_loss is None


def test_an_empty_training_split_is_refused():
    with pytest.raises(KernelsimpError) as caught:
        finetune(bar_net(), job(train=lambda epoch, shard: []), PLAIN)
    assert str(caught.value) == "the training split is empty; fine-tuning needs images to train on"
