"""What a stenosis does to the flow behind it: slower, none, or backwards through collaterals."""

from dataclasses import replace

import numpy as np

from cag_utils.phantom.tree import Tree

# Extra way behind a stenosis, per mm: at 90 % contrast takes 1.5 times as long, at 99 % 3.5 times
# (TIMI 2, seen as filling that is clearly late); none up to 75 %. Choice.
SLOWING = {90: 0.5, 99: 2.5}
DETOUR_MM = (20.0, 80.0)  # through collaterals, in mm of normal flow; choice
BACKWARDS = 1.5  # mm of normal flow for a mm filled backwards; choice


def downstream(tree: Tree, index: int) -> np.ndarray:
    """Return which points are fed through one centreline point.

    Args:
        tree: The tree.
        index: Centreline point.

    Returns:
        (n,) bool: points after it on its branch, and every branch that leaves from one of them.
    """
    fed = (tree.branch == tree.branch[index]) & (np.arange(len(tree.branch)) > index)
    for branch, attached in enumerate(tree.attached):  # parents come before their branches
        if attached >= 0 and fed[attached]:
            fed |= tree.branch == branch
    return fed


def fill_backwards(rng: np.random.Generator, tree: Tree, index: int) -> Tree:
    """Let the bed behind an occlusion fill from its far end, by collaterals of the same side.

    Contrast first runs to the ends of the open main vessels (at least as far as the bed's own end
    is), then takes a detour, enters the bed at its far end and runs back towards the occlusion.

    Args:
        rng: Generator; draws the detour.
        tree: The tree with its occlusion.
        index: Centreline point of the occlusion.

    Returns:
        The tree with a finite `delay_mm` behind the occlusion; `open` stays False there.
    """
    bed = downstream(tree, index)
    if not bed.any():  # the lesion sits at the very end of its vessel
        return tree
    donors = tree.main & tree.open
    far = tree.path_mm[bed].max()
    source = max(far, float((tree.path_mm + tree.delay_mm)[donors].max()))
    back = BACKWARDS * (far - tree.path_mm)
    way = source + rng.uniform(*DETOUR_MM) + back
    return replace(tree, delay_mm=np.where(bed, way - tree.path_mm, tree.delay_mm))
