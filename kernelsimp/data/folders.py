"""Images in folders: DIR/CLASS/IMAGE, or DIR/train/CLASS/IMAGE with val and test beside train.

The label of an image is the place of its class folder in sorted order, over all splits together; `layout`
says which folders are splits and which are classes.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from kernelsimp.data.images import is_read_dark
from kernelsimp.data.layout import FolderLayout, read_layout
from kernelsimp.data.splits import FoundSplits, Request, Split, split_by_hash
from kernelsimp.data.stores import FileStore
from kernelsimp.errors import KernelsimpError

LOOKED_AT = 8
"""Pictures that are looked at before any is read."""


def load_folder(request: Request) -> FoundSplits:
    """List the images of a folder; folders train, val, test are the splits, else a hash of the path splits.

    Raises `KernelsimpError` where there is no such folder, and as `read_layout` does.
    """
    root = Path(request.where).expanduser()
    if not request.where or not root.is_dir():
        found = "no folder named" if not request.where else f"{root} is no folder"
        raise KernelsimpError(f"--data imagefolder: {found}; expected imagefolder:DIR")
    layout = _with_dark(root, read_layout(root))
    store = _store(root, layout)
    if layout.splits:
        return _ready(layout, store, request)
    train, val, test = split_by_hash(store.files, request.split, request.seed)
    left_out = len(store.files) - train.size - val.size - test.size
    told = f"--split {request.split} leaves {left_out} of {len(store.files)} images out"
    splits = [Split(store, part, request.geometry) for part in (train, val, test)]
    warnings = (*layout.warnings, *((told,) if left_out else ()))
    notes = (layout.note,)
    return FoundSplits(splits[2], splits[0], splits[1], len(layout.classes), warnings, notes, parted=True)


def _with_dark(root: Path, layout: FolderLayout) -> FolderLayout:
    """Add a warning where pictures of 16 bits, by a look at a few, hold 8 bits."""
    files = [file for _, _, file in layout.images]
    looked = files[:: max(1, len(files) // LOOKED_AT)][:LOOKED_AT]
    dark = [file for file in looked if is_read_dark(root / file)]
    if not dark or len(dark) < len(looked) / 2:
        return layout
    told = (
        f"{root}: pictures of 16 bits hold nothing above 255 ({dark[0]}), so they are read as almost black; "
        "save them with 8 bits"
    )
    return replace(layout, warnings=(*layout.warnings, told))


def _ready(layout: FolderLayout, store: FileStore, request: Request) -> FoundSplits:
    """Take the splits that the folders make; a missing val is carved out of train later."""
    folders = np.array([folder for folder, _, _ in layout.images])
    splits = {
        word: Split(store, np.flatnonzero(folders == folder), request.geometry)
        for word, folder in layout.splits.items()
    }
    return FoundSplits(
        splits["test"],
        splits.get("train"),
        splits.get("val"),
        len(layout.classes),
        layout.warnings,
        (layout.note,),
    )


def _store(root: Path, layout: FolderLayout) -> FileStore:
    number = {name: i for i, name in enumerate(layout.classes)}
    labels = torch.tensor([number[name] for _, name, _ in layout.images], dtype=torch.int64)
    return FileStore(root, tuple(file for _, _, file in layout.images), labels)
