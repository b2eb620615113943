"""The embedders behind VLScore: pictures and texts to vectors, whichever network is loaded.

`load_embedder("medclip", "real")` and `load_embedder("medclip", "tiny")` differ in where weights
come from; everything after that is the same code. ConceptCLIP and MedCLIP read English only, and
all three cut long texts without a word: ask `Embedder.truncated`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cag_utils.embedder_entries import (
    EMBEDDERS,
    SIZES,
    WEIGHTS,
    Entry,
    Towers,
    check_reachable,
)
from cag_utils.params import check_choice
from cag_utils.pixels import Pixels
from cag_utils.shipped import check_phantom

__all__ = ["EMBEDDERS", "Embedder", "load_embedder"]


@dataclass(frozen=True)
class Embedder:
    """A loaded embedder.

    Attributes:
        name: Its key in `EMBEDDERS`.
        size: tiny or real.
        entry: Its registry entry.
        towers: Its network.
        device: Where it runs.
    """

    name: str
    size: str
    entry: Entry
    towers: Towers
    device: str

    @property
    def pixels(self) -> Pixels:
        """How it looks at a picture."""
        return self.entry.pixels[self.size]

    @torch.inference_mode()
    def images(
        self, pictures: Sequence[Image.Image | np.ndarray], batch_size: int = 32
    ) -> np.ndarray:
        """Embed pictures, one at a time or many: the vectors are the same.

        Args:
            pictures: PIL images or uint8 arrays, any size, grey or colour.
            batch_size: Pictures a pass.

        Returns:
            (n, d) float64, as the network gives them: unit vectors for MedCLIP and ConceptCLIP.

        Raises:
            ValueError: No picture, or one that is not uint8.
        """
        if not len(pictures):
            raise ValueError("no pictures to embed")
        vectors = []
        for start in range(0, len(pictures), batch_size):
            fitted = [self.pixels.fit(x) for x in pictures[start : start + batch_size]]
            vectors.append(self.towers.image(self.pixels.tensor(fitted).to(self.device)))
        return torch.cat(vectors).double().cpu().numpy()

    @torch.inference_mode()
    def texts(self, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """Embed texts; what exceeds the context is cut, see `truncated`.

        Args:
            texts: Any number, at least one.
            batch_size: Texts a pass.

        Returns:
            (n, d) float64.

        Raises:
            ValueError: No text, or an empty one: nothing was said that could be close to anything.
        """
        cleaned = [self.towers.clean(text) for text in texts]
        if not cleaned or not all(text.strip() for text in texts):
            raise ValueError("an empty text has no embedding: leave it out and count it")
        vectors = []
        for start in range(0, len(cleaned), batch_size):
            batch = self.tokens(cleaned[start : start + batch_size])
            vectors.append(self.towers.text(*(part.to(self.device) for part in batch)))
        return torch.cat(vectors).double().cpu().numpy()

    def tokens(self, cleaned: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and mask, (n, L) long each, of cleaned texts."""
        batch = self.towers.tokenizer(
            cleaned,
            padding="max_length" if self.entry.fixed_length else "longest",
            truncation=True,
            max_length=self.entry.context,
            return_tensors="pt",
            return_attention_mask=True,
        )
        return batch["input_ids"], batch["attention_mask"]

    def truncated(self, texts: Sequence[str]) -> np.ndarray:
        """Tell which texts are longer than the context and lose their end.

        Returns:
            (n,) bool.
        """
        cleaned = [self.towers.clean(text) for text in texts]
        counts = [len(self.towers.tokenizer(x, truncation=False)["input_ids"]) for x in cleaned]
        return np.array(counts, dtype=int) > self.entry.context


def load_embedder(
    name: str, size: str = "tiny", device: str | None = None, twins: Path = WEIGHTS
) -> Embedder:
    """Load an embedder in evaluation mode.

    Args:
        name: A key of `EMBEDDERS`.
        size: `real` for the published checkpoint, `tiny` for its twin.
        device: A torch device; the GPU if there is one, else the CPU.
        twins: Folder that holds the tiny twins' folders; the shipped ones by default.

    Raises:
        ValueError: Unknown name or size.
        PermissionError: The checkpoint is gated and this machine has no access.
        ConnectionError: The checkpoint is neither on this machine nor reachable.
        FileNotFoundError: MedCLIP's weights were not downloaded, or a twin's folder is missing.
    """
    entry = EMBEDDERS[check_choice("embedder", name, EMBEDDERS)]
    check_choice("size", size, SIZES)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if size == "real":
        check_reachable(name, entry)
    elif not (twins / name).is_dir():
        raise FileNotFoundError(
            f"the tiny twin is missing from {twins / name}: it ships with the repository, "
            "so restore it with  git checkout -- cag_utils/weights"
        )
    towers = entry.load(None if size == "real" else check_phantom(twins / name))
    towers.module.to(device).eval()
    return Embedder(name, size, entry, towers, device)
