"""How an embedder looks at a picture: square, side, grey or colour, mean and SD."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image


@dataclass(frozen=True)
class Pixels:
    """One embedder's preprocessing; bicubic throughout.

    Attributes:
        side: Of the square the network reads, pixels.
        mean: Subtracted from levels in 0 to 1, the same for the three channels.
        sd: Divides what is left.
        pad: Whether a picture is padded to a black square of at least `side`; else it is squashed.
        grey: Whether colours are dropped first; the three channels are then equal.
    """

    side: int
    mean: float = 0.5
    sd: float = 0.5
    pad: bool = False
    grey: bool = False

    def fit(self, picture: Image.Image | np.ndarray) -> Image.Image:
        """Return the picture as `side` x `side` RGB.

        Args:
            picture: A PIL image, or a (H, W) or (H, W, 3) uint8 array.

        Raises:
            ValueError: An array is not uint8, or of another shape.
        """
        if isinstance(picture, np.ndarray):
            if picture.dtype != np.uint8 or picture.ndim not in (2, 3):
                raise ValueError(
                    "a picture is (H, W) or (H, W, 3) uint8, got "
                    f"{picture.shape} {picture.dtype}: window it to 0..255 first"
                )
            picture = Image.fromarray(picture)
        picture = picture.convert("L") if self.grey else picture.convert("RGB")
        if self.pad:
            picture = self._padded(picture)
        size = (self.side, self.side)
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        return picture.convert("RGB")

    def _padded(self, picture: Image.Image) -> Image.Image:
        width, height = picture.size
        side = max(self.side, width, height)  # MedCLIP pads what is small, it does not enlarge
        square = Image.new(picture.mode, (side, side))
        square.paste(picture, ((side - width) // 2, (side - height) // 2))
        return square

    def tensor(self, fitted: Sequence[Image.Image | np.ndarray]) -> torch.Tensor:
        """Turn fitted pictures into (n, 3, side, side) float32 network input.

        Args:
            fitted: What `fit` returned, or (side, side[, 3]) uint8 arrays of the same.
        """
        levels = np.stack([np.asarray(x) for x in fitted])
        pixels = (torch.from_numpy(levels).float() / 255 - self.mean) / self.sd
        if pixels.ndim == 3:
            return pixels[:, None].expand(-1, 3, -1, -1)
        return pixels.permute(0, 3, 1, 2)
