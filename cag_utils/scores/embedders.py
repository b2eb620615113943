"""The embedders behind VLScore: pictures and texts to vectors, whichever network is loaded.

An embedder is one entry of `EMBEDDERS`; whatever differs between two of them is said there.
`load_embedder("medclip", "real")` and `load_embedder("medclip", "tiny")` differ in where weights
come from, and everything after that is the same code. ConceptCLIP and MedCLIP read English only,
and all three cut long texts without a word: ask `Embedder.truncated`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import open_clip
import torch
from PIL import Image
from torch.nn import functional
from transformers import AutoTokenizer, BertConfig, PreTrainedTokenizerBase, SwinConfig

from cag_utils.hub import (
    CONCEPTCLIP,
    Checkpoint,
    check_access,
    fetch_weights,
    read_safetensors,
    read_state,
)
from cag_utils.params import check_choice
from cag_utils.scores import two_towers
from cag_utils.scores.two_towers import ConceptClip, MedClip, load_published
from cag_utils.shipped import WEIGHTS, check_phantom
from cag_utils.study import read_json, under_root

Picture = Image.Image | np.ndarray
SIZES = ("tiny", "real")
SIGLIP2 = Checkpoint(
    "timm/ViT-SO400M-14-SigLIP2-378", "main",
    "https://huggingface.co/timm/ViT-SO400M-14-SigLIP2-378", "siglip2",
    licence="Apache-2.0", download_gb=4.6,
    command="hf download timm/ViT-SO400M-14-SigLIP2-378   (4.6 GB, once)",
)  # fmt: skip
MEDCLIP_FOLDER = "data/checkpoints/medclip"
MEDCLIP = Checkpoint(  # the tokenizer's; the weights are no repository's
    "emilyalsentzer/Bio_ClinicalBERT", "main", "https://github.com/RyanWangZf/MedCLIP", "medclip",
    licence="none stated; the tokenizer's is MIT",
    command="curl -LO https://storage.googleapis.com/pytrial/medclip-vit-pretrained.zip && "
    f"unzip medclip-vit-pretrained.zip -d {MEDCLIP_FOLDER} && "
    "hf download emilyalsentzer/Bio_ClinicalBERT",
)  # fmt: skip


@dataclass(frozen=True)
class Pixels:
    """One embedder's preprocessing; bicubic throughout."""

    side: int  # of the square the network reads, pixels
    mean: float = 0.5  # subtracted from levels in 0 to 1, the same for the three channels
    sd: float = 0.5  # divides what is left
    pad: bool = False  # whether it is padded to a black square of `side` or more; else squashed
    grey: bool = False  # whether colours are dropped first; the three channels are then equal

    def fit(self, picture: Picture) -> Image.Image:
        """Return a PIL image, or a (H, W) or (H, W, 3) uint8 array, as `side` x `side` RGB.

        Raises:
            ValueError: An array is not uint8, or of another shape.
        """
        if isinstance(picture, np.ndarray):
            if picture.dtype != np.uint8 or picture.ndim not in (2, 3):
                found = f"{picture.shape} {picture.dtype}: window it to 0..255 first"
                raise ValueError(f"a picture is (H, W) or (H, W, 3) uint8, got {found}")
            picture = Image.fromarray(picture)
        picture = picture.convert("L") if self.grey else picture.convert("RGB")
        if self.pad:
            width, height = picture.size
            side = max(self.side, width, height)  # MedCLIP pads what is small, it does not enlarge
            square = Image.new(picture.mode, (side, side))
            square.paste(picture, ((side - width) // 2, (side - height) // 2))
            picture = square
        if picture.size != (self.side, self.side):
            picture = picture.resize((self.side, self.side), Image.Resampling.BICUBIC)
        return picture.convert("RGB")

    def tensor(self, fitted: Sequence[Picture]) -> torch.Tensor:
        """Turn what `fit` returned, or (side, side[, 3]) uint8, into (n, 3, side, side) float32."""
        levels = np.stack([np.asarray(x) for x in fitted])
        pixels = (torch.from_numpy(levels).float() / 255 - self.mean) / self.sd
        grey = pixels.ndim == 3
        return pixels[:, None].expand(-1, 3, -1, -1) if grey else pixels.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Towers:
    """A loaded network: what is left to differ between embedders."""

    image: Callable[[torch.Tensor], torch.Tensor]  # (B, 3, S, S) pixels to (B, d)
    text: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (B, L) ids and mask to (B, d)
    tokenizer: PreTrainedTokenizerBase
    module: torch.nn.Module  # the network itself, for training and for moving between devices
    clean: Callable[[str], str] = str.strip  # applied to a text before its tokens are counted


@dataclass(frozen=True)
class Entry:
    """One embedder of the registry."""

    title: str  # in tables and figures; where the paper has it, as in the paper's Table 3
    load: Callable[[Checkpoint, Path | None], Towers]  # the twin's folder, None: the published one
    checkpoint: Checkpoint  # what is asked of the hub, and the twin's name
    context: int  # tokens of text, special ones included
    pixels: dict[str, Pixels]  # preprocessing, by size
    languages: tuple[str, ...]  # what its text tower was trained on
    loss: Literal["softmax", "sigmoid"] = "softmax"  # its authors': InfoNCE or SigLIP's pairwise
    fixed_length: bool = False  # whether every text is padded to `context`


def _load_siglip2(checkpoint: Checkpoint, twin: Path | None) -> Towers:
    name = f"local-dir:{twin}" if twin else checkpoint.repo.removeprefix("timm/")
    model = open_clip.create_model(name, pretrained=None if twin else "webli")
    tokenizer = open_clip.get_tokenizer(name)
    text = lambda ids, mask: model.encode_text(ids)  # noqa: E731 - SigLIP attends to its padding
    return Towers(model.encode_image, text, tokenizer.tokenizer, model, tokenizer.clean_fn)


def _load_medclip(checkpoint: Checkpoint, twin: Path | None) -> Towers:
    folder = twin or under_root(MEDCLIP_FOLDER)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing.\n{checkpoint.way_out}")
    if twin:
        sizes = read_json(twin / "config.json")
        model = MedClip(SwinConfig(**sizes["vision"]), BertConfig(**sizes["text"]), sizes["dim"])
    else:
        model = MedClip()
    load_published(model, read_state(folder))
    return Towers(model.encode_image, model.encode_text, _tokenizer(checkpoint, twin), model)


def _load_conceptclip(checkpoint: Checkpoint, twin: Path | None) -> Towers:
    source = twin or fetch_weights(checkpoint.repo, checkpoint.revision)
    sizes = read_json(twin / "config.json") if twin else None
    model = ConceptClip(sizes["tower"], BertConfig(**sizes["text"])) if sizes else ConceptClip()
    load_published(model, read_safetensors(source))
    unit = partial(functional.normalize, dim=-1)
    return Towers(
        lambda pixels: unit(model.encode_image(pixels)[0]),
        lambda ids, mask: unit(model.encode_text(ids)),  # it masks padding by its id
        _tokenizer(checkpoint, twin),
        model,
    )


def _tokenizer(checkpoint: Checkpoint, twin: Path | None) -> PreTrainedTokenizerBase:
    if twin:
        return AutoTokenizer.from_pretrained(twin)
    return AutoTokenizer.from_pretrained(checkpoint.repo, revision=checkpoint.revision)


EMBEDDERS: dict[str, Entry] = {
    "siglip2": Entry(
        "SigLIP2-so400m",
        _load_siglip2,
        SIGLIP2,
        context=64,
        pixels={"real": Pixels(378), "tiny": Pixels(two_towers.SIGLIP2_TINY_PX)},
        languages=("en", "ja"),
        loss="sigmoid",
        fixed_length=True,  # it pools the last position
    ),
    "medclip": Entry(
        "MedCLIP",
        _load_medclip,
        MEDCLIP,
        context=77,
        # mean and SD are its package's own (medclip/constants.py)
        pixels=dict.fromkeys(SIZES, Pixels(224, 0.58628, 0.27950, pad=True, grey=True)),
        languages=("en",),
    ),
    "conceptclip": Entry(
        "ConceptCLIP",
        _load_conceptclip,
        CONCEPTCLIP,
        context=77,
        pixels={"real": Pixels(384), "tiny": Pixels(two_towers.CONCEPTCLIP_TINY_PX)},
        languages=("en",),
    ),
}


@dataclass(frozen=True)
class Embedder:
    """A loaded embedder: an entry of `EMBEDDERS` by its key, `tiny` or `real`, on a device."""

    name: str
    size: str
    entry: Entry
    towers: Towers
    device: str

    @property
    def pixels(self) -> Pixels:
        """Its preprocessing."""
        return self.entry.pixels[self.size]

    @torch.inference_mode()
    def images(self, pictures: Sequence[Picture], batch_size: int = 32) -> np.ndarray:
        """Embed PIL images or uint8 arrays, any size, grey or colour, `batch_size` a pass.

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
        """Embed texts, `batch_size` a pass, to (n, d) float64; what `truncated` tells is cut.

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
        padding = "max_length" if self.entry.fixed_length else "longest"
        cut = {"truncation": True, "max_length": self.entry.context}
        batch = self.towers.tokenizer(
            cleaned, padding=padding, **cut, return_tensors="pt", return_attention_mask=True
        )
        return batch["input_ids"], batch["attention_mask"]

    def truncated(self, texts: Sequence[str]) -> np.ndarray:
        """Tell, as (n,) bool, which texts are longer than the context and lose their end."""
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
        device: Of torch; the GPU if there is one, else the CPU, if None.
        twins: Folder that holds the tiny twins' folders.

    Raises:
        ValueError: Unknown name or size.
        PermissionError: The checkpoint is gated and this machine has no access.
        ConnectionError: The checkpoint is neither on this machine nor reachable.
        FileNotFoundError: MedCLIP's weights were not downloaded, or a twin's folder is missing.
    """
    entry = EMBEDDERS[check_choice("embedder", name, EMBEDDERS)]
    check_choice("size", size, SIZES)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    twin = None if size == "real" else check_phantom(twins / entry.checkpoint.twin)
    if twin is None:
        check_access(entry.checkpoint)
    elif not twin.is_dir():
        why = f"the tiny twin is missing from {twin}: it ships with the repository"
        raise FileNotFoundError(f"{why}, so restore it with  git checkout -- cag_utils/weights")
    towers = entry.load(entry.checkpoint, twin)
    towers.module.to(device).eval()
    return Embedder(name, size, entry, towers, device)
