"""Domain randomisation: what other laboratories, readers and exports do to the same picture.

A network that has only met the phantom must not rely on how the phantom's pictures are cut, scaled,
sharpened or stored. Nothing here mirrors: a mirrored left coronary looks like a right one.
"""

import math

import torch
from torch import Tensor, nn

# All ranges: choice, wider than what public angiograms show.
ZOOM, ASPECT, SHIFT = (0.72, 1.30), 0.08, 0.12  # factor, log spread, share of the side
TURN_DEG = 9.0
GAMMA, CONTRAST, BRIGHTNESS = 0.35, 0.30, 18.0  # log spread, log spread, grey levels
NOISE_GREY = 9.0
MARKS = 6  # strokes of a burnt-in text


def randomise(pictures: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Change every picture of a batch on its own.

    Crop or shrink, turn and shift; shading; display curve; blur or sharpening; noise; collimator;
    burnt-in text and an occluding patch in some.

    Args:
        pictures: (n, 1, px, px) uint8.
        generator: Torch's global one if None.

    Returns:
        (n, 1, px, px) float32 in [0, 255].
    """
    draw = _Draw(len(pictures), generator)
    grey = _warp(pictures.float(), draw)
    grey = _shade(grey, draw)
    grey = _focus(grey, draw)
    grey = grey + _noise(grey, draw)
    grey = _collimate(grey, draw)
    grey = _overlay(grey, draw)
    return grey.clamp(0, 255)


class _Draw:
    """Random numbers, one column a picture, shaped to broadcast over (n, 1, px, px)."""

    def __init__(self, count: int, generator: torch.Generator | None):
        self.count, self.generator = count, generator

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        u = torch.rand(self.count, *(shape or (1, 1, 1)), generator=self.generator)
        return low + (high - low) * u

    def normal(self, spread: float, *shape: int) -> Tensor:
        return spread * torch.randn(self.count, *(shape or (1, 1, 1)), generator=self.generator)

    def chance(self, share: float) -> Tensor:
        """(n, 1, 1, 1) ones in that share of the pictures, else zeros."""
        return (self.uniform(0, 1) < share).float()


def _warp(grey: Tensor, draw: _Draw) -> Tensor:
    """Zoom, stretch, turn and shift; what comes in from outside is black or the border's grey."""
    zoom = draw.uniform(math.log(ZOOM[0]), math.log(ZOOM[1]), 1).exp()
    stretch = draw.normal(ASPECT, 1).exp()
    angle = draw.normal(math.radians(TURN_DEG), 1)
    across, down = zoom * stretch, zoom / stretch
    move = 2 * draw.uniform(-SHIFT, SHIFT, 2)
    rows = [
        torch.cat([across * angle.cos(), -down * angle.sin(), move[:, :1]], 1),
        torch.cat([across * angle.sin(), down * angle.cos(), move[:, 1:]], 1),
    ]
    grid = nn.functional.affine_grid(torch.stack(rows, 1), list(grey.shape), align_corners=False)
    inside = nn.functional.grid_sample(grey, grid, padding_mode="border", align_corners=False)
    seen = (grid.abs().amax(-1) <= 1).float()[:, None]
    return inside * (1 - draw.chance(0.4) * (1 - seen))


def _shade(grey: Tensor, draw: _Draw) -> Tensor:
    """A smooth field of brightness, then another display curve, contrast and level."""
    field = nn.functional.interpolate(
        draw.normal(14.0, 1, 4, 4), size=grey.shape[-2:], mode="bicubic", align_corners=False
    )
    grey = (grey + draw.chance(0.5) * field).clamp(0, 255)
    grey = 255 * (grey / 255).clamp(min=1e-4) ** draw.normal(GAMMA).exp()
    mean = grey.mean((2, 3), keepdim=True)
    return mean + (grey - mean) * draw.normal(CONTRAST).exp() + draw.normal(BRIGHTNESS)


def _focus(grey: Tensor, draw: _Draw) -> Tensor:
    """Blur some pictures, sharpen others."""
    soft = grey
    for _ in range(2):
        soft = nn.functional.avg_pool2d(nn.functional.pad(soft, (1, 1, 1, 1), "replicate"), 3, 1)
    return grey + draw.uniform(-0.9, 1.3) * draw.chance(0.6) * (grey - soft)


def _noise(grey: Tensor, draw: _Draw) -> Tensor:
    """Fine or coarse grain."""
    height, width = grey.shape[-2:]
    fine = draw.normal(1.0, 1, height, width)
    coarse = draw.normal(1.5, 1, height // 2, width // 2)
    coarse = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    share = draw.uniform(0, 1)
    return draw.chance(0.6) * draw.uniform(0, NOISE_GREY) * (share * fine + (1 - share) * coarse)


def _collimate(grey: Tensor, draw: _Draw) -> Tensor:
    """Shut the picture from some sides, dark or grey."""
    size = grey.shape[-1]
    at = (torch.arange(size) + 0.5) / size
    edges = draw.uniform(0, 0.12, 4) * (draw.uniform(0, 1, 4) < 0.5)
    open_ = [
        torch.sigmoid((position - edges[:, i : i + 1]) * size)
        for i, position in enumerate((at, 1 - at, at, 1 - at))
    ]
    light = (open_[2] * open_[3])[:, None, :, None] * (open_[0] * open_[1])[:, None, None, :]
    shut = draw.chance(0.25)
    return grey * (1 - shut) + shut * (grey * light + draw.uniform(0, 70) * (1 - light))


def _overlay(grey: Tensor, draw: _Draw) -> Tensor:
    """Burnt-in strokes near a border, and a flat patch somewhere, in some pictures."""
    grey, size = grey.clone(), grey.shape[-1]
    written, patched = draw.uniform(0, 1, 1)[:, 0] < 0.15, draw.uniform(0, 1, 1)[:, 0] < 0.15
    # per picture: line, first stroke, light, then a length and a height for each stroke
    strokes = draw.uniform(0, 1, 3 + 2 * MARKS)
    patches = draw.uniform(0, 1, 5)
    for i in written.nonzero()[:, 0].tolist():
        line, start, light, *sizes = strokes[i].tolist()
        top = int(size * (0.2 * line if line < 0.5 else 0.8 + 0.2 * line - 0.02))
        for k in range(MARKS):
            left = int(size * (0.7 * start + 0.06 * k))
            wide, high = (
                1 + int(0.045 * size * sizes[2 * k]),
                1 + int(0.03 * size * sizes[2 * k + 1]),
            )
            grey[i, 0, top : top + high, left : left + wide] = 150 + 105 * light
    for i in patched.nonzero()[:, 0].tolist():
        top, left, high, wide, light = patches[i].tolist()
        top, left = int(0.85 * size * top), int(0.85 * size * left)
        high, wide = (int(size * (0.05 + 0.17 * extent)) for extent in (high, wide))
        grey[i, 0, top : top + high, left : left + wide] = 255 * light
    return grey
