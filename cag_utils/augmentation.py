"""What a training is fed: frames in random order, each changed by draws of its own."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from cag_utils.networks import FrameSet


def augment(pictures: Tensor, policy: nn.Module) -> Tensor:
    """Apply one random operation of TrivialAugmentWide to each picture on its own.

    The policy shears, shifts, turns (up to 135 degrees) and changes grey levels; it never
    mirrors. A mirrored left coronary looks like a right one, so a flip would teach wrong sides.

    Args:
        pictures: (n, 1, px, px) uint8.
        policy: `v2.TrivialAugmentWide()`; draws from torch's global generator.

    Returns:
        Same shape and type.

    Source:
        CAG-VLM section 3.3; Mueller and Hutter, ICCV 2021.
    """
    return torch.stack([policy(picture) for picture in pictures])


def stream(*words: int) -> int:
    """Return a seed that depends on all words and nothing else, 0 to 2^63 - 1."""
    keys = len(words), *words  # as zeros at the end would not count
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> np.uint64(1))


class AugmentedFrames(Dataset):
    """Frames whose augmentation is a function of seed, epoch and index alone.

    So neither the number of loader workers nor of processes, nor a restart in between, changes
    what a network sees.

    Args:
        data: The frames.
        seed: Of the training.
    """

    def __init__(self, data: FrameSet, seed: int):
        self.data, self.seed, self.policy = data, seed, v2.TrivialAugmentWide()

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return (1, px, px) uint8 and the class of frame `key[1]` in epoch `key[0]`."""
        pictures, targets = self.__getitems__([key])
        return pictures[0], targets[0]

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Return (b, 1, px, px) uint8 and (b,) int64; the global generator stays as it was."""
        before = torch.get_rng_state()
        try:
            pictures = torch.stack([self._draw(epoch, index) for epoch, index in keys])
        finally:
            torch.set_rng_state(before)
        return pictures, self.data.targets[[index for _, index in keys]]

    def _draw(self, epoch: int, index: int) -> Tensor:
        # not torch.manual_seed: it seeds the GPUs' generators too, and takes longer than the change
        torch.default_generator.manual_seed(stream(self.seed, epoch, index))
        return self.policy(self.data.pictures[index])


def epoch_batches(n: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Return every index below `n` once, shuffled, in batches; the last one may be smaller."""
    generator = torch.Generator().manual_seed(stream(seed, epoch))
    return [part.tolist() for part in torch.randperm(n, generator=generator).split(batch_size)]


class BatchLoader:
    """Draws batches, ahead in other processes if there are workers; these live as long as it.

    Args:
        frames: What to draw from.
        n_workers: Loader processes; 0 draws in this one.
        pin: Page-locked memory, for a faster way to a GPU.
    """

    def __init__(self, frames: AugmentedFrames, n_workers: int, pin: bool):
        self._keys: list[list[tuple[int, int]]] = []
        self._loader = DataLoader(
            frames,
            batch_sampler=self._keys,
            num_workers=n_workers,
            collate_fn=_as_drawn,
            pin_memory=pin,
            persistent_workers=n_workers > 0,
            generator=torch.Generator(),  # not the global one, which is the network's
        )

    def epoch(
        self, batches: Sequence[Sequence[int]], epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield augmented batches: ((b, 1, px, px) uint8, (b,) int64).

        Args:
            batches: Indices of each batch.
            epoch: Decides the draws, with the seed of the frames.
        """
        self._keys[:] = [[(epoch, index) for index in batch] for batch in batches]
        return iter(self._loader)


def _as_drawn(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch
