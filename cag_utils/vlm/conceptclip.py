"""ConceptCLIP's image tower: from timm's layout to Hugging Face's, and into Gemma3.

ConceptCLIP's tower is timm's `vit_so400m_patch14_siglip_384`: the same network as
`transformers`' SiglipVisionModel under other names, with query, key and value in one matrix and
the exact GELU. The paper replaces Gemma3's tower with it and does not say how; this is the study's
way, and it costs Gemma3 nothing but image tokens: 27 x 27 patches pool to 81 tokens, not 256.
"""

import re
from collections.abc import Mapping

import torch
from transformers import (
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.gemma3.modeling_gemma3 import Gemma3MultiModalProjector

PATCHES = "patch_embed.proj.weight"  # the one name every timm ViT has, whatever its prefix
CONVERTED_GELU = "gelu"  # the exact one; the published SigLIP of Gemma3 has gelu_pytorch_tanh
BLOCK_NAMES = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def tower_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Keep the image tower of a ConceptCLIP state dict, under timm's own names without a prefix.

    Raises:
        ValueError: No timm vision transformer is in it, or more than one.
    """
    prefixes = [name.removesuffix(PATCHES) for name in state if name.endswith(PATCHES)]
    if len(prefixes) != 1:
        found = f"found {len(prefixes)} among {len(state)} tensors"
        wanted = f"expected one timm vision tower (a tensor named *{PATCHES})"
        raise ValueError(f"{wanted}, {found}: is this a ConceptCLIP checkpoint?")
    start = prefixes[0]
    return {name.removeprefix(start): t for name, t in state.items() if name.startswith(start)}


def tower_config(
    state: Mapping[str, torch.Tensor], heads: int, side: int = 0
) -> SiglipVisionConfig:
    """Read a tower's sizes off its tensors.

    Args:
        state: Tower tensors under timm's names.
        heads: Attention heads, a size no tensor shows (16 in so400m).
        side: Input side in pixels, the other one; 0 means patches x patch size. ConceptCLIP reads
            384 pixels in patches of 14: 27 patches, and 6 pixels at the edge that none covers.

    Returns:
        Without pooling head, and with the exact GELU: the default is off by 3e-4 in the patches.

    Raises:
        ValueError: The patches do not form a square grid (a class token?), they do not fit the
            side, or the heads do not divide the width.
    """
    width, _, patch, _ = state[PATCHES].shape
    n_patches = state["pos_embed"].shape[1]
    grid = round(n_patches**0.5)
    if grid * grid != n_patches:
        raise ValueError(f"{n_patches} positions form no square grid: not a SigLIP-layout tower")
    if side and side // patch != grid:
        raise ValueError(f"{side} pixels in patches of {patch} do not give {grid} a side")
    if width % heads:
        raise ValueError(f"{heads} attention heads do not divide a width of {width}")
    depth = 1 + max(int(m[1]) for name in state if (m := re.match(r"blocks\.(\d+)\.", name)))
    return SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=state["blocks.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=depth,
        num_attention_heads=heads,
        image_size=side or grid * patch,
        patch_size=patch,
        hidden_act=CONVERTED_GELU,
        vision_use_head=False,
    )


def rename_tower(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give timm's tower tensors the names of SiglipVisionModel, splitting qkv in three.

    The tensors are shared, not copied. `attn_pool.*` and heads are dropped: Gemma3 reads the
    patches and not the pooled vector.

    Raises:
        ValueError: A tensor has no place in a SigLIP tower (a class token, LayerScale...).
    """
    renamed = {}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", stem)
        if name.startswith(("attn_pool.", "head.", "fc_norm.")):
            continue
        if stem == "patch_embed.proj":
            renamed[f"embeddings.patch_embedding.{kind}"] = tensor
        elif name == "pos_embed":
            renamed["embeddings.position_embedding.weight"] = tensor[0]
        elif stem == "norm":
            renamed[f"post_layernorm.{kind}"] = tensor
        elif block and block[2] == "attn.qkv":
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"encoder.layers.{block[1]}.self_attn.{part}_proj.{kind}"] = third
        elif block and block[2] in BLOCK_NAMES:
            renamed[f"encoder.layers.{block[1]}.{BLOCK_NAMES[block[2]]}.{kind}"] = tensor
        else:
            raise ValueError(f"{name} has no counterpart in SiglipVisionModel: not a SigLIP tower")
    return renamed


def convert_tower(
    state: Mapping[str, torch.Tensor], heads: int, side: int = 0
) -> SiglipVisionModel:
    """Build transformers' tower from timm's tensors; patch outputs agree to 1e-5.

    Args:
        state: A ConceptCLIP or bare timm state dict; the others are those of `tower_config`.

    Returns:
        The tower in evaluation mode; `(batch, 3, side, side)` pixels in [-1, 1] give
        `last_hidden_state` of `(batch, patches, width)`.
    """
    state = tower_state(state)
    with torch.device("meta"):  # no random weights are drawn, so a seed means the same before it
        tower = SiglipVisionModel(tower_config(state, heads, side))
    renamed = {name: t.contiguous() for name, t in rename_tower(state).items()}
    tower.load_state_dict(renamed, assign=True)
    device = tower.embeddings.position_embedding.weight.device
    # a buffer that no checkpoint holds, so it is still on the meta device
    positions = torch.arange(tower.embeddings.num_positions, device=device)
    tower.embeddings.position_ids = positions[None]
    return tower.eval()


def pooling_side(grid: int, wanted: int) -> int:
    """Choose how many patches a side Gemma3's projector pools into one token.

    The divisor of `grid` (patches a side) nearest to `wanted` (Gemma3's own pooling), of two the
    larger (fewer tokens). Anything but a divisor drops patches at the right and lower edges,
    silently. ConceptCLIP's 27 and the published 4 give 3: 81 tokens.
    """
    divisors = [k for k in range(1, grid + 1) if grid % k == 0]
    return min(divisors, key=lambda k: (abs(k - wanted), -k))


def swap_tower(
    model: Gemma3ForConditionalGeneration, processor: Gemma3Processor, tower: SiglipVisionModel
) -> tuple[Gemma3ForConditionalGeneration, Gemma3Processor]:
    """Put another tower into Gemma3, in place, and return a processor that fits it.

    The projector is rebuilt, because it fixes its pooling when it is made, and gets Gemma3's
    weights back, because a fresh one is all zeros and passes no gradient. The new processor
    squashes to the tower's side, bicubic, mean = SD = 0.5.

    Raises:
        ValueError: The tower's width is not the projector's.
    """
    old, wide = model.model.multi_modal_projector, tower.config.hidden_size
    if wide != (expected := old.mm_input_projection_weight.shape[0]):
        told = f"the tower is {wide} wide, Gemma3's projector reads {expected}"
        raise ValueError(f"{told}: only a tower of the same width can take its place")
    side = tower.config.image_size
    grid = side // tower.config.patch_size
    tokens = (grid // pooling_side(grid, old.kernel_size)) ** 2
    model.config.vision_config = tower.config
    model.config.mm_tokens_per_image = tokens
    projector = Gemma3MultiModalProjector(model.config)
    projector.load_state_dict(old.state_dict())
    model.model.multi_modal_projector = projector.to(model.device, model.dtype)
    model.model.vision_tower = tower.to(model.device, model.dtype)
    levels = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    images = Gemma3ImageProcessor(size={"height": side, "width": side}, resample=3, **levels)
    kept = processor.tokenizer, processor.chat_template
    return model, Gemma3Processor(images, *kept, image_seq_length=tokens)
