"""What each folder of a picture folder is: a split, a class, or neither. The one place that decides it.

Everything follows from the images' places below the root, `SPLIT/CLASS/.../IMAGE` or `CLASS/.../IMAGE`. A
folder is a split where its name is a split's word, in any case, and class folders stand in it. What a folder
could also have been is told in words.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kernelsimp.errors import KernelsimpError

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2")
)

SPLIT_WORDS = {
    "train": ("train", "training", "trn", "trainval", "trainvalid"),
    "val": ("val", "valid", "validation", "validate", "dev", "development"),
    "test": ("test", "testing", "tst"),
}
"""Words that name a split, alone or before `set`, `data`, `images`, `split`, `folder` or a year."""

_TAIL = r"(set|data|images|imgs|split|folder|dir)?\d*"

LEFT_BY_SYSTEMS = frozenset(
    (
        *("__macosx", "__pycache__", "@eadir", "@tmp", "@recycle", "@recently-snapshot", "@sharebin"),
        *("#recycle", "#snapshot", "$recycle.bin", "system volume information", "lost+found", "thumbs.db"),
        *("recycler", "desktop.ini"),
    )
)
"""What archivers, file servers and desktops leave behind, in lower case; names with a dot in front, too."""

MOST_NAMED = 5


@dataclass(frozen=True)
class Found:
    """The images below a root, in order, and the folders at its top, those without images included."""

    root: Path
    images: tuple[tuple[str, ...], ...]
    folders: tuple[str, ...]

    @property
    def holding(self) -> tuple[str, ...]:
        """The folders at the top that hold images at any depth."""
        held = {parts[0] for parts in self.images if len(parts) > 1}
        return tuple(name for name in self.folders if name in held)


@dataclass(frozen=True)
class FolderLayout:
    """What was decided. `splits` gives a split's word its folder, and is empty where none is a split.

    `images` are those that belong to a class, each as (split's folder or '', class, path below the root);
    `classes` their names in the order of the labels.
    """

    splits: dict[str, str]
    images: tuple[tuple[str, str, str], ...]
    classes: tuple[str, ...]
    note: str
    warnings: tuple[str, ...]


def split_word(name: str) -> str | None:
    """Return train, val or test where a folder's name says one of them."""
    plain = re.sub(r"[\W_]+", "", name.casefold())
    for word, names in SPLIT_WORDS.items():
        if re.fullmatch(rf"({'|'.join(names)}){_TAIL}", plain):
            return word
    return None


def read_layout(root: Path) -> FolderLayout:
    """Return what the folders of `root` are.

    Raises `KernelsimpError` where there are no images, where splits have no class folders and so no labels,
    where two folders are the same split, where test is missing, and where the splits stand one folder deeper.
    """
    found = find_images(root)
    _refuse_deeper(found)
    splits = _splits_of(found)
    layout = _with_splits(found, splits) if splits else _without_splits(found)
    if not layout.images:
        raise KernelsimpError(
            f"{root}: no images found; expected folders of classes with images, CLASS/0.jpg"
        )
    return layout


def find_images(root: Path) -> Found:
    """List the images below a folder, without what systems leave behind; links are followed once."""
    images = sorted(_walk(root, (), {os.path.realpath(root)}))
    folders = sorted(item.name for item in os.scandir(root) if item.is_dir() and not is_left_over(item.name))
    return Found(root, tuple(images), tuple(folders))


def is_left_over(name: str) -> bool:
    """Say whether a file or folder is none of the user's: hidden, or left by a system."""
    return name.startswith(".") or name.casefold() in LEFT_BY_SYSTEMS


def _walk(folder: Path, parts: tuple[str, ...], seen: set[str]) -> Iterator[tuple[str, ...]]:
    for item in os.scandir(folder):
        if is_left_over(item.name):
            continue
        here = (*parts, item.name)
        if item.is_dir():
            real = os.path.realpath(item.path) if item.is_symlink() else ""
            if not real or real not in seen:
                yield from _walk(Path(item.path), here, seen | {real} if real else seen)
        elif Path(item.name).suffix.lower() in IMAGE_SUFFIXES and item.is_file():
            yield here


# ---------------------------------------------------------------- splits


def _splits_of(found: Found) -> dict[str, str]:
    """Return the folder of each split; nothing where the folders are classes."""
    named = {name: word for name in found.holding if (word := split_word(name))}
    if not {"train", "test"} & set(named.values()):
        return {}
    deep = {parts[0] for parts in found.images if len(parts) > 2}
    flat = [name for name in named if name not in deep]
    others = [name for name in found.holding if name not in named]
    if len(named) == 1 and others and (flat or _like_classes(found, next(iter(named)), others)):
        return {}  # a class that is called train, beside other classes
    if flat:
        raise KernelsimpError(
            f"{found.root}: {_list(flat)}: images without class folders, so they have no labels; "
            f"expected {flat[0]}/CLASS/IMAGE"
        )
    splits: dict[str, str] = {}
    for name, word in named.items():
        if word in splits:
            raise KernelsimpError(
                f"{found.root}: {splits[word]} and {name} both name the split {word}; move one of them away"
            )
        splits[word] = name
    if "test" not in splits:
        raise KernelsimpError(_no_test(found, splits))
    return {word: splits[word] for word in SPLIT_WORDS if word in splits}


def _no_test(found: Found, splits: dict[str, str]) -> str:
    empty = next((name for name in found.folders if split_word(name) == "test"), None)
    if empty:
        return f"{found.root}: no images in the folder {empty}; expected {empty}/CLASS/IMAGE"
    rename = f"rename {splits['val']} to test" if "val" in splits else ""
    advice = rename or "add a folder test, or give only class folders"
    return f"{found.root}: found {', '.join(found.folders)}; expected a folder test: {advice}"


def _like_classes(found: Found, name: str, others: Sequence[str]) -> bool:
    """Say whether the folders beside a lone split's are built as it is, with other folders in them."""
    inner = {parts[1] for parts in found.images if parts[0] == name and len(parts) > 2}
    beside = {parts[1] for parts in found.images if parts[0] in others and len(parts) > 2}
    return bool(beside) and not inner & beside


def _refuse_deeper(found: Found) -> None:
    """Raise where the only folder is no class but holds the splits, as an unpacked archive does."""
    if len(found.holding) != 1:
        return
    only = found.holding[0]
    inner = {parts[1] for parts in found.images if parts[0] == only and len(parts) > 2}
    words = {split_word(name) for name in inner}
    if {"train", "test"} <= words and not split_word(only):
        raise KernelsimpError(
            f"{found.root}: its only folder {only} holds the splits {_list(sorted(inner))}; "
            f"pass --data imagefolder:{found.root / only}"
        )


# ---------------------------------------------------------------- what was decided, in words


def _with_splits(found: Found, splits: dict[str, str]) -> FolderLayout:
    taken = set(splits.values())
    images = [parts for parts in found.images if parts[0] in taken and len(parts) > 2]
    classes = _sorted_names(parts[1] for parts in images)
    loose = sum(parts[0] in taken and len(parts) == 2 for parts in found.images)
    beside = [name for name in found.holding if name not in taken]
    empty = [name for name in found.folders if split_word(name) and name not in found.holding]
    warnings = [
        *([f"{loose} images beside the class folders of the splits are left out"] if loose else []),
        *([f"{_list(beside)} beside the splits: left out"] if beside else []),
        *([f"{_list(empty)}: named as a split, but without images"] if empty else []),
        *_suspicious_classes(classes),
    ]
    told = ", ".join(word if word == name else f"{word} ({name})" for word, name in splits.items())
    return FolderLayout(
        splits,
        tuple((parts[0], parts[1], "/".join(parts)) for parts in images),
        classes,
        f"{found.root}: splits {told}; {_count(classes)}",
        tuple(f"{found.root}: {text}" for text in warnings),
    )


def _without_splits(found: Found) -> FolderLayout:
    images = [parts for parts in found.images if len(parts) > 1]
    classes = _sorted_names(parts[0] for parts in images)
    loose = len(found.images) - len(images)
    empty = [name for name in found.folders if name not in found.holding]
    like = [name for name in classes if split_word(name)]
    inside = _sorted_names(
        parts[0] for parts in images if len(parts) > 2 and split_word(parts[1]) in ("train", "test")
    )
    warnings = [
        *([f"{loose} images beside the class folders are left out"] if loose else []),
        *([f"{_list(empty)}: no class, without images"] if empty else []),
        *([f"{_list(like)}: taken as a class, though named as a split"] if like else []),
        *([f"splits inside the classes {_list(inside)} are not kept apart"] if inside else []),
        *_suspicious_classes(classes),
    ]
    return FolderLayout(
        {},
        tuple(("", parts[0], "/".join(parts)) for parts in images),
        classes,
        f"{found.root}: no split folders, --split parts the images; {_count(classes)}",
        tuple(f"{found.root}: {text}" for text in warnings),
    )


def _suspicious_classes(classes: Sequence[str]) -> Iterator[str]:
    """Yield what makes class folders look like something else."""
    if len(classes) == 1:
        yield f"only one class folder, {classes[0]}: every label is 0"
    names: dict[str, str] = {}
    for name in classes:
        twin = names.setdefault(name.casefold(), name)
        if twin != name:
            yield f"{twin} and {name} differ in case alone and are two classes"


def _sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))


def _count(classes: Sequence[str]) -> str:
    return f"{len(classes):,} {'class' if len(classes) == 1 else 'classes'}: {_list(classes)}"


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return f"{', '.join(names[:MOST_NAMED])}{more}"
