"""A run that is stopped anywhere, even by kill -9, and resumed ends with the same bits."""

import io
import random
import signal
import threading
from dataclasses import replace

import pytest
import torch
from builders import flip_bit
from processes import HERE, run_warm
from saying import Heard
from tuning import PLAIN, VARIANTS, bar_net, bars, equal, job, prepared, values_of

from kernelsimp.errors import KernelsimpError
from kernelsimp.files import read_sealed, write_sealed
from kernelsimp.training.finetune import finetune
from kernelsimp.training.hold import release

TEN = 10


class CrashError(Exception):
    """Stands for anything that ends a process without warning."""


def crashing(after, how):
    """Return a loader that ends the run by `how` when batch number `after` of the whole run is asked for."""
    count = [0]

    def train(epoch, shard):
        result = bars(epoch)

        class Loader:
            def __len__(self):
                return len(result)

            def __iter__(self):
                for batch in result:
                    if count[0] == after:
                        how()
                    count[0] += 1
                    yield batch

        return Loader()

    return train


def crash():
    raise CrashError


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_that_crashed_and_was_resumed_ends_with_the_same_bits(tmp_path, name):
    settings, teacher = VARIANTS[name], bar_net(9)
    model, plan = prepared(name)
    usual = job(teacher=teacher, plan=plan)
    whole = finetune(model, usual, settings)
    expected = values_of(model)
    for after in random.Random(name).sample(range(16), 5):
        folder = tmp_path / str(after)
        model, plan = prepared(name)
        with pytest.raises(CrashError):
            finetune(model, replace(usual, folder=folder, train=crashing(after, crash)), settings)
        model, _ = prepared(name)
        torch.manual_seed(after)
        resumed = finetune(model, replace(usual, folder=folder), replace(settings, resume=True))
        assert equal(values_of(model), expected), after
        assert resumed.best_epoch == whole.best_epoch
        assert [epoch.train_loss for epoch in resumed.history] == [
            epoch.train_loss for epoch in whole.history
        ]
        release(model)


def test_a_resumed_run_does_not_train_what_was_trained(tmp_path):
    seen = []

    def train(epoch, shard):
        seen.append(epoch)
        return bars(epoch)

    with pytest.raises(CrashError):
        finetune(bar_net(), job(folder=tmp_path, train=crashing(9, crash)), PLAIN)
    heard = Heard()
    finetune(bar_net(), job(folder=tmp_path, train=train), replace(PLAIN, resume=True), heard)
    assert seen == [3]
    assert heard.notes[0] == "going on in epoch 3 after batch 0"


@pytest.mark.parametrize("patience", [None, 1])
def test_a_finished_run_resumed_is_the_same_and_trains_nothing(tmp_path, patience):
    def train(epoch, shard):
        return [(x, y if epoch < 2 else 1 - y) for x, y in bars(epoch)]

    settings = replace(PLAIN, epochs=5, patience=patience, schedule="constant")
    model = bar_net()
    first = finetune(model, job(folder=tmp_path, train=train), settings)
    assert len(first.history) == (5 if patience is None else 2)
    again = bar_net()
    second = finetune(again, job(folder=tmp_path, train=crashing(0, crash)), replace(settings, resume=True))
    assert second == first
    assert equal(values_of(again), values_of(model))


# ---------------------------------------------------------------- interruptions


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_finishes_the_step_saves_and_raises(tmp_path, number):
    before = signal.getsignal(number)
    settings = replace(PLAIN, epochs=2)
    model = bar_net()
    finetune(model, job(), settings)
    expected = values_of(model)
    heard = Heard()
    train = crashing(2, lambda: signal.raise_signal(number))
    with pytest.raises(KeyboardInterrupt):
        finetune(bar_net(), job(folder=tmp_path, train=train), settings, heard)
    assert heard.notes == [f"interrupted; the state is in {tmp_path / 'finetune.pt'}: go on with --resume"]
    assert signal.getsignal(number) is before
    model, heard = bar_net(), Heard()
    finetune(model, job(folder=tmp_path), replace(settings, resume=True), heard)
    assert heard.notes[0] == "going on in epoch 1 after batch 3"
    assert equal(values_of(model), expected)


def test_a_second_interrupt_does_not_wait_for_the_step(tmp_path):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        finetune(bar_net(), job(folder=tmp_path, train=crashing(1, twice)), PLAIN)
    assert not (tmp_path / "finetune.pt").exists()


def test_a_run_in_another_thread_listens_to_no_signal():
    before, ends = signal.getsignal(signal.SIGINT), []

    def run():
        model = bar_net()
        finetune(model, job(train=lambda epoch, shard: bars(epoch)), replace(PLAIN, epochs=1))
        ends.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert ends == [before]


# ---------------------------------------------------------------- refusals


def failed(tmp_path, settings=PLAIN, seed=0, start=0, **changes):
    """Return the words with which a run is refused after one of PLAIN with seed 0."""
    finetune(bar_net(), job(folder=tmp_path), replace(PLAIN, epochs=1))
    with pytest.raises(KernelsimpError) as caught:
        finetune(bar_net(start), job(folder=tmp_path, seed=seed, **changes), replace(settings, resume=True))
    head, _, words = str(caught.value).partition(": ")
    assert head == str(tmp_path / "finetune.pt")
    return words


def test_a_state_of_another_run_is_refused(tmp_path):
    one, again = replace(PLAIN, epochs=1), "run without --resume to start again"
    words = failed(tmp_path, replace(one, lr=0.3))
    assert words == f"the resume state is of a run with lr = 0.05, this one has 0.3; {again}"
    words = failed(tmp_path, replace(one, weight_decay=0.3))
    assert words == f"the resume state is of a run with weight-decay = 0.0001, this one has 0.3; {again}"
    words = failed(tmp_path, one, seed=3)
    assert words == f"the resume state is of a run with seed = 0, this one has 3; {again}"
    words = failed(tmp_path, one, start=3)
    other = "other weights (another checkpoint, or another plan)"
    assert words == f"the resume state is of a run with {other}; {again}"
    words = failed(tmp_path, one, images="others")
    assert words == f"the resume state is of a run with other images; {again}"


def test_a_damaged_state_is_refused(tmp_path):
    finetune(bar_net(), job(folder=tmp_path), replace(PLAIN, epochs=1))
    file = tmp_path / "finetune.pt"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(KernelsimpError) as caught:
        finetune(bar_net(), job(folder=tmp_path), replace(PLAIN, epochs=1, resume=True))
    assert str(caught.value).startswith(f"{file}: cannot read the resume state: ")
    assert str(caught.value).endswith("; delete it to start again")
    assert "\n" not in str(caught.value)


def stopped(folder):
    """Leave the states of a run that crashed in its third epoch; return its settings and the last state."""
    settings = replace(PLAIN, epochs=3)
    with pytest.raises(CrashError):
        finetune(bar_net(), job(folder=folder, train=crashing(2 * len(bars(1)) + 1, crash)), settings)
    return replace(settings, resume=True), folder / "finetune.pt"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_flipped_bit_goes_on_from_the_state_before_it(share, tmp_path):
    whole, other, heard = bar_net(), bar_net(), Heard()
    finetune(whole, job(), replace(PLAIN, epochs=3))
    settings, file = stopped(tmp_path)
    flip_bit(file, int(share * file.stat().st_size))
    finetune(other, job(folder=tmp_path), settings, heard)
    words = "cannot read the resume state: damaged: its content is not what was written"
    assert heard.warnings[0] == f"{file}: {words}; going on from the state before it"
    assert heard.notes[0].startswith("going on in epoch 2 ")
    assert equal(values_of(whole), values_of(other))


def test_a_flipped_bit_with_no_state_before_it_is_refused(tmp_path):
    settings, file = stopped(tmp_path)
    (tmp_path / "finetune.previous.pt").unlink()
    flip_bit(file, file.stat().st_size // 2)
    with pytest.raises(
        KernelsimpError, match="its content is not what was written; delete it to start again"
    ):
        finetune(bar_net(), job(folder=tmp_path), settings)


def test_a_state_of_other_content_is_one_line(tmp_path):
    settings, file = stopped(tmp_path)
    state = torch.load(io.BytesIO(read_sealed(file)), weights_only=True)
    for key in set(state) - {"identity", "precision"}:  # without a scaler, precision has no state
        altered = {**state, key: 3}
        write_sealed(file, lambda partial, altered=altered: torch.save(altered, partial))
        with pytest.raises(KernelsimpError) as caught:
            finetune(bar_net(), job(folder=tmp_path), settings)
        assert str(caught.value).startswith(f"{file}: no resume state of this run (")


def test_resume_without_a_state_starts_from_the_beginning(tmp_path):
    model, other, heard = bar_net(), bar_net(), Heard()
    finetune(model, job(), PLAIN)
    finetune(other, job(folder=tmp_path), replace(PLAIN, resume=True), heard)
    assert heard.notes[0] == f"no resume state in {tmp_path}: starting from the beginning"
    assert equal(values_of(model), values_of(other))


def test_a_state_is_written_every_so_many_minutes(tmp_path, monkeypatch):
    clock, saved = [0.0], []
    monkeypatch.setattr("kernelsimp.training.state.time.monotonic", lambda: clock[0])

    def write(path, write):
        saved.append(clock[0])

    monkeypatch.setattr("kernelsimp.training.state.write_sealed", write)

    def tick():
        clock[0] += 25.0

    train = bars(1, batches=8)

    class Slow(list):
        def __iter__(self):
            for batch in train:
                tick()
                yield batch

    settings = replace(PLAIN, epochs=1, save_every=1.0)
    finetune(bar_net(), job(folder=tmp_path, train=lambda epoch, shard: Slow(train)), settings)
    assert saved == [75.0, 150.0, 200.0]  # the first after a minute has gone by, and at the epoch's end


# ---------------------------------------------------------------- kill -9


def test_ten_kills_at_random_moments_change_no_bit(tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    done = run_warm(HERE / "killed_training.py", str(tmp_path))
    assert done.returncode == 0, done.stderr
    ends = [(tmp_path / name / "end").read_text() for name in ("whole", "killed")]
    assert ends[0] == ends[1]
