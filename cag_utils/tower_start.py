"""A tower's first weights, from what is known without learning."""

import math

import numpy as np
import torch
from transformers import SiglipVisionModel


def start_from_statistics(tower: SiglipVisionModel, images: np.ndarray) -> None:
    """Start a tower from what is known before training, in place: it then learns much faster.

    Patches are projected on their whitened principal components; positions start as 2-D sines.

    Args:
        tower: The tower, freshly made.
        images: (N, S, S) uint8 typical pictures.

    Source:
        Position sines: Beyer et al. 2022, "Better plain ViT baselines for ImageNet-1k".
    """
    embeddings = tower.embeddings if hasattr(tower, "embeddings") else tower.vision_model.embeddings
    weight = embeddings.patch_embedding.weight
    width, _, size, _ = weight.shape
    grid = images.shape[1] // size
    patches = (images / 127.5 - 1).reshape(len(images), grid, size, grid, size)
    patches = patches.transpose(0, 1, 3, 2, 4).reshape(-1, size * size)
    patches = patches[:: max(1, len(patches) // 40_000)]
    values, vectors = np.linalg.eigh(np.cov(patches.T))
    keep = min(width, size * size)
    scale = 0.5 / np.sqrt(values[-keep:] + values[-keep:].mean() * 0.02)
    rows = torch.from_numpy((vectors[:, -keep:] * scale).T.reshape(keep, 1, size, size)).float()
    with torch.no_grad():
        weight[:keep] = rows / 3  # the three channels are equal
        embeddings.position_embedding.weight.copy_(position_sines(grid, width) * 0.5)


def position_sines(grid: int, width: int) -> torch.Tensor:
    """Return 2-D sine positions: (grid * grid, width), -1 to 1, row by row.

    Raises:
        ValueError: `width` is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"2-D sine positions need a width that 4 divides, got {width}")
    rate = torch.exp(-math.log(100) * torch.arange(width // 4) / (width // 4))
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    waves = [axis.reshape(-1, 1) * rate for axis in (row, column)]
    return torch.cat([f(wave) for wave in waves for f in (torch.sin, torch.cos)], 1)


def start_attention(tower: SiglipVisionModel, generator: torch.Generator) -> None:
    """Start each token's attention at tokens like itself, in place, and its values at less of them.

    With sine positions that means its neighbours: what convolutions have built in and a small
    transformer would take long to learn.

    Args:
        tower: The tower, freshly made.
        generator: Of the noise that tells heads apart.

    Source:
        Trockman and Kolter 2023, "Mimetic initialization of self-attention layers", with its
        vision values: 0.7 and 0.7 for queries and keys, 0.4 and 0.4 for values and output.
    """
    model = getattr(tower, "vision_model", tower)
    for layer in model.encoder.layers:
        attention = layer.self_attn
        width, heads = attention.embed_dim, attention.num_heads
        size = width // heads
        with torch.no_grad():
            for head in range(heads):
                rows = slice(head * size, (head + 1) * size)
                left, right = _factors(width, 0.7, 0.7, generator)
                attention.q_proj.weight[rows] = left[:, :size].T
                attention.k_proj.weight[rows] = right[:, :size].T
            left, right = _factors(width, 0.4, -0.4, generator)
            attention.v_proj.weight.copy_(left.T)
            attention.out_proj.weight.copy_(right)


def _factors(width: int, noise: float, unit: float, generator: torch.Generator):
    """Two square matrices whose product, the second transposed, is noise plus a multiple of 1."""
    drawn = torch.randn(width, width, generator=generator) / math.sqrt(width)
    left, scale, right = torch.linalg.svd(noise * drawn + unit * torch.eye(width))
    return left * scale.sqrt(), right.T * scale.sqrt()
