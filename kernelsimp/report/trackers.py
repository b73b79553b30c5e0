"""Where a run's curves and figures go beside its own files: TensorBoard, Weights & Biases, MLflow.

Each is told once, when the run is over: every epoch as a step, and the figures that the run came to. The
libraries find their server by their own means (MLFLOW_TRACKING_URI, a login of wandb); without one MLflow
writes into the run's folder, and so does wandb with WANDB_MODE=offline. What they cannot do costs a warning,
never the run.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kernelsimp.errors import KernelsimpError, did_you_mean, how_to_install
from kernelsimp.files import write_folder
from kernelsimp.records.report import Report
from kernelsimp.report.tables.table import flat, pairs
from kernelsimp.report.tables.verdict import title_words
from kernelsimp.watch import Watcher

PROJECT = "kernelsimp"
NONE, USUAL = "none", "tensorboard"
LONGEST = 250
"""Characters of a setting that every MLflow server takes."""


def to_tensorboard(folder: Path, report: Report) -> None:
    """Write event files under tensorboard/; nothing for a run without epochs."""
    from torch.utils.tensorboard.writer import SummaryWriter

    def write(place: Path) -> None:
        with SummaryWriter(str(place)) as writer:
            for step, values in steps_of(report):
                for name, value in values.items():
                    writer.add_scalar(name, value, step)

    if report.training:
        write_folder(folder / "tensorboard", write)


def to_wandb(folder: Path, report: Report) -> None:
    """Make one run of the project `kernelsimp`; its local files lie under the folder's wandb/."""
    import wandb

    run = wandb.init(project=PROJECT, name=folder.name, dir=str(folder), config=dict(report.settings))
    for step, values in steps_of(report):
        run.log(values, step=step)
    run.summary.update({**figures_of(report), "verdict": title_words(report)})
    run.finish()


def to_mlflow(folder: Path, report: Report) -> None:
    """Make one run of the experiment `kernelsimp`, with report.md and report.html as its artefacts."""
    from mlflow.tracking import MlflowClient

    named = os.environ.get("MLFLOW_TRACKING_URI")
    if not named:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # files need no database beside MLflow
    client = MlflowClient(named or (folder / "mlflow").absolute().as_uri())
    known = client.get_experiment_by_name(PROJECT)
    experiment = known.experiment_id if known else client.create_experiment(PROJECT)
    run = client.create_run(
        experiment, run_name=folder.name, tags={"verdict": title_words(report)}
    ).info.run_id
    for name, words in pairs(flat(report.settings)):
        client.log_param(run, name, words[:LONGEST])
    for step, values in ((0, figures_of(report)), *steps_of(report)):
        for name, value in values.items():
            client.log_metric(run, name, value, step=step)
    for name in ("report.md", "report.html"):
        if (folder / name).is_file():
            client.log_artifact(run, str(folder / name))
    client.set_terminated(run)


TRACKERS: Mapping[str, Callable[[Path, Report], None]] = {
    "tensorboard": to_tensorboard,
    "wandb": to_wandb,
    "mlflow": to_mlflow,
}
"""What `--log` names, and what tells it of a run in a folder."""
MODULES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


def trackers_of(text: str) -> tuple[str, ...]:
    """Return the names in a list with commas; none for `none`, and TensorBoard only where it is installed.

    Raises `KernelsimpError` for an unknown name and for one that is not installed.

    >>> trackers_of("none")
    ()
    """
    if text == NONE:
        return ()
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in TRACKERS:
            raise KernelsimpError(f"--log is '{name}'{did_you_mean(name, (*TRACKERS, NONE))}")
    missing = [name for name in names if find_spec(MODULES[name]) is None]
    if missing and text != USUAL:
        advice = how_to_install(missing[0])
        raise KernelsimpError(f"--log {missing[0]} needs a package that is not installed; {advice}")
    return tuple(name for name in names if name not in missing)


def tell(folder: Path, report: Report, text: str, watcher: Watcher) -> None:
    """Tell every tracker of a list of a run whose files are written; what one cannot do is a warning."""
    for name in trackers_of(text):
        try:
            TRACKERS[name](folder, report)
        # a server that is away, a login that is missing: theirs, in their own types
        except Exception as error:
            words = f"{type(error).__name__}: {error}"
            watcher.warn(f"--log {name}: {words}; the run itself is whole in {folder}")


def steps_of(report: Report) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield each epoch and its figures, those that are numbers."""
    for epoch in report.training:
        yield epoch.epoch, {name: value for name, value in asdict(epoch).items() if isinstance(value, float)}


def figures_of(report: Report) -> dict[str, float]:
    """Return the figures that a run came to: accuracies in percent, shares from 0 to 1, sizes in bytes."""
    kernels, accuracy = report.kernels, report.accuracy
    figures: dict[str, Any] = {
        "kernels_simplified": kernels.simplified,
        "kernels_found": kernels.found,
        "kernels_imposed": kernels.imposed,
        "dof_fraction": report.dof.fraction,
        "dof_equivalent_fraction": report.dof.equivalent_fraction,
        "file_bytes": report.size.file,
        "packed_bytes": report.size.packed,
        "budget_met": report.budget_met,
    }
    if accuracy is not None and accuracy.stages:
        figures |= {f"top1_{stage.stage}": stage.top1 for stage in accuracy.stages}
        figures["change_pp"] = accuracy.change_pp
    return {name: float(value) for name, value in figures.items() if value is not None}
