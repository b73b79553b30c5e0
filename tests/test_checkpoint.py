"""Reading and writing checkpoints: every container and wrapper comes back as it was."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import (
    WRITERS,
    prefixed,
    same,
    tiny_net,
    tiny_state,
    write_safetensors,
    write_sparse_safetensors,
    write_zip,
)
from saying import file_refusal
from torch import nn

from kernelsimp.errors import KernelsimpError
from kernelsimp.models.checkpoint import load_checkpoint
from kernelsimp.settings import ModelSettings

# ---------------------------------------------------------------- containers, wrappers, prefixes


@pytest.mark.parametrize("container", WRITERS)
@pytest.mark.parametrize("ending", [".pt", ".pth", ".th", ".pth.tar", ".ckpt", ".bin", ".safetensors"])
def test_the_content_decides_not_the_ending(container: str, ending: str, tmp_path: Path) -> None:
    path = WRITERS[container](tiny_state(), tmp_path / f"net{ending}")
    checkpoint = load_checkpoint(path)
    assert checkpoint.format == container
    assert checkpoint.wrapper is None
    order = sorted if container == "safetensors" else list
    assert same(dict(checkpoint.tensors), {name: tiny_state()[name] for name in order(tiny_state())})


@pytest.mark.parametrize("container", WRITERS)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_are_stripped_and_written_again(container: str, prefix: str, tmp_path: Path) -> None:
    path = WRITERS[container](prefixed(tiny_state(), prefix), tmp_path / "net.pt")
    checkpoint = load_checkpoint(path)
    assert checkpoint.prefix == prefix
    assert set(checkpoint.tensors) == set(tiny_state())
    checkpoint.save(tmp_path / "again.pt")
    assert load_checkpoint(tmp_path / "again.pt").prefix == prefix
    tiny_net().load_state_dict(dict(load_checkpoint(tmp_path / "again.pt").tensors), strict=True)


def test_a_prefix_that_some_names_lack_stays(tmp_path: Path) -> None:
    state = {"module.conv.weight": torch.ones(1, 1, 3, 3), "head.weight": torch.ones(2, 2)}
    checkpoint = load_checkpoint(write_zip(state, tmp_path / "net.pt"))
    assert checkpoint.prefix == ""
    assert list(checkpoint.tensors) == list(state)


WRAPPERS = ["state_dict", "model", "net", "ema", "model_state", "model_state_dict", "weights", "generator"]


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_are_found_and_kept(container: str, wrapper: str, tmp_path: Path) -> None:
    payload = {"epoch": 3, wrapper: tiny_state(), "note": "mine", "step": torch.tensor(7)}
    checkpoint = load_checkpoint(WRITERS[container](payload, tmp_path / "net.pt"))
    assert checkpoint.wrapper == wrapper
    assert same(dict(checkpoint.tensors), tiny_state())
    checkpoint.save(tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert list(again) == list(payload)
    assert (again["epoch"], again["note"], int(again["step"])) == (3, "mine", 7)
    assert same(again[wrapper], tiny_state())


def test_a_wrapper_inside_a_wrapper(tmp_path: Path) -> None:
    path = write_zip({"model": {"state_dict": tiny_state(), "name": "x"}}, tmp_path / "net.pt")
    checkpoint = load_checkpoint(path)
    assert checkpoint.wrapper == "model.state_dict"
    checkpoint.save(path)
    again = torch.load(path, weights_only=True)
    assert again["model"]["name"] == "x"
    assert same(again["model"]["state_dict"], tiny_state())


def test_training_state_is_dropped_and_named(tmp_path: Path) -> None:
    momentum = {0: {"momentum_buffer": torch.ones(4, 3, 3, 3)}}
    optimizer = {"state": momentum, "param_groups": [{"lr": 0.1, "params": [0]}]}
    payload = {
        "state_dict": tiny_state(),
        "optimizer": optimizer,
        "optimizer_states": [optimizer],
        "lr_scheduler": {"last_epoch": 2},
        "grad_scaler": {"scale": 1.0},
        "my_sgd": optimizer,
        "hyper_parameters": {"lr": 0.1},
    }
    checkpoint = load_checkpoint(write_zip(payload, tmp_path / "net.ckpt"))
    assert checkpoint.dropped == ("optimizer", "optimizer_states", "lr_scheduler", "grad_scaler", "my_sgd")
    checkpoint.save(tmp_path / "again.ckpt")
    again = torch.load(tmp_path / "again.ckpt", weights_only=True)
    assert list(again) == ["state_dict", "hyper_parameters"]


@pytest.mark.parametrize(
    ("weights", "wrapper", "dropped", "seed"),
    [(None, "model", "model_ema", 0), ("model", "model", "model_ema", 0), ("ema", "model_ema", "model", 1)],
)
def test_averaged_weights(weights: str | None, wrapper: str, dropped: str, seed: int, tmp_path: Path) -> None:
    average = {"n_averaged": torch.tensor(9), **prefixed(tiny_state(1), "module.")}
    path = write_zip({"model": tiny_state(0), "model_ema": average, "epoch": 1}, tmp_path / "net.pth")
    checkpoint = load_checkpoint(path, ModelSettings(weights=weights))
    assert (checkpoint.wrapper, checkpoint.dropped) == (wrapper, (dropped,))
    assert same(dict(checkpoint.tensors), tiny_state(seed))
    told = f"{path}: also holds averaged weights under 'model_ema'; --weights ema takes them"
    assert checkpoint.warnings == ((told,) if weights is None else ())
    checkpoint.save(path)
    again = torch.load(path, weights_only=True)
    assert set(again) == {wrapper, "epoch"}
    assert ("n_averaged" in again[wrapper]) == (wrapper == "model_ema")


def test_several_networks_side_by_side_need_a_choice(tmp_path: Path) -> None:
    payload = {"generator": tiny_state(0), "critic": tiny_state(1)}
    path = write_zip(payload, tmp_path / "gan.pt")
    words = "FILE: holds several state dicts: 'generator', 'critic'; choose one with --weights KEY"
    assert file_refusal(path) == words
    checkpoint = load_checkpoint(path, ModelSettings(weights="critic"))
    assert same(dict(checkpoint.tensors), tiny_state(1))
    assert file_refusal(path, weights="student") == (
        "FILE: no weights under 'student'; the file holds 'generator', 'critic'"
    )
    assert file_refusal(path, weights="ema") == (
        "FILE: no averaged (EMA) weights here; the file holds 'generator', 'critic'; drop --weights ema"
    )


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_what_training_scripts_leave_beside_weights(container: str, tmp_path: Path) -> None:
    payload = {
        "state_dict": tiny_state(),
        "args": argparse.Namespace(lr=0.1, out=Path("runs")),
        "best": np.float64(91.5),
        "count": np.int64(3),
        "curve": np.arange(3.0),
    }
    checkpoint = load_checkpoint(WRITERS[container](payload, tmp_path / "net.pt"))
    checkpoint.save(tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=False)
    assert again["args"] == payload["args"]
    assert (again["best"], again["count"], list(again["curve"])) == (91.5, 3, [0.0, 1.0, 2.0])


# ---------------------------------------------------------------- replaced and save


@pytest.mark.parametrize("container", WRITERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_change_keeps_everything_else(container: str, dtype: torch.dtype, tmp_path: Path) -> None:
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tiny_state().items()}
    checkpoint = load_checkpoint(WRITERS[container](state, tmp_path / "net.pt"))
    new = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(3))
    checkpoint.with_tensors({"stem.weight": new}).save(tmp_path / "again.pt")
    again = load_checkpoint(tmp_path / "again.pt")
    assert again.format == container
    assert list(again.tensors) == list(checkpoint.tensors)
    assert {k: v.dtype for k, v in again.tensors.items()} == {k: v.dtype for k, v in state.items()}
    assert torch.equal(again.tensors["stem.weight"], new.to(dtype))
    rest = {k: v for k, v in state.items() if k != "stem.weight"}
    assert same({k: again.tensors[k] for k in rest}, rest)
    assert torch.equal(checkpoint.tensors["stem.weight"], state["stem.weight"])  # the original is untouched


def test_metadata_of_safetensors_is_kept(tmp_path: Path) -> None:
    from safetensors import safe_open

    path = write_safetensors(tiny_state(), tmp_path / "net.safetensors", {"format": "pt", "author": "me"})
    load_checkpoint(path).save(path)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "author": "me"}


def test_versions_of_modules_and_parameters_are_kept(tmp_path: Path) -> None:
    state = tiny_net().state_dict()
    state["head.weight"] = nn.Parameter(state["head.weight"].clone())
    checkpoint = load_checkpoint(write_zip({"state_dict": state}, tmp_path / "net.pt"))
    checkpoint.with_tensors({"head.weight": torch.zeros(5, 6)}).save(tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)["state_dict"]
    assert again._metadata == state._metadata
    assert isinstance(again["head.weight"], nn.Parameter)
    assert not again["head.weight"].any()


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_tied_tensors_stay_tied(container: str, tmp_path: Path) -> None:
    weight, whole = torch.randn(4, 3, 3, 3), torch.randn(6, 4, 3, 3)
    state = {"a.weight": weight, "b.weight": weight, "low.weight": whole[:2], "high.weight": whole[2:]}
    checkpoint = load_checkpoint(WRITERS[container](state, tmp_path / "net.pt"))
    changed = checkpoint.with_tensors({"b.weight": weight + 1, "low.weight": whole[:2] * 2})
    changed.save(tmp_path / "again.pt")
    again = load_checkpoint(tmp_path / "again.pt").tensors
    assert again["a.weight"].data_ptr() == again["b.weight"].data_ptr()
    assert torch.equal(again["a.weight"], weight + 1)
    assert (
        again["low.weight"].untyped_storage().data_ptr() == again["high.weight"].untyped_storage().data_ptr()
    )
    assert torch.equal(again["low.weight"], whole[:2] * 2)
    assert torch.equal(again["high.weight"], whole[2:])


def test_tied_tensors_cannot_be_given_different_values(tmp_path: Path) -> None:
    weight = torch.randn(4, 3, 3, 3)
    checkpoint = load_checkpoint(write_zip({"a.weight": weight, "b.weight": weight}, tmp_path / "net.pt"))
    with pytest.raises(KernelsimpError) as caught:
        checkpoint.with_tensors({"a.weight": weight + 1, "b.weight": weight + 2})
    assert str(caught.value) == "'a.weight' is tied to b.weight but was given other values; change them alike"


def test_unknown_names_and_other_shapes_are_refused(tmp_path: Path) -> None:
    path = write_zip(tiny_state(), tmp_path / "net.pt")
    checkpoint = load_checkpoint(path)
    with pytest.raises(KernelsimpError) as caught:
        checkpoint.with_tensors({"stm.weight": torch.zeros(1)})
    assert str(caught.value) == f"{path}: no tensor 'stm.weight'; did you mean 'stem.weight'?"
    with pytest.raises(KernelsimpError) as caught:
        checkpoint.with_tensors({"stem.weight": torch.zeros(4, 3, 5, 5)})
    assert str(caught.value) == f"{path}: 'stem.weight' is (4, 3, 3, 3), cannot become (4, 3, 5, 5)"


def test_writing_over_the_file_that_is_mapped(tmp_path: Path) -> None:
    path = write_zip(tiny_state(), tmp_path / "net.pt")
    checkpoint = load_checkpoint(path)
    before = {name: value.clone() for name, value in checkpoint.tensors.items()}
    checkpoint.save(path)
    assert same(dict(checkpoint.tensors), before)
    assert same(dict(load_checkpoint(path).tensors), before)


def test_saving_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(write_zip(tiny_state(), tmp_path / "net.pt"))
    checkpoint.save(tmp_path / "one.pt")
    checkpoint.save(tmp_path / "two.pt")
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "two.pt").read_bytes()


@pytest.mark.parametrize("container", WRITERS)
def test_a_full_disk_leaves_nothing_behind(container: str, tmp_path: Path, monkeypatch) -> None:
    checkpoint = load_checkpoint(WRITERS[container](tiny_state(), tmp_path / "net.pt"))
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(KernelsimpError, match="cannot write"):
        checkpoint.save(blocked / "net.pt")
    if container == "safetensors":
        monkeypatch.setattr("safetensors.torch.serialize_file", _no_space)
    else:
        monkeypatch.setattr("torch.save", _no_space)
    with pytest.raises(KernelsimpError) as caught:
        checkpoint.save(tmp_path / "out.pt")
    assert str(caught.value) == (
        f"{tmp_path / 'out.pt'}: cannot write: No space left on device; choose another place"
    )
    assert sorted(item.name for item in tmp_path.iterdir()) == ["file", "net.pt"]


def _no_space(*args: object, **kwargs: object) -> None:
    raise OSError(28, "No space left on device")


# ---------------------------------------------------------------- memory and published files


def test_a_large_file_is_mapped_not_read(tmp_path: Path) -> None:
    path = write_sparse_safetensors(tmp_path / "net.safetensors", {"a.weight": (4096, 4096, 4, 4)})
    before = _anonymous()
    checkpoint = load_checkpoint(path)
    assert checkpoint.tensors["a.weight"].shape == (4096, 4096, 4, 4)  # 1 GiB
    assert float(checkpoint.tensors["a.weight"][-1, -1].sum()) == 0.0
    assert _anonymous() - before < 100e6


def test_a_zip_is_mapped_not_read(tmp_path: Path) -> None:
    path = write_zip({"a.weight": torch.zeros(1024, 1024, 4, 4)}, tmp_path / "net.pt")  # 64 MiB
    before = _anonymous()
    checkpoint = load_checkpoint(path)
    assert float(checkpoint.tensors["a.weight"].sum()) == 0.0
    assert _anonymous() - before < 20e6


def _anonymous() -> float:
    """Return the process's private memory in bytes."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("no /proc here, so memory cannot be read")
    line = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024.0


@pytest.mark.parametrize(
    ("name", "count"), [("resnet20-12fca82f.th", 97), ("mobilenet_v1_025.safetensors", 164)]
)
def test_published_checkpoints_come_back(name: str, count: int, shared_data: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(shared_data / "checkpoints" / name)
    assert len(checkpoint.tensors) == count
    checkpoint.save(tmp_path / name)
    again = load_checkpoint(tmp_path / name)
    assert (again.format, again.wrapper, again.prefix) == (
        checkpoint.format,
        checkpoint.wrapper,
        checkpoint.prefix,
    )
    assert same(dict(again.tensors), dict(checkpoint.tensors))
