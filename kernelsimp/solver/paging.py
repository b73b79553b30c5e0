"""Memory that passes hold while they wait, on a shelf, and back as soon as an operation asks for it.

What a pass has made is known by its storages, so that views go with their owner and the network's own code
needs no change: the storage of a tensor is emptied, and filled again before anything reads it.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from kernelsimp.memory import Room, give_back
from kernelsimp.shelf import Shelf

LEAST = 1 << 20
"""Bytes of a storage below which it stays where it is."""


class Pager:
    """Storages by their owner: `room.kept` bytes of those that wait stay in memory, the others on the shelf.

    >>> pager, owner = Pager(Room(bytes=0)), object()
    >>> tensor = torch.ones(1 << 19)
    >>> pager.note(owner, [tensor])
    >>> pager.park(owner)
    >>> tensor.untyped_storage().nbytes()
    0
    >>> pager.recall([tensor])
    >>> float(tensor.sum())
    524288.0
    """

    def __init__(self, room: Room, *models: nn.Module) -> None:
        self.limit, self.shelf = room.kept, Shelf(0, room.folder)
        tensors = [item for model in models for item in (*model.parameters(), *model.buffers())]
        self.fixed = {_key(item) for item in tensors}
        self.made: dict[object, dict[int, StorageWeakRef]] = {}
        self.away: dict[int, int] = {}
        self.held: dict[object, int] = {}

    def note(self, owner: object, values: Any) -> None:
        """Remember what an operation of `owner` has put out."""
        made = self.made.setdefault(owner, {})
        for item in tree_leaves(values):
            if isinstance(item, Tensor) and item.layout == torch.strided:
                storage = item.untyped_storage()
                key = storage._cdata
                if storage.nbytes() < LEAST or key in self.fixed or key in made:
                    continue
                if storage.resizable():
                    made[key] = StorageWeakRef(storage)  # type: ignore[no-untyped-call]

    def recall(self, values: Iterable[object]) -> None:
        """Bring back what is away of `values`, nested tensors."""
        if not self.away:
            return
        for item in tree_leaves(values):
            if isinstance(item, Tensor) and item.layout == torch.strided and _key(item) in self.away:
                storage = item.untyped_storage()
                storage.resize_(self.away.pop(storage._cdata))
                _bytes_of(storage).copy_(self.shelf.get(storage._cdata))
                self.shelf.drop(storage._cdata)

    def park(self, owner: object) -> None:
        """Let `owner` wait: what it still holds goes to the shelf, unless there is room for it."""
        made = self.made.get(owner, {})
        for key in [key for key, ref in made.items() if ref.expired()]:  # type: ignore[no-untyped-call]
            del made[key]
            if self.away.pop(key, None) is not None:
                self.shelf.drop(key)
        here = {key: ref for key, ref in made.items() if key not in self.away}
        storages = {key: torch.UntypedStorage._new_with_weak_ptr(ref.cdata) for key, ref in here.items()}
        size = sum(item.nbytes() for item in storages.values() if item is not None)
        others = sum(self.held.values()) - self.held.get(owner, 0)
        comes = owner not in self.held
        self.held[owner] = size if others + size <= self.limit else 0
        if self.held[owner]:
            if comes:
                give_back()  # a pass that comes from the start has left much behind
            return
        for key, storage in storages.items():
            if storage is not None and storage.nbytes():
                self.shelf.put(key, _bytes_of(storage).clone())  # what numpy has read cannot be emptied
                self.away[key] = storage.nbytes()
                storage.resize_(0)
        give_back()  # what a thread has freed stays with it, tens of megabytes each

    def forget(self, owner: object) -> None:
        """Drop what an owner that is done has left."""
        for key in self.made.pop(owner, {}):
            if self.away.pop(key, None) is not None:
                self.shelf.drop(key)
        self.held.pop(owner, None)


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    """Return a storage as a tensor of bytes that shares it."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
