"""Batches of cases of like length, so that little of a batch is padding."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

POOL = 8  # batches' worth of cases that are sorted by length together: the rest is chance


class LengthBuckets(Sampler[int]):
    """Every case once an epoch, in an order that depends on the seed and the epoch alone.

    So a resumed run goes on with the very same batches, and so do several processes, which take
    turns at the batches. Cases are shuffled, sorted by length within pools, cut into batches, and
    the batches shuffled; a last, smaller batch stays last, because the loader cuts every
    `batch_size` indices.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        """Set the order of epoch 0.

        Args:
            lengths: Tokens of each case.
            batch_size: Cases a batch of one process.
            seed: Of the order.

        Raises:
            ValueError: `batch_size` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        self.lengths = np.asarray(lengths)
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; the Trainer calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        """Yield the cases' indices."""
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self))
        n_whole = len(self) // self.batch_size * self.batch_size
        whole, rest = order[:n_whole], order[n_whole:]
        pool = POOL * self.batch_size
        pools = [whole[i : i + pool] for i in range(0, n_whole, pool)]
        ordered = [p[np.argsort(self.lengths[p], kind="stable")] for p in pools]
        batches = np.concatenate([*ordered, rest[:0]]).reshape(-1, self.batch_size)
        yield from rng.permutation(batches).ravel().tolist()
        yield from rest.tolist()


def padding_share(lengths: Sequence[int], batch_size: int) -> float:
    """Return the share of tokens that are padding when cases are batched in this order.

    Args:
        lengths: Tokens of each case, in the order in which they are batched.
        batch_size: Cases a batch; every row is as long as its batch's longest.

    Returns:
        0 to below 1.

    Raises:
        ValueError: There is no case.
    """
    if not len(lengths):
        raise ValueError("no lengths: there is no batch to pad")
    batches = [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]
    filled = sum(max(batch) * len(batch) for batch in batches)
    return 1 - sum(lengths) / filled
