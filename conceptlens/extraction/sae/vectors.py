"""The rows that an autoencoder learns from: a tensor or array, or a store read as a stream."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..base import check_rows

# Mean and scale are those of this many rows, of the first epoch's first.
SAMPLE = 2**16


class Vectors:
    """Rows ``(n, C)`` in batches, in another order each epoch.

    Attributes
    ----------
    shape : tuple of int
        (n, C).
    dtype : torch.dtype
        float32, or float64 if the rows are.
    device : torch.device
        Where the rows are.
    """

    def __init__(self, a: Any) -> None:
        self.store = a if hasattr(a, "vectors") else None
        if self.store is None:
            self.rows = check_rows(a)
            self.shape = (self.rows.shape[0], self.rows.shape[1])
            self.dtype, self.device = self.rows.dtype, self.rows.device
        else:
            n, positions, channels = self.store.shape
            self.shape = (n * positions, channels)
            self.dtype, self.device = torch.float32, torch.device("cpu")

    def batches(self, batch_size: int, seed: int) -> Iterator[Tensor]:
        """Iterate once over all rows, shuffled by `seed`, the last batch smaller."""
        if self.store is not None:
            yield from self.store.vectors(batch_size, shuffle=True, seed=seed)
            return
        # The order in which a store of one file gives the same rows.
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.rows), generator=generator).to(self.device)
        for part in order.split(batch_size):
            yield self.rows[part]

    def moments(self, seed: int) -> tuple[Tensor, float, float]:
        """The mean ``(C,)``, E‖a‖² and E‖a − mean‖², of a sample.

        Raises
        ------
        ValueError
            If the rows do not vary.
        """
        total = torch.zeros(self.shape[1], dtype=torch.float64)
        squares, n = 0.0, 0
        for batch in self.batches(512, seed):
            rows = batch.cpu().double()
            total += rows.sum(0)
            squares += float(rows.square().sum())
            n += len(rows)
            if n >= SAMPLE:
                break
        mean, power = total / n, squares / n
        variance = power - float(mean.square().sum())
        if variance <= 1e-9 * power:
            raise ValueError("all rows are the same: there is nothing to learn from them")
        return mean.to(self.dtype), power, variance

    @cached_property
    def fingerprint(self) -> str:
        """Tell these rows from others, by content."""
        digest = hashlib.sha256()
        if self.store is None:
            digest.update(self.rows.cpu().contiguous().numpy().data)
        else:
            digest.update(json.dumps([self.store.key, self.store.shape]).encode())
        return digest.hexdigest()
