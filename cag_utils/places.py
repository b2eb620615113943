"""A helper task for image towers: say where each coronary segment runs, cell by cell."""

import math

import numpy as np
import torch
from torch.nn import functional

from cag_utils.embedders import Embedder
from cag_utils.stills import N_SEGMENTS, Stills, patch_labels
from cag_utils.tower_task import NARROWED

RARE = torch.tensor(5.0)  # a cell holds few of the 15 segments: what is there counts more


class PlaceTask:
    """Ask each cell of an image tower's last grid which segments run there, and if one is narrowed.

    A picture and a sentence say too little about each other for a tower that starts from noise:
    after 200 steps of contrast alone, MedCLIP's twin found the right side in 0.65 of pictures. The
    head is thrown away afterwards.

    Args:
        embedder: A tiny one; its tower's last layer norm is listened to.
        stills: Supply the maps.
    """

    def __init__(self, embedder: Embedder, stills: Stills):
        model = embedder.towers.module
        is_vit = hasattr(model, "visual")
        last = model.visual.trunk.norm if is_vit else model.vision_model.model.layernorm
        width = last.normalized_shape[0]
        self.head = torch.nn.Linear(width, N_SEGMENTS + 1).to(embedder.device)
        self.stills, self.tokens = stills, None
        self._hook = last.register_forward_hook(self._keep)

    def _keep(self, module, inputs, output) -> None:
        self.tokens = output

    def loss(self, index: np.ndarray) -> torch.Tensor:
        """Return the mean cross-entropy for the pictures that the tower read last, nats.

        Args:
            index: Which stills those were.
        """
        side = math.isqrt(self.tokens.shape[1])
        wanted = place_targets(self.stills, index, side).to(self.tokens.device)
        logits = self.head(self.tokens.float())
        return functional.binary_cross_entropy_with_logits(logits, wanted, pos_weight=RARE)

    def close(self) -> None:
        """Stop listening."""
        self._hook.remove()


def place_targets(stills: Stills, index: np.ndarray, side: int) -> torch.Tensor:
    """Return what each cell of a `side` x `side` grid over the pictures holds.

    Args:
        stills: The pictures.
        index: (B,) which stills.
        side: Cells a side.

    Returns:
        (B, side * side, 16) float32, 0 or 1: AHA segments 1 to 15, then any narrowing.
    """
    labels = patch_labels(stills, index, side)
    found = labels.segment[..., None] == np.arange(1, N_SEGMENTS + 1)
    taken = labels.narrowed[..., None] >= NARROWED
    return torch.from_numpy(np.concatenate([found, taken], -1).astype(np.float32))
