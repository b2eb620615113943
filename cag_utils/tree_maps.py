"""Where in a picture the coronary tree lies: what a network in training draws besides its answer.

"How much of the tree can be seen" is one number, and a small network learns it slowly. A map of
what can be seen and what cannot is hundreds of numbers a picture, and their sum is that one. The
head that draws it is thrown away after training.
"""

import numpy as np
import torch
from timm.models import ConvNeXt
from torch import Tensor, nn

from cag_utils.phantom.pose import Pose
from cag_utils.phantom.tree import Tree

CELLS = 28  # a side; 8 pixels of 224
STAGE = 2  # of the network's four: 16 pixels a step, drawn twice as fine
FULL = 80.0  # a cell with 1/80 of the tree counts as 1 - 1/e full; choice


def map_tree(tree: Tree, pose: Pose, seen: np.ndarray, size_px: int) -> np.ndarray:
    """Share out the open main tree, by calibre, over the cells of a picture.

    Args:
        tree: The tree of n points.
        pose: Positions in t frames; taken in the middle of the pulse.
        seen: (t, n) bool, from `labels.FrameTruth`.
        size_px: Side of the picture, pixels.

    Returns:
        (t, 2, 28, 28) float16: the share that can be seen in each cell, and the share that lies
        there unseen. Together at most 1 a frame; less if the tree reaches beyond the picture.
    """
    weight = np.where(tree.main & tree.open, tree.radius, 0.0)
    weight = weight / weight.sum()
    maps = np.empty((len(seen), 2, CELLS, CELLS), np.float16)
    for i, shown in enumerate(seen):
        u, v = pose.u[i] + 0.5 * pose.du[i], pose.v[i] + 0.5 * pose.dv[i]
        inside = (u >= 0) & (u < size_px) & (v >= 0) & (v < size_px)
        row, column = ((w[inside] / size_px * CELLS).astype(int) for w in (v, u))
        for k, chosen in enumerate((shown[inside], ~shown[inside])):
            sums = np.bincount(row * CELLS + column, weight[inside] * chosen, CELLS**2)
            maps[i, k] = sums.reshape(CELLS, CELLS)
    return maps


class Drawing(nn.Module):
    """A ConvNeXt that answers and, beside its answer, draws the tree.

    `forward` gives (n, answers + 2 * cells * cells): the network's own outputs, then the map's
    logits, flattened; cells is an eighth of the picture's side.
    """

    def __init__(self, network: ConvNeXt):
        """Put a drawing head, 1 x 1, on the network's third stage; the network is not copied."""
        super().__init__()
        self.network = network
        width = network.feature_info[STAGE]["num_chs"]
        self.draw = nn.Sequential(nn.Conv2d(width, 8, 1), nn.PixelShuffle(2))

    def forward(self, pictures: Tensor) -> Tensor:
        """Answer and draw."""
        net = self.network
        x = net.stem(pictures)
        for number, stage in enumerate(net.stages):
            x = stage(x)
            if number == STAGE:
                drawn = self.draw(x)
        answers = net.forward_head(net.norm_pre(x))
        return torch.cat([answers, drawn.flatten(1)], 1)


def map_loss(drawn: Tensor, maps: Tensor, plain: Tensor) -> Tensor:
    """Return the cross-entropy of drawn and true maps.

    A picture that was cropped or turned no longer fits its map and has no part in it.

    Args:
        drawn: (n, 2 * cells * cells) logits, for any number of cells.
        maps: (n, 2 * 28 * 28) shares, from `map_tree`.
        plain: (n,) bool, pictures that are as they were drawn.
    """
    cells = round((drawn.shape[1] / 2) ** 0.5)
    wanted = maps.float().view(-1, 2, CELLS, CELLS)
    if cells != CELLS:
        shape = (cells, cells)
        wanted = nn.functional.interpolate(wanted, shape, mode="area") * (CELLS / cells) ** 2
    full = 1 - torch.exp(-FULL * wanted)
    away = nn.functional.binary_cross_entropy_with_logits(
        drawn, full.flatten(1), reduction="none"
    ).mean(1)
    return (away * plain).sum() / plain.sum().clamp(min=1)
