"""Pretraining of the SigLIP tower: label every patch first, then let every token know the answer.

A tower and a language model that start from noise together stay blind for a long time: the loss
falls by learning the wording alone. So the tower learns, patch by patch, which segment runs there,
how wide it is and how much of it a lesion takes, and then to spread that over all tokens, before a
word is read.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import SiglipVisionConfig, SiglipVisionModel

from cag_utils.keyframes.network import build_model, pick_device, prepare
from cag_utils.keyframes.training import Fitted, fit
from cag_utils.making.muon import MATRIX_RATE, muon_and_adamw
from cag_utils.making.stills import N_SEGMENTS, Stills, patch_labels
from cag_utils.segments import GRADES
from cag_utils.shipped import WEIGHTS, seal_weights, write_card

N_GRADES = len(GRADES) + 1  # no narrowing, then the six grades
TOKENS_ASKED = 16  # tokens a step that must know the whole picture's lesions
KEPT_SHARE = 0.45  # of the patches, where the tower reads a part: those with vessels, and some more
NARROWED = 0.2  # share of the diameter from which a patch counts as narrowed
PLAIN = 0.35  # from here on the tower is asked where it is; milder ones hardly show at this size
WIDTH_WEIGHT, NARROWED_WEIGHT, GUIDE_WEIGHT = 2.0, 8.0, 4.0
CONVNET, CONV_WIDTH = "convnext_twin", 128
HEADS = "heads.safetensors"  # beside a kept tower's own file


class DenseTask(nn.Module):
    """Linear heads on the tokens of whatever reads a picture."""

    reads_parts = False  # whether reading a part of the patches costs less
    hidden: nn.Module | None = None  # whose matrices are Muon's

    def __init__(self, width: int):
        super().__init__()
        self.segment = nn.Linear(width, N_SEGMENTS + 1)  # the AHA segment in the patch, or none
        self.lumen = nn.Linear(width, 2)  # octaves of the width in pixels; share a lesion takes
        self.narrowing = nn.Linear(width, 1)  # how much the patch looks narrowed
        self.nowhere = nn.Parameter(torch.zeros(1))  # how much the picture looks healthy
        self.summary = nn.Linear(width, N_SEGMENTS * N_GRADES)  # the whole picture's grades

    def read(self, pixels: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """Return tokens, (B, P, width), row by row, or only those `kept`, (B, K) of P."""
        raise NotImplementedError

    def chances(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the chance of each grade, none first, of each segment: (B, 15, 7)."""
        logits = self.summary(tokens).float().unflatten(-1, (N_SEGMENTS, N_GRADES))
        return logits.softmax(-1).mean(1)

    def losses(
        self,
        pixels: torch.Tensor,
        truth: dict[str, torch.Tensor],
        whole: bool,
        sparse: bool,
        guide: "DenseTask | None" = None,
    ) -> dict[str, torch.Tensor]:
        """Return the loss of each head.

        Args:
            pixels: (B, 3, S, S), -1 to 1.
            truth: `segment`, `width_px` and `narrowed` (B, P), `grades` (B, 15).
            whole: Whether tokens are also asked about the whole picture.
            sparse: Whether a part of the patches is read alone.
            guide: Whose tokens of the same patches are imitated, if any.
        """
        local, kept = {k: truth[k] for k in ("segment", "width_px", "narrowed")}, None
        if sparse:
            kept = _draw_kept(truth)
            local = {k: v.gather(1, kept) for k, v in local.items()}
        tokens = self.read(pixels, kept)
        found = {"segment": _cross_entropy(self.segment(tokens), local["segment"])}
        found |= self._lumen_losses(tokens, local)
        found["where"] = self._where_loss(tokens, local["narrowed"])
        if whole:
            asked = tokens[:, torch.randperm(tokens.shape[1])[:TOKENS_ASKED]]
            logits = self.summary(asked).unflatten(-1, (N_SEGMENTS, N_GRADES))
            grades = truth["grades"][:, None].expand(-1, asked.shape[1], -1)
            found["summary"] = N_SEGMENTS * _cross_entropy(logits, grades)
        if guide is not None:
            with torch.no_grad():
                wanted = guide.read(pixels, kept)
            likeness = functional.cosine_similarity(self.imitate(tokens), wanted, dim=-1)
            found["guide"] = GUIDE_WEIGHT * (1 - likeness.mean())
        return found

    def _lumen_losses(self, tokens, truth) -> dict[str, torch.Tensor]:
        """How wide is each vessel, and how much of it is taken?"""
        vessel = truth["segment"] > 0
        said = self.lumen(tokens).float()[vessel]
        octaves = truth["width_px"][vessel].clamp(min=0.25).log2()
        width = functional.smooth_l1_loss(said[:, 0], octaves, beta=0.2)
        taken = truth["narrowed"][vessel]
        away = functional.smooth_l1_loss(said[:, 1], taken, beta=0.1, reduction="none")
        away = away * (1 + 4 * (taken >= NARROWED))  # one patch in ten: each counts five times
        return {"width": WIDTH_WEIGHT * width, "narrowed": NARROWED_WEIGHT * away.mean()}

    def _where_loss(self, tokens, narrowed) -> torch.Tensor:
        """Where is it, among all patches and nowhere?

        One patch in a hundred holds a narrowing: a loss a patch would be won by never seeing one.
        Tight ones count more, and a picture with mild ones alone is not asked about.
        """
        scores = self.narrowing(tokens).float()[..., 0]
        chance = torch.cat([scores, self.nowhere.expand(len(tokens), 1)], 1).log_softmax(1)
        worst = narrowed.amax(1)
        asked = (worst >= PLAIN) | (worst < NARROWED)
        taken = narrowed.square() * (narrowed >= PLAIN)
        target = torch.cat([taken, (taken.sum(1, keepdim=True) == 0).float()], 1)
        found = -(target / target.sum(1, keepdim=True) * chance).sum(1)
        return (found * asked).sum() / asked.sum().clamp(min=1)


class TowerTask(DenseTask):
    """A SigLIP tower, as the twins have it."""

    reads_parts = True

    def __init__(self, config: SiglipVisionConfig):
        super().__init__(config.hidden_size)
        self.tower = SiglipVisionModel._from_config(config, attn_implementation="sdpa")
        self.imitate = nn.Linear(config.hidden_size, CONV_WIDTH)  # what a guide would say

    @property
    def hidden(self):
        """See `DenseTask`."""
        return self.tower.encoder

    def read(self, pixels, kept=None):
        """See `DenseTask`."""
        tower, tokens = self.tower, _keep(self.tower.embeddings(pixels), kept)
        return tower.post_layernorm(tower.encoder(inputs_embeds=tokens).last_hidden_state)


class ConvTask(DenseTask):
    """A plain ConvNeXt with the same heads on its third stage, the tower's 14 x 14.

    It starts from the shipped key-frame network and shows what a network of this size can see; a
    tower may imitate it.
    """

    def __init__(self):
        super().__init__(CONV_WIDTH)
        self.network = build_model(CONVNET, pretrained=True)
        near, far = (info["num_chs"] for info in self.network.feature_info[2:])
        self.near, self.far = (nn.Conv2d(n, CONV_WIDTH, 1) for n in (near, far))
        self.norm = nn.LayerNorm(CONV_WIDTH)

    def read(self, pixels, kept=None):
        """See `DenseTask`; each token also knows the stage below it and the whole picture."""
        *stages, last = self.network.stages
        x = self.network.stem(prepare((pixels[:, :1] + 1) * 127.5, CONVNET))
        for stage in stages:
            x = stage(x)
        far = self.far(last(x))
        around = functional.interpolate(far, x.shape[-2:], mode="bilinear")
        tokens = self.near(x) + around + far.mean((2, 3), keepdim=True)
        return _keep(self.norm(tokens.flatten(2).transpose(1, 2)), kept)


def _keep(tokens: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    if kept is None:
        return tokens
    return tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1]))


def _draw_kept(truth: dict[str, torch.Tensor]) -> torch.Tensor:
    """Choose the patches to read: narrowed ones, then those with vessels, then any."""
    rank = torch.rand(truth["segment"].shape, device=truth["segment"].device)
    rank = rank + (truth["segment"] > 0) + 2 * (truth["narrowed"] >= NARROWED)
    return rank.topk(round(KEPT_SHARE * rank.shape[1]), dim=1).indices.sort(1)[0]


def _cross_entropy(logits, truth):
    return functional.cross_entropy(logits.float().flatten(0, -2), truth.flatten())


@torch.no_grad()
def start_from_statistics(tower: SiglipVisionModel, images: np.ndarray) -> None:
    """Start a tower from what is known before training, in place: it then learns much faster.

    Patches are projected on the whitened principal components of typical pictures, (N, S, S) uint8;
    positions start as 2-D sines.

    Source:
        Position sines: Beyer et al. 2022, "Better plain ViT baselines for ImageNet-1k".
    """
    embeddings, weight = tower.embeddings, tower.embeddings.patch_embedding.weight
    width, _, size, _ = weight.shape
    grid = images.shape[1] // size
    patches = (images / 127.5 - 1).reshape(len(images), grid, size, grid, size)
    patches = patches.transpose(0, 1, 3, 2, 4).reshape(-1, size * size)
    patches = patches[:: max(1, len(patches) // 40_000)]
    values, vectors = np.linalg.eigh(np.cov(patches.T))
    strongest = np.abs(vectors).argmax(0)  # a sign is the processor's choice, so it is fixed here
    vectors = vectors * np.sign(vectors[strongest, np.arange(len(strongest))])
    keep = min(width, size * size)
    scale = 0.5 / np.sqrt(values[-keep:] + values[-keep:].mean() * 0.02)
    rows = torch.from_numpy((vectors[:, -keep:] * scale).T.reshape(keep, 1, size, size)).float()
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


@torch.no_grad()
def start_attention(tower: SiglipVisionModel, generator: torch.Generator) -> None:
    """Start each token's attention at tokens like itself, in place, and its values at less of them.

    With sine positions that means its neighbours: what convolutions have built in and a small
    transformer would take long to learn. Noise of `generator` tells the heads apart.

    Source:
        Trockman and Kolter 2023, "Mimetic initialization of self-attention layers", with its
        vision values: 0.7 and 0.7 for queries and keys, 0.4 and 0.4 for values and output.
    """
    for layer in tower.encoder.layers:
        attention, width = layer.self_attn, layer.self_attn.embed_dim
        size = width // attention.num_heads
        for start in range(0, width, size):
            left, right = _factors(width, 0.7, 0.7, generator)
            attention.q_proj.weight[start : start + size] = left[:, :size].T
            attention.k_proj.weight[start : start + size] = right[:, :size].T
        left, right = _factors(width, 0.4, -0.4, generator)
        attention.v_proj.weight.copy_(left.T)
        attention.out_proj.weight.copy_(right)


def _factors(width: int, noise: float, unit: float, generator: torch.Generator):
    """Two square matrices whose product, the second transposed, is noise plus a multiple of 1."""
    drawn = torch.randn(width, width, generator=generator) / math.sqrt(width)
    left, scale, right = torch.linalg.svd(noise * drawn + unit * torch.eye(width))
    return left * scale.sqrt(), right.T * scale.sqrt()


@torch.no_grad()
def start_structured(tower: SiglipVisionModel, rng: np.random.Generator) -> None:
    """Start each head's attention at one neighbour of the token, in place, as a convolution's tap.

    With sine positions a step to a neighbour is a rotation of each wave, so queries are the waves
    and keys the waves turned by the step; each head's step, up to one patch each way, is drawn.

    Source:
        Zheng, Li and Lucey 2024, "Convolutional initialization for data-efficient vision
        transformers", arXiv 2401.12511; they fit such attention, sines allow to write it down.
    """
    width = tower.config.hidden_size
    quarter, heads = width // 4, tower.config.num_attention_heads
    size = width // heads
    waves = np.arange(size // 4) * (quarter // (2 * (size // 4)))  # the finer half
    rate = np.exp(-math.log(100) * waves / quarter)
    for layer in tower.encoder.layers:
        for head in range(heads):
            query, key = np.zeros((2, size, width), np.float32)
            for axis, step in enumerate(rng.integers(-1, 2, 2)):
                for i, (wave, angle) in enumerate(zip(waves, rate * step, strict=True)):
                    sine = 2 * axis * quarter + wave
                    at = 2 * (axis * len(waves) + i)
                    turn = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
                    query[at : at + 2, [sine, sine + quarter]] = np.eye(2)
                    key[at : at + 2, [sine, sine + quarter]] = turn
            rows = slice(head * size, (head + 1) * size)
            layer.self_attn.q_proj.weight[rows] = torch.from_numpy(SHARPNESS * query)
            layer.self_attn.k_proj.weight[rows] = torch.from_numpy(SHARPNESS * key)


SHARPNESS = 1.5  # choice: most of a head's attention then lies on its tap and that one's neighbours


# How pictures are moved: choice, as far as the study's own pictures differ in framing.
ZOOM, TURN_DEG, SHIFT = 0.10, 4.0, 0.05  # log spread, degrees, share of the side


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """Turn (N, S, S) uint8 pictures into (N, 3, S, S) float32, -1 to 1, as the processors do."""
    grey = torch.from_numpy(np.ascontiguousarray(images)).float() / 127.5 - 1
    return grey[:, None].expand(-1, 3, -1, -1)


@dataclass(frozen=True)
class Recipe:
    """How a network learns from stills; what `trials` varies."""

    network: str = "siglip"  # the twins' tower, or a plain convnext
    start: str = "mimetic"  # how attention starts, mimetic or structured; or the shipped tower
    dense_share: float = 0.3  # of the steps, before tokens are asked about the whole picture
    # Two patches in three hold no vessel. Over this share of the steps the tower reads a part of
    # the patches, at half the cost; over the last ones it reads all, as it will have to. Choice.
    sparse_share: float = 0.7
    crowded_share: float = 1.0  # of the steps, over which crowded pictures are among them
    guided_share: float = 0.0  # of the steps, over which tokens imitate those of a guide
    strength: float = 1.0  # of what is done to pictures
    bfloat16: bool = False  # compute in 16 bit on a CPU, too; a GPU always does
    learning_rate: float = 1.5e-3  # peak of AdamW's
    matrix_rate: float = MATRIX_RATE  # peak of Muon's


def start_task(recipe: Recipe, config: SiglipVisionConfig, images: np.ndarray, seed: int):
    """Return a network before its training; `images` are typical ones, (N, S, S) uint8."""
    torch.manual_seed(seed)
    if recipe.network == "convnext":
        return ConvTask()
    task = TowerTask(config)
    if recipe.start == "shipped":
        folder = WEIGHTS / "siglip_tower"
        shipped = SiglipVisionModel.from_pretrained(folder, dtype=torch.float32)
        task.tower.load_state_dict(shipped.state_dict())
        task.load_state_dict(load_file(folder / HEADS), strict=False)
        return task
    start_from_statistics(task.tower, images)
    start_attention(task.tower, torch.Generator().manual_seed(seed))
    if recipe.start == "structured":
        start_structured(task.tower, np.random.default_rng(seed))
    return task


def train_tower(
    stills: Stills,
    config: SiglipVisionConfig,
    steps: int,
    seed: int = 0,
    batch_size: int = 32,
    recipe: Recipe | None = None,
    guide: DenseTask | None = None,
    parts: int = 1,
    checkpoint: Path | None = None,
    evaluate: Callable[[DenseTask], Mapping[str, float]] | None = None,
    crowded: int = 0,
) -> tuple[DenseTask, Fitted]:
    """Train on a part of the patches first and without the whole picture's lesions.

    Args:
        stills: The `crowded` last ones are shown over the recipe's `crowded_share` alone.
        config: From `twins.make_tower_config`.
        steps: Optimiser steps, a multiple of `parts`.
        seed: Order of the pictures, jitter and initial weights.
        recipe: How; the default if None.
        guide: Trained; needed where the recipe is guided.
        parts: Of the training. After each, `evaluate` is asked and `checkpoint` written, from which
            the same call goes on after a kill with the same result.
        checkpoint: File, or None.
        evaluate: Figures of the network so far.

    Returns:
        (the trained task, on the CPU; what `fit` returns: losses by step, figures by part).

    Raises:
        ValueError: Fewer pictures than one batch, or no guide for a guided recipe.
    """
    recipe = recipe or Recipe()
    stills.check_batch(batch_size + crowded * (recipe.crowded_share < 1))
    if recipe.guided_share and guide is None:
        raise ValueError("a guided recipe needs a trained guide")
    task, device = start_task(recipe, config, stills.images[:1000], seed), pick_device()
    task.to(device)
    guide = guide.to(device).eval() if guide else None
    side, each = config.image_size // config.patch_size, steps // parts

    def batches(part: int):
        rng, order, known = np.random.default_rng([seed, part]), np.empty(0), 0
        for i in range(each):
            share = (part * each + i) / steps
            count = len(stills) - crowded * (share >= recipe.crowded_share)
            if len(order) < batch_size or count != known:
                order, known = rng.permutation(count), count
            index, order = np.sort(order[:batch_size]), order[batch_size:]
            images, moves = move(rng, stills.images[index], recipe.strength)
            truth = patch_labels(stills, index, side, moves) | {"grades": stills.grades[index]}
            sparse = task.reads_parts and share < recipe.sparse_share
            imitated = guide if share < recipe.guided_share else None
            pictures = to_pixels(jitter(rng, images, recipe.strength))
            yield 1, (pictures, truth, share >= recipe.dense_share, sparse, imitated)

    def loss(pixels: torch.Tensor, truth: dict, *how) -> dict:
        truth = {k: torch.from_numpy(v).to(device) for k, v in truth.items()}
        truth["grades"] = truth["grades"].long()
        in_16_bit = recipe.bfloat16 or device.type == "cuda"
        with torch.autocast(device.type, torch.bfloat16, enabled=in_16_bit):
            return task.losses(pixels.to(device), truth, *how)

    optimisers = muon_and_adamw(task.hidden, task, recipe.learning_rate, recipe.matrix_rate)
    done = fit(
        task, batches, loss, optimisers, each, parts, evaluate=evaluate, best_by="significant_f1",
        checkpoint=checkpoint, key=f"{recipe} {seed} {len(stills)} {batch_size}", name="tower",
    )  # fmt: skip
    return task.cpu().eval(), done


def save_tower(task: TowerTask, folder: Path, scores: Mapping[str, float], made_by: str) -> None:
    """Write a trained tower and its heads, in 16 bit, with its card; the network stays as it is.

    Args:
        folder: Made if missing; in `weights/` it becomes the shipped one, with its checksum.
        scores: Held-out, from `score_tower`.
        made_by: The command, its settings and the commit.
    """
    copy.deepcopy(task.tower).half().save_pretrained(folder)
    thrown_away = ("tower.", "imitate.")
    heads = {k: v.half() for k, v in task.state_dict().items() if not k.startswith(thrown_away)}
    save_file(heads, folder / HEADS)
    size = sum(w.numel() for w in task.tower.parameters())
    write_card(folder, "`SiglipVisionModel`, the image tower of both twins.", made_by, size, scores)
    if folder.parent == WEIGHTS:
        seal_weights(folder.name)


def move(
    rng: np.random.Generator, images: np.ndarray, strength: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Zoom, turn and shift pictures a little; never mirror. Borders are repeated.

    Returns:
        The moved pictures, (B, S, S) uint8 as they were, and (B, 2, 3) the affine map of columns
        and rows.
    """
    size = images.shape[1]
    moved, maps = np.empty_like(images), np.empty((len(images), 2, 3))
    for i, image in enumerate(images):
        zoom = math.exp(strength * rng.normal(0, ZOOM))
        turn = strength * rng.normal(0, TURN_DEG)
        maps[i] = cv2.getRotationMatrix2D((size / 2, size / 2), turn, zoom)
        maps[i, :, 2] += strength * rng.uniform(-SHIFT, SHIFT, 2) * size
        moved[i] = cv2.warpAffine(image, maps[i], (size, size), borderMode=cv2.BORDER_REPLICATE)
    return moved, maps


def jitter(rng: np.random.Generator, images: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """Vary brightness, contrast and grain of (N, S, S) uint8 pictures; never mirror or turn."""
    each, grain = (len(images), 1, 1), rng.standard_normal(images.shape, dtype=np.float32)
    grain *= strength * rng.uniform(0, 2.5, each).astype(np.float32)
    gain = 1 + strength * rng.uniform(-0.25, 0.25, each).astype(np.float32)
    offset = strength * rng.normal(0, 12, each).astype(np.float32)
    mean = images.mean((1, 2), keepdims=True, dtype=np.float32)
    return np.clip((images - mean) * gain + mean + offset + grain, 0, 255).astype(np.uint8)
