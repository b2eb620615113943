"""Load a backbone: the published checkpoint, a folder of one's own, or the tiny twin.

`load_backbone("gemma3", "real")` and `load_backbone("gemma3", "tiny")` run the same lines; the
only difference is the name that `from_pretrained` gets. Weights are read from safetensors only, no
repository's code is run, and what was downloaded once loads under `HF_HUB_OFFLINE=1`.
"""

import os
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    SiglipVisionModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import logging as transformers_logging

from cag_utils.backbones import Tower, get_backbone
from cag_utils.hub import Checkpoint, check_access, fetch_weights, override, read_safetensors
from cag_utils.params import check_choice
from cag_utils.shipped import WEIGHTS, check_phantom
from cag_utils.vlm import conceptclip

SIZES = ("tiny", "real")
QUANTISED = ("none", "4bit")
FUSED = "fused_uncapped"  # not "sdpa...": transformers refuses that name for Gemma2
AttentionInterface.register(FUSED, sdpa_attention_forward)
AttentionMaskInterface.register(FUSED, sdpa_mask)


def fuse_attention(model: PreTrainedModel) -> bool:
    """Let a PaliGemma whose language model caps no attention scores use PyTorch's fused attention.

    The results are the same up to rounding. Any other model is left as it is: fused already, or
    in need of its caps, or told to use another kind. Returns whether it was switched.
    """
    text = model.config.get_text_config()
    capped = getattr(text, "attn_logit_softcapping", None)
    if text.model_type != "gemma2" or capped or text._attn_implementation != "eager":
        return False
    model.model.language_model.set_attn_implementation(FUSED)
    return True


def load_backbone(
    name: str,
    size: str = "tiny",
    device: str | None = None,
    dtype: torch.dtype | None = None,
    *,
    checkpoint: str = "",
    tower_checkpoint: str = "",
    quantise: str = "none",
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a backbone, ready to generate or to be tuned.

    Args:
        name: A key of `BACKBONES`.
        size: `real` for a published checkpoint, `tiny` for its twin.
        device: A torch device; the GPU if there is one, else the CPU.
        dtype: The registry's on a GPU and float32 on a CPU if None.
        checkpoint: In the place of the registry's, for size real: `owner/name[@revision]`, or a
            folder. A folder whose tower has been swapped already is taken as it is.
        tower_checkpoint: Likewise for the image tower that is put in.
        quantise: none, or 4bit for language-model weights of 4 bits on a GPU.

    Returns:
        The model in evaluation mode, and its processor.

    Raises:
        ValueError: As `find_sources`, `quantisation` and `check_layout`; a tower of unknown width.
        PermissionError: The checkpoint is gated and this machine has no access.
        ConnectionError: The checkpoint is neither in the cache nor reachable.
        FileNotFoundError: The folder or the twin is missing, or holds no safetensors.
    """
    backbone = get_backbone(name)
    quiet_libraries()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    packed = quantisation(quantise, device)
    if dtype is None:
        dtype = getattr(torch, backbone.dtype) if device.startswith("cuda") else torch.float32
    source, tower = find_sources(name, size, checkpoint, tower_checkpoint)
    found, tower_found = locate(source, size), locate(tower, size) if tower else None
    how = {"dtype": dtype, "use_safetensors": True} | packed
    model = AutoModelForImageTextToText.from_pretrained(**found, **how).eval()
    fuse_attention(model)
    model = model if packed else model.to(device)
    processor = AutoProcessor.from_pretrained(**found)
    if tower_found:
        new = _read_tower(backbone.tower, fetch_weights(**tower_found))
        model, processor = conceptclip.swap_tower(model, processor, new)
    processor.prompt_style = backbone.prompt  # for `examples.prompt_style`; it is not saved
    published = size == "real" and not (checkpoint or tower_checkpoint)
    expected = (backbone.image_px, backbone.image_tokens)
    check_layout(processor, *(expected if published else model_layout(model.config)))
    return model, processor


def find_sources(
    name: str, size: str, checkpoint: str = "", tower_checkpoint: str = ""
) -> tuple[Checkpoint, Checkpoint | None]:
    """Return where model and tower come from; no tower where none is to be put in.

    Args: as `load_backbone`.

    Raises:
        ValueError: Unknown name or size, checkpoints given for a twin, or a tower given for a
            backbone that keeps its own.
        PermissionError, ConnectionError, FileNotFoundError: As `locate`.
    """
    backbone = get_backbone(name)
    if check_choice("size", size, SIZES) == "tiny" and (checkpoint or tower_checkpoint):
        given = checkpoint or tower_checkpoint
        raise ValueError(f"{given} goes with size real; the tiny twin ships with the study")
    if tower_checkpoint and not backbone.tower:
        raise ValueError(f"{name} keeps its own image tower: drop {tower_checkpoint}")
    source = override(backbone.checkpoint, checkpoint)
    if not backbone.tower:
        return source, None
    if checkpoint and not tower_checkpoint:
        vision = AutoConfig.from_pretrained(**locate(source, size)).vision_config
        if getattr(vision, "hidden_act", None) == conceptclip.CONVERTED_GELU:  # swapped already
            return source, None
    return source, override(backbone.tower.checkpoint, tower_checkpoint)


def locate(checkpoint: Checkpoint, size: str) -> dict[str, str]:
    """Return what `from_pretrained` needs to find a checkpoint, after a check that takes seconds.

    Raises:
        FileNotFoundError: The twin's folder is missing.
        PermissionError, ConnectionError: As `check_access`.
    """
    if size == "real":
        if checkpoint.folder:
            return {"pretrained_model_name_or_path": str(checkpoint.folder)}
        check_access(checkpoint)
        return {"pretrained_model_name_or_path": checkpoint.repo, "revision": checkpoint.revision}
    folder = check_phantom(WEIGHTS / checkpoint.twin)
    if not (folder / "config.json").is_file():
        why = f"the tiny twin is missing from {folder}: it ships with the repository"
        raise FileNotFoundError(f"{why}, so restore it with  git checkout -- cag_utils/weights")
    return {"pretrained_model_name_or_path": str(folder)}


def quantisation(quantise: str, device: str) -> dict:
    """Return what `from_pretrained` needs to pack weights into 4 bits; nothing for none.

    The image tower and the projector stay as they are: one is swapped, the other trained in full.

    Raises:
        ValueError: Unknown choice, no GPU, or bitsandbytes is not installed.

    Source:
        Dettmers et al., QLoRA, 2023: NF4, double quantisation, computation in bfloat16.
    """
    if check_choice("quantise", quantise, QUANTISED) == "none":
        return {}
    if not device.startswith("cuda"):
        raise ValueError(f"quantise 4bit needs a CUDA GPU, this is {device!r}: pass none")
    if find_spec("bitsandbytes") is None:
        raise ValueError("quantise 4bit needs bitsandbytes:  pip install bitsandbytes")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=["vision_tower", "multi_modal_projector", "lm_head"],
    )
    return {"quantization_config": config, "device_map": {"": device}}


def model_layout(config: PreTrainedConfig) -> tuple[int, int]:
    """Return the side of the picture a model reads, in pixels, and the tokens it becomes."""
    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    return vision.image_size, getattr(config, "mm_tokens_per_image", patches)


def check_layout(processor: ProcessorMixin, image_px: int, image_tokens: int) -> None:
    """Check that a processor squashes to the expected side and spends the expected tokens.

    The registry says both for its own checkpoints, the model for any other.

    Raises:
        ValueError: It does not: another resolution or revision.
    """
    size = processor.image_processor.size
    got = (size["height"], size["width"], processor.image_seq_length)
    if got != (image_px, image_px, image_tokens):
        made = f"the processor makes {got[0]} x {got[1]} px and {got[2]} image tokens"
        said = f"the registry or the model says {image_px} x {image_px} and {image_tokens}"
        raise ValueError(f"{made}, {said}: check the revision")


def quiet_libraries() -> None:
    """Silence progress bars and notices that drown a notebook; errors still show."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)


def _read_tower(entry: Tower, weights: Path) -> SiglipVisionModel:
    """Convert a tower whose width says how many heads it has."""
    state = conceptclip.tower_state(read_safetensors(weights))
    width, known = state[conceptclip.PATCHES].shape[0], sorted(entry.heads)
    if width not in known:
        told = f"the tower in {weights} is {width} wide, and its heads show in no tensor"
        raise ValueError(f"{told}: the registry knows the widths {known}")
    return conceptclip.convert_tower(state, entry.heads[width], entry.side_px[width])
