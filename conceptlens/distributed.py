"""Sharing one fit between the processes that torchrun started; nothing when alone.

Every process runs the same script and holds its own rows; only sums travel between them::

    with distributed.together():
        NMF(25).fit(distributed.share_of(store))  # the same dictionary in every process

Outside `together`, or without torchrun, each function does what one process alone needs: nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_groups: list[Any] = []  # the group of the `together` that is running, if any


class PeerLostError(RuntimeError):
    """Another process of the group died or stopped answering; nothing can be summed any more."""


@contextmanager
def together(timeout: float = 300.0) -> Iterator[None]:
    """Let the fits inside be shared by all processes that torchrun started.

    A group that exists already is used; otherwise one is made (gloo, and NCCL for CUDA tensors)
    and ended with the block. A process that leaves the block by an exception so stops the others.
    "cuda" is the device of the process's own number from then on.

    Parameters
    ----------
    timeout : float
        Seconds to wait for a process that does not answer, before `PeerLostError`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not dist.is_initialized():
        yield
        return
    made = not dist.is_initialized()
    wait = timedelta(seconds=timeout)
    if made:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group(backend, timeout=wait)
    _groups.append(dist.group.WORLD if made else dist.new_group(timeout=wait))
    try:
        yield
    finally:
        _groups.pop()
        if made:
            dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """Let the fits inside be this process's own, though it is one of several."""
    groups, _groups[:] = _groups[:], []
    try:
        yield
    finally:
        _groups[:] = groups


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank(_groups[-1]) if _groups else 0


def world_size() -> int:
    """How many processes share the work."""
    return dist.get_world_size(_groups[-1]) if _groups else 1


def all_reduce_(tensor: Tensor) -> Tensor:
    """Replace `tensor` by its sum over all processes, in place, and return it.

    Raises
    ------
    PeerLostError
        If another process is gone.
    """
    if _groups:
        _talk(lambda: dist.all_reduce(tensor, group=_groups[-1]))
    return tensor


def broadcast_(tensor: Tensor) -> Tensor:
    """Replace `tensor` by the one that process 0 holds, in place, and return it.

    Raises
    ------
    PeerLostError
        If another process is gone.
    """
    if _groups:
        _talk(lambda: dist.broadcast(tensor, 0, group=_groups[-1]))
    return tensor


def barrier() -> None:
    """Wait until all processes have come here.

    Raises
    ------
    PeerLostError
        If another process is gone.
    """
    all_reduce_(torch.zeros(1))


def my_part(n: int) -> range:
    """Return the part of `n` things that is this process's: consecutive, even to within one.

    It is empty where there are too few for all.
    """
    return range(n * rank() // world_size(), n * (rank() + 1) // world_size())


def my_range(n: int) -> range:
    """Return what `my_part` does, of things of which each process must have one.

    Raises
    ------
    ValueError
        If there are fewer things than processes.
    """
    if n < world_size():
        raise ValueError(f"{n} rows or pictures cannot be shared by {world_size()} processes")
    return my_part(n)


def share_of(data: Any) -> Any:
    """Return this process's part of rows ``(n, C)`` or of a store's pictures; all when alone."""
    mine = my_range(len(data))
    if len(mine) == len(data):
        return data
    return StoreShare(data, mine) if hasattr(data, "vectors") else data[mine.start : mine.stop]


class StoreShare:
    """Some consecutive pictures of an `ActivationStore`, read like the store itself.

    Attributes
    ----------
    shape : tuple of int
        (pictures, P, C).
    """

    def __init__(self, store: Any, pictures: range) -> None:
        self._store, self._pictures = store, pictures
        self.shape = (len(pictures), *store.shape[1:])

    def __len__(self) -> int:
        return len(self._pictures)

    def vectors(self, batch_size: int, shuffle: bool = True, seed: int = 0) -> Iterator[Tensor]:
        """Iterate once over the share's vectors, as `ActivationStore.vectors` does."""
        yield from self._store.vectors(batch_size, shuffle, seed, pictures=self._pictures)


def _talk(collective: Callable[[], Any]) -> None:
    try:
        collective()
    except RuntimeError as error:
        raise PeerLostError(
            f"process {rank()} of {world_size()} lost another one, which died or did not answer in "
            "time; see its output for why. Start all again: a fit with a checkpoint goes on "
            "from there"
        ) from error
