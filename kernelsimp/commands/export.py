"""The export: a run's network, or any checkpoint, in another form."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from kernelsimp.commands.audit import input_shape
from kernelsimp.commands.inputs import checkpoint_of, is_run, settle_for_check, settle_for_model
from kernelsimp.commands.outputs import FILES
from kernelsimp.commands.run import ExportSource, pack_source
from kernelsimp.errors import KernelsimpError, did_you_mean
from kernelsimp.files import write_atomically, write_bytes
from kernelsimp.models.checkpoint import Checkpoint, load_checkpoint
from kernelsimp.models.digest import tensors_sha256
from kernelsimp.models.folders import files_of, is_in_parts
from kernelsimp.models.network import open_network
from kernelsimp.models.storage import unreal
from kernelsimp.models.wrappers import value_at
from kernelsimp.records.plan_file import read_plan
from kernelsimp.report import read_report
from kernelsimp.report.tables.factorised import factorised_tables
from kernelsimp.report.tables.table import Table
from kernelsimp.settings import Given, ModelSettings
from kernelsimp.watch import SILENT, Watcher


@dataclass(frozen=True)
class Written:
    """What an export wrote: where, how large it is and its source was, and what is worth saying."""

    path: Path
    form: str
    size: int
    source_size: int
    notes: tuple[str, ...] = ()
    met: bool = True
    files: tuple[Path, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Said:
    """What a form has to say of the file that it wrote, and whether its budget is met.

    `files` are those of a form that writes several, or none at all; None is the one that was asked for.
    """

    notes: tuple[str, ...] = ()
    met: bool = True
    files: tuple[Path, ...] | None = None
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class ExportForm:
    """One row: the ending of the file, how it is written, and what it is.

    Where it is `lossless` all tensors come back; `runs` says that the network is run to make it.
    """

    ending: str
    write: Callable[[ExportSource, Path, Watcher], Said]
    meaning: str
    lossless: bool = True
    runs: bool = False


Asked = tuple[Given, str | None]
"""What was asked for on the command line, and in a settings file or recipe."""


def export(place: Path, form: str, out: Path | None, asked: Asked, watcher: Watcher = SILENT) -> Written:
    """Write the network of a RUN, or of a checkpoint file, in another form beside it or at `out`.

    What can be read back is, and must be the same bit for bit. Raises `KernelsimpError` for an unknown form,
    a run without its checkpoint, and an `out` that would overwrite the source.
    """
    if form not in FORMS:
        raise KernelsimpError(f"--to is '{form}'{did_you_mean(form, FORMS)}")
    row = FORMS[form]
    source = open_source(place, asked, runs=row.runs)
    target = out or _beside(source.path, row.ending)
    if target.resolve() in [path.resolve() for path in (source.path, *files_of(source.path))]:
        raise KernelsimpError(f"{target} is the file that is exported; name another with --out")
    if target.is_dir():
        raise KernelsimpError(f"{target}: is a directory; --out names the file to write")
    _refuse_budgets(source, form)
    said = row.write(source, target, watcher)
    if row.lossless:
        _check(source, target)
    files = (target,) if said.files is None else said.files
    sizes = [sum(path.stat().st_size for path in some) for some in (files, files_of(source.path))]
    left = () if row.runs or not files else _left_out(source.checkpoint)
    return Written(target, form, sizes[0], sizes[1], (*said.notes, *left), said.met, files, said.tables)


def _refuse_budgets(source: ExportSource, form: str) -> None:
    """Raise `KernelsimpError` for a budget, or a training, that another form has."""
    if form != "factorised" and source.settings.finetune.finetune:
        raise KernelsimpError(f"--finetune is for --to factorised alone; --to {form} keeps the weights")
    for stage, name, forms in BUDGETS:
        if form not in forms and getattr(getattr(source.settings, stage), name) is not None:
            owners = " and ".join(forms)
            raise KernelsimpError(f"--{name.replace('_', '-')} is a budget of --to {owners} alone")


BUDGETS = (
    ("coding", "max_drop", ("coded", "factorised")),
    ("coding", "kl", ("coded",)),
    ("coding", "size", ("coded",)),
    ("factorising", "speedup", ("factorised",)),
    ("factorising", "macs", ("factorised",)),
)
"""Budgets: the stage of the settings, the field, and the forms that have it."""


def training_kept_in(place: Path, form: str, out: Path | None, given: Given) -> Path | None:
    """Return the folder where an export keeps the state of its training; None where it does not train."""
    from kernelsimp.commands.factorised_tuning import training_folder

    if form != "factorised" or not given.get("finetune", {}).get("finetune"):
        return None
    return training_folder(place if is_run(place) else None, out or _beside(place, FORMS[form].ending)).path


def _beside(source: Path, ending: str) -> Path:
    """Return where the export of `source` goes by itself: under its name, with another ending."""
    if not is_in_parts(source):
        return source.with_suffix(ending)
    place = source if source.is_dir() else source.parent
    return (
        place.resolve().with_name(place.resolve().name + ending)
        if not place.name
        else Path(f"{place}{ending}")
    )


def open_source(place: Path, asked: Asked, *, runs: bool) -> ExportSource:
    """Open a RUN with its plan, or a checkpoint file; `runs` says whether the network itself is needed."""
    if not place.is_dir() or is_in_parts(place):
        settings = settle_for_model(*asked)
        return ExportSource(place, load_checkpoint(place, settings.model), settings)
    report = read_report(place)
    path, settings = checkpoint_of(place, report), settle_for_check(*asked, place, runs=runs)
    plan = read_plan(place / "plan.safetensors")
    return ExportSource(path, load_checkpoint(path, settings.model), settings, plan, place)


def _to_packed(source: ExportSource, path: Path, _: Watcher) -> Said:
    pack_source(source).save(path)
    return Said()


def _to_safetensors(source: ExportSource, path: Path, _: Watcher) -> Said:
    from safetensors.torch import save

    state = source.checkpoint.stored_state
    for name, item in state.items():
        if item.layout != torch.strided or item.is_quantized:
            raise KernelsimpError(f"{source.path}: '{name}' is {unreal(item)}; or export it --to torch")
    # clones: the format refuses tensors that share memory
    write_bytes(path, save({name: item.contiguous().clone() for name, item in state.items()}))
    return Said()


def _to_torch(source: ExportSource, path: Path, _: Watcher) -> Said:
    payload: Mapping[str, object] = source.checkpoint.stored_state
    for key in reversed(source.checkpoint.found.keys):
        payload = {key: payload}
    write_atomically(path, lambda partial: torch.save(payload, partial))
    return Said()


def _to_onnx(source: ExportSource, path: Path, _: Watcher) -> Said:
    from kernelsimp.models.onnx_export import export_onnx

    if source.settings.model.arch is None:
        raise KernelsimpError("--to onnx needs the network, not its weights alone: pass --arch")
    model = replace(source.settings.model, sha256=None)
    network = open_network(source.path, replace(source.settings, model=model))
    shape = input_shape(network, None, source.settings)
    if shape is None:
        raise KernelsimpError("--to onnx needs the side of an image: pass --input-size")
    export_onnx(network.module(), shape, path)
    return Said()


def _to_coded(source: ExportSource, path: Path, watcher: Watcher) -> Said:
    from kernelsimp.commands.export_coded import export_coded

    done = export_coded(source, path, watcher)
    return Said(done.notes, done.met)


def _to_factorised(source: ExportSource, path: Path, watcher: Watcher) -> Said:
    from kernelsimp.commands.export_factorised import export_factorised
    from kernelsimp.commands.factorised_forms import written_places
    from kernelsimp.commands.run_report import add_export

    taken = {item.resolve() for item in (source.path, *files_of(source.path))}
    of_run = {(path.parent / name).resolve() for name in FILES} if is_run(path.parent) else set()
    for place in written_places(path):
        if place.resolve() in taken:
            raise KernelsimpError(f"{place} is the file that is exported; name another with --out")
        if place.resolve() in of_run:
            raise KernelsimpError(f"{place} is a file of a run; name another with --out")
    done = export_factorised(source, path, watcher)
    notes = done.made.notes
    if source.run is not None and done.files:
        notes = (*notes, add_export(source.run, lambda _: {"factorised": done.made}))
    return Said(notes, done.met, done.files, factorised_tables(done.made))


FORMS: Mapping[str, ExportForm] = {
    "packed": ExportForm(
        ".kspack", _to_packed, "every kernel by the free numbers of its structure; lossless"
    ),
    "coded": ExportForm(
        ".kscode", _to_coded, "weights as integers in an adaptive code; within a budget", lossless=False
    ),
    "safetensors": ExportForm(".safetensors", _to_safetensors, "plain tensors, as the file names them"),
    "torch": ExportForm(".pt", _to_torch, "what torch.load reads, under the keys where the weights stood"),
    "onnx": ExportForm(".onnx", _to_onnx, "a graph that other programs run", lossless=False, runs=True),
    "factorised": ExportForm(
        ".factorised.pt2",
        _to_factorised,
        "layers as two thinner ones, where that was measured to be faster",
        lossless=False,
        runs=True,
    ),
}
"""What a network can be exported to."""


def _check(source: ExportSource, path: Path) -> None:
    """Read the file back; raise `KernelsimpError` unless every tensor is the same bit for bit."""
    weights = ModelSettings()
    back = load_checkpoint(path, weights).stored_state
    if tensors_sha256(_sort_state(back)) != tensors_sha256(_sort_state(source.checkpoint.stored_state)):
        raise KernelsimpError(
            f"{path}: a tensor does not read back bit for bit; do not use it, report the bug"
        )


def _sort_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: state[name] for name in sorted(state)}


def _left_out(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Say which entries beside the weights stay behind."""
    payload, names = checkpoint.raw.payload if checkpoint.raw else {}, []
    for key in checkpoint.found.keys:
        names += [f"'{other}'" for other in payload if other != key] if isinstance(payload, dict) else []
        payload = value_at(payload, (key,))
    return (f"left out, as no weights: {', '.join(names[:8])}",) if names else ()
