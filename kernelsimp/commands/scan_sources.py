"""What the sources of a scan are: files, folders, globs, addresses, lists, patterns of published names."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path

from kernelsimp.errors import KernelsimpError, how_to_install
from kernelsimp.models.folders import files_of, is_in_parts
from kernelsimp.models.remote import files_at, is_address

SUFFIXES = (
    *(".pt", ".pth", ".th", ".tar", ".bin", ".ckpt", ".safetensors"),
    *(".kspack", ".kscode", ".pt2", ".onnx"),
)
"""Names that a folder's checkpoints end in; other files are passed over."""

LIST = ".txt"
"""How a list of sources ends: one a line, perhaps a tab and the network's task; # begins a remark."""

TIMM = "timm:"


@dataclass(frozen=True)
class Source:
    """One network to scan: what opens it, what it is called in results, and its task where it was told."""

    place: str
    name: str
    task: str | None = None


def is_many(text: str) -> bool:
    """Say whether one SOURCE may stand for several networks."""
    if is_address(text):
        return True
    path = Path(text)
    if path.exists():
        return (path.is_dir() and not is_in_parts(path)) or path.suffix == LIST
    return has_magic(text) or path.suffix == LIST


def sources_of(texts: Iterable[str]) -> tuple[Source, ...]:
    """Return the networks that SOURCES stand for, each once, in their order.

    Raises `KernelsimpError` for a folder or pattern without a checkpoint and for a list that cannot be read.
    """
    texts = tuple(texts)
    found: dict[str, Source] = {}
    for text in texts:
        for source in _expanded(text, alone=len(texts) == 1):
            found.setdefault(source.place, source)
    return tuple(found.values())


def _expanded(text: str, *, alone: bool = False) -> Iterator[Source]:
    if is_address(text):
        yield from (Source(item, item) for item in _at(text))
        return
    path = Path(text)
    if path.is_dir() and not is_in_parts(path):
        for item in _not_empty(checkpoints_in(path), path):
            yield Source(str(item), item.relative_to(path).as_posix() if alone else str(item))
    elif path.suffix == LIST:
        yield from _listed(path)
    elif text.startswith(TIMM) and has_magic(text):
        yield from _of_timm(text.removeprefix(TIMM))
    elif has_magic(text) and not path.exists():
        yield from _globbed(text)
    else:
        yield Source(text, text)


def _at(address: str) -> tuple[str, ...]:
    """Return the networks at an address; where nobody answers, the address itself, whose scan says why."""
    try:
        found = files_at(address, SUFFIXES)
    except KernelsimpError:
        return (address,)
    if not found:
        raise KernelsimpError(
            f"{address}: no checkpoint there; expected files ending in {', '.join(SUFFIXES)}"
        )
    return found


def _globbed(text: str) -> Iterator[Source]:
    places = sorted(glob(text, recursive=True))  # noqa: PTH207 (the pattern has a root of its own)
    matched = [item for item in places if Path(item).suffix.lower() in SUFFIXES]
    if not matched:
        raise KernelsimpError(
            f"{text}: no checkpoint matches; expected files ending in {', '.join(SUFFIXES)}"
        )
    yield from (Source(item, item) for item in matched)


def _listed(path: Path) -> Iterator[Source]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KernelsimpError(f"{path}: cannot read this list of sources: {error}") from error
    for line in lines:
        text, _, task = line.partition("#")[0].strip().partition("\t")
        if text.endswith(LIST):
            raise KernelsimpError(f"{path}: names another list, {text}; put its lines here")
        for source in _expanded(text) if text else ():
            yield Source(source.place, source.name, task.strip() or None)


def _of_timm(pattern: str) -> Iterator[Source]:
    try:
        import timm
    except ImportError as error:
        raise KernelsimpError(f"timm is not installed; {how_to_install('timm')}") from error
    names = timm.list_pretrained(pattern)
    if not names:
        raise KernelsimpError(f"{TIMM}{pattern}: no published network matches")
    yield from (Source(f"{TIMM}{name}", f"{TIMM}{name}", "classification") for name in names)


def _not_empty(paths: tuple[Path, ...], folder: Path) -> tuple[Path, ...]:
    if not paths:
        raise KernelsimpError(
            f"{folder}: a directory without checkpoints; expected files ending in {', '.join(SUFFIXES)}"
        )
    return paths


def checkpoints_in(folder: Path) -> tuple[Path, ...]:
    """Return the checkpoints under a folder by their names.

    A network in parts is one, by its folder; its files are none. Left out are hidden files and what a run
    keeps beside its report: its plan, and states to go on from.
    """
    places = [path for path in folder.rglob("*") if not path.name.startswith(".")]
    parted = [path for path in places if path.is_dir() and is_in_parts(path)]
    parts = {part for path in parted for part in files_of(path)}
    found = {path for path in places if path.suffix.lower() in SUFFIXES and path.is_file()}
    return tuple(sorted(path for path in (found - parts) | set(parted) if not _of_a_run(path, folder)))


def _of_a_run(path: Path, folder: Path) -> bool:
    if path.name == "plan.safetensors" and (path.parent / "report.json").is_file():
        return True
    above = [folder, *(folder / part for part in path.relative_to(folder).parents)]
    resumed = [place for place in above if place.name == "resume"]
    return any(
        (place.parent / name).is_file() for place in resumed for name in ("report.json", "settings.toml")
    )
