"""The backbones of the study: one entry each, for the published checkpoint and its tiny twin.

`load_backbone("gemma3", "real")` and `load_backbone("gemma3", "tiny")` run the same lines; the
only difference is the name that `from_pretrained` gets.
"""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils import build_hf_headers, get_session
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.utils import logging as transformers_logging

from cag_utils.conceptclip import convert_tower, read_state, swap_tower
from cag_utils.params import check_choice

WEIGHTS = Path(__file__).parent / "weights"
SIZES = ("tiny", "real")
HUB_TIMEOUT_S = 5


@dataclass(frozen=True)
class Checkpoint:
    """Where weights come from.

    Attributes:
        repo: Hugging Face repository.
        revision: Branch, tag or commit; the commit it resolved to is recorded with the run.
        licence_url: Where access is granted.
        twin: Folder of the tiny twin below `cag_utils/weights/`.
    """

    repo: str
    revision: str
    licence_url: str
    twin: str


@dataclass(frozen=True)
class Tower:
    """An image tower to put in, with the two sizes that its tensors do not show.

    Attributes:
        checkpoint: Its weights, in timm's layout.
        heads: Attention heads, by size.
        side_px: Input side, by size.
    """

    checkpoint: Checkpoint
    heads: dict[str, int]
    side_px: dict[str, int]


@dataclass(frozen=True)
class Backbone:
    """One backbone of the study.

    Attributes:
        checkpoint: The vision-language model.
        lora_rank: Rank and alpha in the paper (3.2); a profile may set its own.
        image_px: Side of the square picture the published model reads.
        image_tokens: Tokens one picture costs in the published model.
        tower: Replaces the model's own image tower; None leaves it.
    """

    checkpoint: Checkpoint
    lora_rank: int
    image_px: int
    image_tokens: int
    tower: Tower | None = None


# The paper gives neither checkpoints nor sizes. 4B is the smallest Gemma3 that sees pictures; `pt`
# (pretrained) is the PaliGemma2 whose refusal the paper quotes, at the middle of its resolutions.
GEMMA3 = Checkpoint(
    "google/gemma-3-4b-it", "main", "https://huggingface.co/google/gemma-3-4b-it", "gemma3"
)
PALIGEMMA2 = Checkpoint(
    "google/paligemma2-3b-pt-448",
    "main",
    "https://huggingface.co/google/paligemma2-3b-pt-448",
    "paligemma2",
)
CONCEPTCLIP = Checkpoint(
    "JerrryNie/ConceptCLIP", "main", "https://huggingface.co/JerrryNie/ConceptCLIP", "conceptclip"
)
BACKBONES: dict[str, Backbone] = {
    "paligemma2": Backbone(PALIGEMMA2, lora_rank=16, image_px=448, image_tokens=1024),
    "gemma3": Backbone(GEMMA3, lora_rank=8, image_px=896, image_tokens=256),
    "conceptclip_gemma3": Backbone(
        GEMMA3,
        lora_rank=8,
        image_px=384,
        image_tokens=81,
        # 384 px in patches of 14 leave 6 px at the edge: a side the tensors cannot tell
        tower=Tower(CONCEPTCLIP, heads={"real": 16, "tiny": 4}, side_px={"real": 384, "tiny": 0}),
    ),
}


def get_backbone(name: str) -> Backbone:
    """Return a registry entry.

    Raises:
        ValueError: Unknown name; the message suggests the nearest.
    """
    return BACKBONES[check_choice("backbone", name, BACKBONES)]


def load_backbone(
    name: str, size: str = "tiny", device: str | None = None, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a backbone, ready to generate or to be tuned.

    Args:
        name: A key of `BACKBONES`.
        size: `real` for the published checkpoint, `tiny` for its twin.
        device: A torch device; the GPU if there is one, else the CPU.
        dtype: bfloat16 on a GPU and float32 on a CPU if None.

    Returns:
        The model in evaluation mode, and its processor.

    Raises:
        ValueError: Unknown name or size, or the loaded processor is not the published layout.
        PermissionError: The checkpoint is gated and this machine has no access.
        ConnectionError: The checkpoint is neither in the cache nor reachable.
        FileNotFoundError: The twin's folder is missing.
    """
    backbone = get_backbone(name)
    check_choice("size", size, SIZES)
    quiet_libraries()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
    found = locate(backbone.checkpoint, size)
    tower_found = locate(backbone.tower.checkpoint, size) if backbone.tower else None
    model = AutoModelForImageTextToText.from_pretrained(**found, dtype=dtype).to(device).eval()
    processor = AutoProcessor.from_pretrained(**found)
    if backbone.tower:
        state = read_state(fetch_weights(**tower_found))
        tower = convert_tower(state, backbone.tower.heads[size], backbone.tower.side_px[size])
        model, processor = swap_tower(model, processor, tower)
    if size == "real":
        check_layout(processor, backbone.image_px, backbone.image_tokens)
    return model, processor


def locate(checkpoint: Checkpoint, size: str) -> dict[str, str]:
    """Return what `from_pretrained` needs to find a checkpoint, after a check that takes seconds.

    Args:
        checkpoint: Where its weights come from.
        size: tiny or real.

    Returns:
        `pretrained_model_name_or_path`, and for a published checkpoint `revision`.

    Raises:
        FileNotFoundError: The twin's folder is missing.
        PermissionError: As `check_access`.
        ConnectionError: As `check_access`.
    """
    if size == "real":
        check_access(checkpoint)
        return {
            "pretrained_model_name_or_path": checkpoint.repo,
            "revision": checkpoint.revision,
        }
    folder = WEIGHTS / checkpoint.twin
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"the tiny twin is missing from {folder}: it ships with the repository, "
            "so restore it with  git checkout -- cag_utils/weights"
        )
    return {"pretrained_model_name_or_path": str(folder)}


def fetch_weights(pretrained_model_name_or_path: str, revision: str | None = None) -> Path:
    """Return a folder or file that `conceptclip.read_state` reads; downloads weights only.

    A tower needs tensors and nothing else, so none of the code in its repository is run.

    Args:
        pretrained_model_name_or_path: A folder, or a repository's name.
        revision: Of the repository.
    """
    if Path(pretrained_model_name_or_path).is_dir():
        return Path(pretrained_model_name_or_path)
    repo = pretrained_model_name_or_path
    try:
        return Path(hf_hub_download(repo, "model.safetensors", revision=revision))
    except EntryNotFoundError:
        return Path(hf_hub_download(repo, "pytorch_model.bin", revision=revision))


def check_access(checkpoint: Checkpoint, endpoint: str | None = None) -> None:
    """Fail within seconds if a published checkpoint cannot be loaded here.

    One request with a short timeout: the hub's own client retries for half a minute.

    Args:
        checkpoint: Which one.
        endpoint: The hub's address; huggingface.co, or HF_ENDPOINT, if None.

    Raises:
        PermissionError: It is gated and no token grants access.
        ConnectionError: It is not in the cache, and offline, unreachable or not found.
    """
    repo, revision = checkpoint.repo, checkpoint.revision
    if isinstance(try_to_load_from_cache(repo, "config.json", revision=revision), str):
        return
    if constants.is_offline_mode():
        raise ConnectionError(_no_checkpoint(checkpoint, "offline mode is on (HF_HUB_OFFLINE)"))
    url = hf_hub_url(repo, "config.json", revision=revision, endpoint=endpoint)
    try:
        answer = get_session().head(url, headers=build_hf_headers(), timeout=HUB_TIMEOUT_S)
    except Exception as error:  # the client's error class depends on the hub's version
        why = f"the hub did not answer ({type(error).__name__}: {error})"
        raise ConnectionError(_no_checkpoint(checkpoint, why)) from error
    if answer.status_code in (401, 403):
        raise PermissionError(_no_checkpoint(checkpoint, f"it is gated ({answer.status_code})"))
    if answer.status_code >= 400:
        why = f"the hub answered {answer.status_code} for revision {revision}"
        raise ConnectionError(_no_checkpoint(checkpoint, why))


def check_layout(processor: ProcessorMixin, image_px: int, image_tokens: int) -> None:
    """Check that a processor squashes to the expected side and spends the expected tokens.

    Raises:
        ValueError: It does not: another resolution or revision than the registry says.
    """
    size = processor.image_processor.size
    got = (size["height"], size["width"], processor.image_seq_length)
    if got != (image_px, image_px, image_tokens):
        raise ValueError(
            f"the processor makes {got[0]} x {got[1]} px and {got[2]} image tokens, the registry "
            f"says {image_px} x {image_px} and {image_tokens}: check the checkpoint's revision"
        )


def quiet_libraries() -> None:
    """Silence progress bars and notices that drown a notebook; errors still show."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*IProgress not found.*")


def _no_checkpoint(checkpoint: Checkpoint, why: str) -> str:
    return (
        f"{checkpoint.repo} cannot be loaded: {why}.\n"
        f"1. accept its licence at {checkpoint.licence_url}\n"
        "2. log in with  hf auth login\n"
        f"Or use the tiny twin {checkpoint.twin!r}: pass  -p size tiny"
    )
