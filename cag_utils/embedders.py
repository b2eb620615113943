"""How an embedder looks at a picture: square, side, grey or colour, mean and SD.

Where the embedders come from: published checkpoints, and the tiny twins shipped with the study.

One entry each, for both. Whatever differs between embedders is said here; how pictures and texts
become vectors is the same code for all (`embedders`).

The embedders behind VLScore: pictures and texts to vectors, whichever network is loaded.

`load_embedder("medclip", "real")` and `load_embedder("medclip", "tiny")` differ in where weights
come from; everything after that is the same code. ConceptCLIP and MedCLIP read English only, and
all three cut long texts without a word: ask `Embedder.truncated`.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import torch
from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils import build_hf_headers, get_session
from PIL import Image
from torch.nn import functional
from transformers import (
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    BertConfig,
    PreTrainedTokenizerBase,
    SwinConfig,
)

from cag_utils.backbone_entries import CONCEPTCLIP
from cag_utils.hub import fetch_weights, read_safetensors, read_state, remote_code
from cag_utils.params import check_choice
from cag_utils.study import read_json, under_root
from cag_utils.two_towers import (
    CONCEPTCLIP_TINY_PX,
    SIGLIP2_TINY_PX,
    ConceptClip,
    MedClip,
    load_published,
)


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


SIZES = ("tiny", "real")
WEIGHTS = Path(__file__).parent / "weights"
MEDCLIP_FOLDER = "data/checkpoints/medclip"
HUB_TIMEOUT_S = 5
COMMIT_VARIABLE = "CAG_CONCEPTCLIP_COMMIT"  # 40 hex digits: run that commit's own code


@dataclass(frozen=True)
class Towers:
    """A loaded network: what is left to differ between embedders.

    Attributes:
        image: (B, 3, S, S) pixels to (B, d).
        text: (B, L) ids and their (B, L) mask to (B, d).
        tokenizer: Of the text tower.
        clean: Applied to a text before its tokens are counted.
        module: The network itself, for training and for moving between devices.
    """

    image: Callable[[torch.Tensor], torch.Tensor]
    text: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    tokenizer: PreTrainedTokenizerBase
    module: torch.nn.Module
    clean: Callable[[str], str] = str.strip


@dataclass(frozen=True)
class Entry:
    """One embedder of the registry.

    Attributes:
        load: A twin's folder, or None for the published checkpoint, to towers.
        repo: Hugging Face repository asked for the published weights.
        probe: A file of it that is asked for, to learn within seconds whether it can be had.
        cached: A file of it that is in the cache once it was loaded.
        url: Where a person finds it.
        command: What makes it available.
        context: Tokens of text, special ones included.
        pixels: Preprocessing, by size.
        languages: What its text tower was trained on.
        revision: Of the repository whose code and weights are loaded.
        fixed_length: Whether every text is padded to `context` (SigLIP2 pools the last position).
    """

    load: Callable[[Path | None], Towers]
    repo: str
    probe: str
    cached: str
    url: str
    command: str
    context: int
    pixels: dict[str, Pixels]
    languages: tuple[str, ...]
    revision: str = "main"
    fixed_length: bool = False


def check_reachable(name: str, entry: Entry, endpoint: str | None = None) -> None:
    """Fail within seconds if published weights cannot be had here.

    Args:
        name: For the message.
        entry: Which ones.
        endpoint: The hub's address; huggingface.co, or HF_ENDPOINT, if None.

    Raises:
        PermissionError: Gated, and no token grants access.
        ConnectionError: Not in the cache, and offline, unreachable or not found.
    """
    advice = _advice(name, entry)
    if isinstance(try_to_load_from_cache(entry.repo, entry.cached), str):
        return
    if constants.is_offline_mode():
        raise ConnectionError(f"{entry.repo} is not in the cache and HF_HUB_OFFLINE is on{advice}")
    url = hf_hub_url(entry.repo, entry.probe, endpoint=endpoint)
    try:
        answer = get_session().head(url, headers=build_hf_headers(), timeout=HUB_TIMEOUT_S)
    except Exception as error:  # the client's error class depends on the hub's version
        raise ConnectionError(
            f"the hub did not answer for {entry.repo}: {error}{advice}"
        ) from error
    if answer.status_code in (401, 403):
        raise PermissionError(f"{entry.repo} is gated ({answer.status_code}){advice}")
    if answer.status_code >= 400:
        raise ConnectionError(f"the hub answered {answer.status_code} for {entry.repo}{advice}")


def _advice(name: str, entry: Entry) -> str:
    return (
        f"\n1. see {entry.url}\n2. {entry.command}\n"
        f"Or use the tiny twin: load_embedder({name!r}, 'tiny'), `vlscore.size: tiny` in a profile"
    )


def _load_siglip2(twin: Path | None) -> Towers:
    name = f"local-dir:{twin}" if twin else "ViT-SO400M-14-SigLIP2-378"
    model = open_clip.create_model(name, pretrained=None if twin else "webli")
    tokenizer = open_clip.get_tokenizer(name)
    text = lambda ids, mask: model.encode_text(ids)  # noqa: E731 - SigLIP attends to its padding
    return Towers(model.encode_image, text, tokenizer.tokenizer, model, tokenizer.clean_fn)


def _load_medclip(twin: Path | None) -> Towers:
    folder = twin or under_root(MEDCLIP_FOLDER)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing{_advice('medclip', EMBEDDERS['medclip'])}")
    state = read_state(folder)
    if twin:
        found, source = read_json(twin / "config.json"), twin
        model = MedClip(SwinConfig(**found["vision"]), BertConfig(**found["text"]), found["dim"])
    else:
        model, source = MedClip(), EMBEDDERS["medclip"].repo
    load_published(model, state)
    tokenizer = AutoTokenizer.from_pretrained(source)
    return Towers(model.encode_image, model.encode_text, tokenizer, model)


def _load_conceptclip(twin: Path | None) -> Towers:
    """Our own network by default; the repository's code only at a commit that the user names."""
    entry, commit = EMBEDDERS["conceptclip"], os.environ.get(COMMIT_VARIABLE, "")
    if twin is None and commit:
        pinned = remote_code(CONCEPTCLIP, commit)
        model = AutoModel.from_pretrained(entry.repo, use_safetensors=True, **pinned)
        tokenizer = AutoProcessor.from_pretrained(entry.repo, **pinned).tokenizer
    elif twin is None:
        model = ConceptClip()
        load_published(model, read_safetensors(fetch_weights(entry.repo, entry.revision)))
        tokenizer = AutoTokenizer.from_pretrained(entry.repo, revision=entry.revision)
    else:
        found = read_json(twin / "config.json")
        model = ConceptClip(found["tower"], BertConfig(**found["text"]))
        load_published(model, read_safetensors(twin))
        tokenizer = AutoTokenizer.from_pretrained(twin)
    unit = partial(functional.normalize, dim=-1)
    return Towers(
        lambda pixels: unit(model.encode_image(pixels)[0]),
        lambda ids, mask: unit(model.encode_text(ids)[0]),  # it masks padding by its id
        tokenizer,
        model,
    )


EMBEDDERS: dict[str, Entry] = {
    "siglip2": Entry(
        _load_siglip2,
        repo="timm/ViT-SO400M-14-SigLIP2-378",
        probe="open_clip_config.json",
        cached="open_clip_model.safetensors",
        url="https://huggingface.co/timm/ViT-SO400M-14-SigLIP2-378",
        command="hf download timm/ViT-SO400M-14-SigLIP2-378   (4.6 GB, once)",
        context=64,
        pixels={"real": Pixels(378), "tiny": Pixels(SIGLIP2_TINY_PX)},
        languages=("en", "ja"),
        fixed_length=True,
    ),
    "medclip": Entry(
        _load_medclip,
        repo="emilyalsentzer/Bio_ClinicalBERT",
        probe="config.json",
        cached="vocab.txt",
        url="https://github.com/RyanWangZf/MedCLIP",
        command=(
            "curl -LO https://storage.googleapis.com/pytrial/medclip-vit-pretrained.zip && "
            f"unzip medclip-vit-pretrained.zip -d {MEDCLIP_FOLDER} && "
            "hf download emilyalsentzer/Bio_ClinicalBERT"
        ),
        context=77,
        pixels=dict.fromkeys(SIZES, Pixels(224, 0.58628, 0.27950, pad=True, grey=True)),
        languages=("en",),
    ),
    "conceptclip": Entry(
        _load_conceptclip,
        repo="JerrryNie/ConceptCLIP",
        probe="config.json",
        cached="config.json",
        url="https://huggingface.co/JerrryNie/ConceptCLIP (gated: accept its terms there)",
        command="hf auth login && hf download JerrryNie/ConceptCLIP",
        context=77,
        pixels={"real": Pixels(384), "tiny": Pixels(CONCEPTCLIP_TINY_PX)},
        languages=("en",),
    ),
}


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
    towers = entry.load(None if size == "real" else twins / name)
    towers.module.to(device).eval()
    return Embedder(name, size, entry, towers, device)
