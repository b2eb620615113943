"""How much memory a vision-language model needs to be tuned or to answer: plain arithmetic.

Sizes come from a model's configuration, built without weights. The numbers are estimates to stop a
run that cannot fit, with a margin that is a choice; they were compared with no GPU.
"""

import re
from dataclasses import dataclass

import torch
from transformers import AutoModelForImageTextToText, PreTrainedConfig

from cag_utils.adapters import LANGUAGE_MODEL_ONLY, PROJECTOR

GB = 1e9
MARGIN = 1.2  # a choice: fragments, kernels' scratch space
CONTEXT_GB = 0.6  # a choice: what CUDA and its libraries take before the first tensor
# QLoRA (Dettmers et al. 2023): 4 bits, and 0.127 bits of doubly quantised constants
PACKED_BYTES = (4 + 0.127) / 8
TRAINED_BYTES = 16  # float32: the weight, its gradient, and AdamW's two moments


@dataclass(frozen=True)
class Stack:
    """The layers of one transformer.

    Attributes:
        layers: How many.
        width: Of the hidden state.
        inner: Width of the feed-forward part.
        kv_width: Key heads times their width, what a cached token costs; 0 where nothing is cached.
    """

    layers: int
    width: int
    inner: int
    kv_width: int = 0

    def kept(self, tokens: int, checkpointing: bool) -> int:
        """Return how many numbers one forward pass keeps for the backward pass.

        A layer keeps about 8 vectors of its width and 4 of its inner width a token. With gradient
        checkpointing each layer keeps its input alone, and one layer at a time is computed again.

        Args:
            tokens: Of one case.
            checkpointing: Whether layers are computed again.
        """
        layer = 8 * self.width + 4 * self.inner
        per_token = self.layers * (self.width if checkpointing else layer)
        return tokens * (per_token + (layer if checkpointing else 0))


@dataclass(frozen=True)
class Footprint:
    """The sizes that memory depends on.

    Attributes:
        parameters: All of them, tied ones once.
        packable: Those in the language model's linear layers, which 4-bit loading packs.
        adapter_sides: Inputs plus outputs of all matrices that LoRA adapts: times the rank, this
            is the number of LoRA's parameters.
        projector: Parameters of the projector, trained in full.
        language: Its layers.
        tower: Its layers.
        patches: Of one picture.
        image_tokens: Of one picture.
    """

    parameters: int
    packable: int
    adapter_sides: int
    projector: int
    language: Stack
    tower: Stack
    patches: int
    image_tokens: int


def footprint(config: PreTrainedConfig, image_tokens: int = 0) -> Footprint:
    """Count what memory depends on, from a configuration alone; no weight is made.

    Args:
        config: Of Gemma3 or PaliGemma.
        image_tokens: Of a tower that will be swapped in; 0 takes the configuration's.
    """
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    adapted = [
        m.weight.shape for n, m in model.named_modules() if re.fullmatch(LANGUAGE_MODEL_ONLY, n)
    ]
    text, vision = config.text_config, config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    return Footprint(
        parameters=sum(p.numel() for p in model.parameters()),
        packable=sum(rows * columns for rows, columns in adapted),
        adapter_sides=sum(rows + columns for rows, columns in adapted),
        projector=sum(p.numel() for n, p in model.named_parameters() if PROJECTOR in n),
        language=Stack(
            text.num_hidden_layers,
            text.hidden_size,
            text.intermediate_size,
            text.num_key_value_heads * text.head_dim,
        ),
        tower=Stack(vision.num_hidden_layers, vision.hidden_size, vision.intermediate_size),
        patches=patches,
        image_tokens=image_tokens or getattr(config, "mm_tokens_per_image", patches),
    )


def weights_gb(size: Footprint, bytes_each: int, quantise: str = "none") -> float:
    """Return what the weights take, GB: all in one type, or the language model packed to 4 bits."""
    packed = size.packable if quantise == "4bit" else 0
    return (packed * PACKED_BYTES + (size.parameters - packed) * bytes_each) / GB


def training_gb(
    size: Footprint,
    bytes_each: int,
    rank: int,
    batch_size: int,
    text_tokens: int,
    quantise: str = "none",
    checkpointing: bool = True,
) -> float:
    """Return what LoRA training of one process takes, GB.

    (weights + 16 bytes a trained parameter + batch size x what a case keeps) x margin. No term for
    logits: TRL scores the answer's tokens alone, in pieces.

    Args:
        size: Of the model.
        bytes_each: Of one number: 2 in bfloat16, 4 in float32.
        rank: Of LoRA.
        batch_size: Cases a process and step.
        text_tokens: Prompt and answer of one case, its picture not counted.
        quantise: none or 4bit.
        checkpointing: Whether layers are computed again in the backward pass.
    """
    trained = (rank * size.adapter_sides + size.projector) * TRAINED_BYTES / GB
    tokens = size.image_tokens + text_tokens
    case = size.language.kept(tokens, checkpointing) + size.tower.kept(size.patches, checkpointing)
    acts = batch_size * case * bytes_each / GB
    return (weights_gb(size, bytes_each, quantise) + trained + acts) * MARGIN


def generation_gb(
    size: Footprint,
    bytes_each: int,
    batch_size: int,
    text_tokens: int,
    quantise: str = "none",
) -> float:
    """Return what answering takes, GB: (weights + cache + one layer at work) x margin.

    A token's keys and values are kept in every layer; windowed layers are counted in full.

    Args:
        size: Of the model.
        bytes_each: Of one number.
        batch_size: Cases at a time.
        text_tokens: Prompt and longest answer of one case.
        quantise: none or 4bit.
    """
    tokens = size.image_tokens + text_tokens
    language = size.language
    cache = 2 * language.layers * language.kv_width * tokens
    work = max(
        stack.kept(n, False) // stack.layers
        for stack, n in ((language, tokens), (size.tower, size.patches))
    )
    acts = batch_size * (cache + work) * bytes_each / GB
    return (weights_gb(size, bytes_each, quantise) + acts) * MARGIN
