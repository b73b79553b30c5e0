"""No output may take the place of an input: looked at before anything is read.

An input is a file or a folder that the command line or its settings name; an output that is one, lies in
one, or is a link to one is refused, and so are two outputs of one name.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import parse_qsl

from kernelsimp.errors import KernelsimpError
from kernelsimp.settings import Settings
from kernelsimp.settings_file import names_code

Place = str | Path | None

FILES = (
    *("report.json", "report.md", "report.html", "pictures.npz"),
    *("plan.safetensors", "settings.toml", "log.jsonl"),
)
"""What a run writes beside its checkpoint."""


def check_outputs(
    outputs: Iterable[tuple[str, Place]],
    inputs: Iterable[Place],
    settings: Settings | None = None,
    config: str | None = None,
) -> None:
    """Raise `KernelsimpError` for an output, by its option, that would take the place of an input."""
    named = config if config and not config.startswith("recipe:") else None
    sources = [Path(item) for item in (*inputs, named) if item]
    sources += [Path(item) for item in (_named_in(settings) if settings else ())]
    written: dict[Path, str] = {}
    for option, place in outputs:
        if place is None or str(place) == "-":
            continue
        target = Path(place)
        for source in sources:
            if _takes_the_place(target, source):
                raise KernelsimpError(f"{option} {target} would overwrite the input {source}; name another")
        other = written.setdefault(target.resolve(), option)
        if other != option:
            raise KernelsimpError(f"{option} and {other} are both {target}; one would be lost, name another")


def check_is_run(run: Path) -> None:
    """Raise `KernelsimpError` where there is no report to read; needs no import that takes long."""
    place = run / "report.json" if run.is_dir() else run
    if not place.exists():
        raise KernelsimpError(
            f"{place}: there is no report; 'kernelsimp simplify --out RUN' writes RUN/report.json"
        )


def check_is_there(model: str) -> None:
    """Raise `KernelsimpError` for a path that is not there; names with a colon are looked up elsewhere."""
    if ":" in model:
        return
    try:
        Path(model).stat()
    except FileNotFoundError as error:
        raise KernelsimpError(f"{model}: no such file; check the path") from error
    except (OSError, ValueError):  # reading says why
        return


EVALUATES = (
    "evaluate needs a network and images: pass --arch and --data",
    "evaluate needs images: pass --data",
)
COMPARES = (
    "compare runs both networks: pass --arch, and --arch-b where B has another",
    "compare needs images that both networks are given: pass --data",
)
"""What is said where there is no network, or no images, to run."""


def check_can_run(models: Iterable[str], settings: Settings, said: tuple[str, str]) -> None:
    """Raise `KernelsimpError` where a model is not there, or a plain file comes without network or images.

    A RUN folder brings its network, a published network its own architecture; the command itself looks again.
    """
    for model in models:
        check_is_there(model)
        named = settings.model.arch or settings.compare.arch_b or ":" in model
        if not Path(model).is_dir() and not (named and settings.data.data):
            raise KernelsimpError(said[1] if named else said[0])


def check_can_train(settings: Settings) -> None:
    """Raise `KernelsimpError` where there is no network or there are no images to train on."""
    if settings.model.arch is None or settings.data.data is None:
        raise KernelsimpError("training needs a network and images: pass --arch and --data")


def check_not_written(out: Path, *, resumed: bool, overwrite: bool) -> None:
    """Raise `KernelsimpError` where `out` has a finished run that would be lost, before torch is imported."""
    if (out / "report.json").exists() and not (resumed or overwrite):
        raise KernelsimpError(
            f"{out} already has a run (report.json); pass --overwrite to replace it, or name another --out"
        )


def check_run(
    out: Path, model: Path | None, settings: Settings, config: str | None, json: str | None = None
) -> None:
    """Raise `KernelsimpError` where a run in `out` would overwrite an input, or `out` is no directory."""
    from kernelsimp.models.folders import files_of, is_in_parts, written_name  # torch takes seconds

    names = (*FILES, *((written_name(model),) if model else ()))
    files = [("--out", out), *(("--out", out / name) for name in names)]
    # any other folder is refused where it is opened
    sources = (model, *files_of(model)) if model and (is_in_parts(model) or not model.is_dir()) else ()
    check_outputs([*files, ("--json", json)], sources, settings, config)
    if out.exists() and not out.is_dir():
        raise KernelsimpError(f"--out {out}: is a file; a run is a folder, name another")


def _takes_the_place(target: Path, source: Path) -> bool:
    one, other = target.resolve(), source.resolve()
    if one == other or (other.is_dir() and one.is_relative_to(other)):
        return True
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there
        return False


def _named_in(settings: Settings) -> Iterator[str]:
    """Yield the files and folders that settings name."""
    for key, value in (("arch", settings.model.arch), ("arch_b", settings.compare.arch_b)):
        if value and names_code(key, value):
            yield value.rpartition(":")[0]
    for text in (settings.data.data, settings.plan.holdout, settings.plan.metric):
        yield from _of_data(text or "")
    for place in (settings.plan.plan, settings.robustness.cifar_c):
        if place:
            yield place


def _of_data(text: str) -> Iterator[str]:
    word, _, where = text.partition(":")
    if word == "torchvision":
        yield from (value for key, value in parse_qsl(where.partition("?")[2]) if key == "root")
    elif word in ("npz", "imagefolder"):
        yield where
    elif word == "npy":
        yield from filter(None, where.split(","))
    elif names_code("data", text):
        yield text.rpartition(":")[0] or text
