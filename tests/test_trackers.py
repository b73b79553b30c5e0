"""Curves where people look: each tracker offline, in its own files; what it cannot do costs a warning."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import reports

from kernelsimp.errors import KernelsimpError
from kernelsimp.records.report import Report
from kernelsimp.report import trackers
from kernelsimp.watch import Watcher


class Warned(Watcher):
    """Keeps what it is warned of."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, text: str) -> None:
        self.said.append(text)


def trained() -> Report:
    return replace(reports.report(), training=tuple(reports.epochs()))


def told(folder: Path, name: str) -> None:
    folder.mkdir()
    (folder / "report.md").write_text("# a run")
    watcher = Warned()
    trackers.tell(folder, trained(), name, watcher)
    assert watcher.said == []


def test_a_list_of_names_is_read_and_wrong_ones_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name != "wandb" else name)
    assert trackers.trackers_of("none") == ()
    assert trackers.trackers_of("tensorboard") == ()
    assert trackers.trackers_of("wandb") == ("wandb",)
    with pytest.raises(KernelsimpError, match=r"^--log is 'wandbb'; did you mean 'wandb'\?$"):
        trackers.trackers_of("wandbb")
    with pytest.raises(KernelsimpError, match=r"not installed; pip install mlflow-skinny$"):
        trackers.trackers_of("wandb, mlflow")


def test_a_tracker_that_fails_costs_a_warning_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(folder: Path, report: Report) -> None:
        raise ConnectionError("the server is away")

    monkeypatch.setattr(trackers, "TRACKERS", {"wandb": away})
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    watcher = Warned()
    trackers.tell(tmp_path, trained(), "wandb", watcher)
    assert watcher.said == [
        f"--log wandb: ConnectionError: the server is away; the run itself is whole in {tmp_path}"
    ]


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline_gets_every_epoch_and_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    told(tmp_path / "run", "wandb")
    wandb.teardown()  # its service writes on after a run has ended, until the process does
    (written,) = (tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb")
    assert written.stat().st_size > 0
    text = written.read_bytes()
    assert b"kernels_found" in text
    assert b"val_top1" in text


@pytest.mark.filterwarnings("ignore")
def test_mlflow_offline_gets_every_epoch_the_settings_and_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    told(tmp_path / "run", "mlflow")
    client = mlflow.tracking.MlflowClient((tmp_path / "run" / "mlflow").as_uri())
    experiment = client.get_experiment_by_name(trackers.PROJECT)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["kernels_found"] == trained().kernels.found
    losses = client.get_metric_history(run.info.run_id, "train_loss")
    assert [(item.step, item.value) for item in losses] == [
        (epoch.epoch, epoch.train_loss) for epoch in reports.epochs()
    ]
    assert [item.path for item in client.list_artifacts(run.info.run_id)] == ["report.md"]


def test_figures_are_numbers_that_json_takes() -> None:
    assert json.loads(json.dumps(trackers.figures_of(trained())))["kernels_simplified"] == 118
