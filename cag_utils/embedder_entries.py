"""Where the embedders come from: published checkpoints, and the tiny twins shipped with the study.

One entry each, for both. Whatever differs between embedders is said here; how pictures and texts
become vectors is the same code for all (`embedders`).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import open_clip
import torch
from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils import build_hf_headers, get_session
from torch.nn import functional
from transformers import (
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    BertConfig,
    PreTrainedTokenizerBase,
    SwinConfig,
)

from cag_utils.backbones import CONCEPTCLIP
from cag_utils.checkpoint_hub import fetch_weights, remote_code
from cag_utils.pixels import Pixels
from cag_utils.study import read_json, under_root
from cag_utils.tensor_files import read_safetensors, read_state
from cag_utils.two_towers import (
    CONCEPTCLIP_TINY_PX,
    SIGLIP2_TINY_PX,
    ConceptClip,
    MedClip,
    load_published,
)

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
