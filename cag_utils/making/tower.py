"""Pretraining of the SigLIP tower: label every patch first, then let every token know the answer.

A tower and a language model that start from noise together stay blind for a long time: the loss
falls by learning the wording alone. So the tower learns, patch by patch, which segment runs there,
how wide it is and how much of it a lesion takes, and then to spread that over all tokens, before a
word is read.
"""

import math
from collections.abc import Iterable

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import SiglipVisionConfig, SiglipVisionModel

from cag_utils.keyframes.network import autocast, pick_device
from cag_utils.keyframes.training import fit
from cag_utils.making.stills import N_SEGMENTS, Stills, patch_labels
from cag_utils.segments import GRADES

N_GRADES = len(GRADES) + 1  # no narrowing, then the six grades
TOKENS_ASKED = 16  # tokens a step that must know the whole picture's lesions
KEPT_SHARE = 0.45  # of the patches, where the tower reads a part: those with vessels, and some more
NARROWED = 0.2  # share of the diameter from which a patch counts as narrowed
PLAIN = 0.35  # from here on the tower is asked where it is; milder ones hardly show at this size
WIDTH_WEIGHT, NARROWED_WEIGHT = 2.0, 8.0


class TowerTask(nn.Module):
    """A SigLIP tower with linear heads on its tokens; the heads are thrown away afterwards.

    Attributes:
        tower: The tower.
        segment: Token to the AHA segment in its patch, or none (16).
        lumen: Token to the octaves of the lumen's width in pixels, and to the share of the
            diameter that a lesion takes.
        narrowing: Token to how much it looks narrowed.
        nowhere: How much a picture looks like one without a narrowing: one number.
        summary: Token to the grade of each of the 15 segments in the whole picture (15 x 7).
    """

    def __init__(self, config: SiglipVisionConfig):
        super().__init__()
        self.tower = SiglipVisionModel._from_config(config, attn_implementation="sdpa")
        width = config.hidden_size
        self.segment = nn.Linear(width, N_SEGMENTS + 1)
        self.lumen = nn.Linear(width, 2)
        self.narrowing = nn.Linear(width, 1)
        self.nowhere = nn.Parameter(torch.zeros(1))
        self.summary = nn.Linear(width, N_SEGMENTS * N_GRADES)

    def read(self, pixels: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """Return the tower's tokens, (B, P, width), or only those `kept`, (B, K) of P."""
        if kept is None:
            return self.tower(pixel_values=pixels).last_hidden_state
        tower = getattr(self.tower, "vision_model", self.tower)
        tokens = tower.embeddings(pixels)
        tokens = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1]))
        return tower.post_layernorm(tower.encoder(inputs_embeds=tokens).last_hidden_state)

    def losses(
        self, pixels: torch.Tensor, truth: dict[str, torch.Tensor], whole: bool, sparse: bool
    ) -> dict[str, torch.Tensor]:
        """Return the loss of each head.

        Args:
            pixels: (B, 3, S, S), -1 to 1.
            truth: `segment`, `width_px` and `narrowed` (B, P), `grades` (B, 15).
            whole: Whether tokens are also asked about the whole picture.
            sparse: Whether the tower reads a part of the patches alone.
        """
        kept = _draw_kept(truth) if sparse else None
        tokens = self.read(pixels, kept)
        local = {
            k: v if kept is None else v.gather(1, kept) for k, v in truth.items() if k != "grades"
        }
        found = {"segment": _cross_entropy(self.segment(tokens), local["segment"])}
        found |= self._lumen_losses(tokens, local)
        found["where"] = self._where_loss(tokens, local["narrowed"])
        if whole:
            asked = tokens[:, torch.randperm(tokens.shape[1])[:TOKENS_ASKED]]
            logits = self.summary(asked).unflatten(-1, (N_SEGMENTS, N_GRADES))
            grades = truth["grades"][:, None].expand(-1, asked.shape[1], -1)
            found["summary"] = N_SEGMENTS * _cross_entropy(logits, grades)
        return found

    def _lumen_losses(self, tokens, truth) -> dict[str, torch.Tensor]:
        """How wide is each vessel, and how much of it is taken?"""
        vessel = truth["segment"] > 0
        said = self.lumen(tokens).float()[vessel]
        octaves = truth["width_px"][vessel].clamp(min=0.25).log2()
        taken = truth["narrowed"][vessel]
        return {
            "width": WIDTH_WEIGHT * functional.smooth_l1_loss(said[:, 0], octaves, beta=0.2),
            # a narrowed patch in ten: each of them counts five times
            "narrowed": NARROWED_WEIGHT
            * (
                functional.smooth_l1_loss(said[:, 1], taken, beta=0.1, reduction="none")
                * (1 + 4 * (taken >= NARROWED))
            ).mean(),
        }

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


def _draw_kept(truth: dict[str, torch.Tensor]) -> torch.Tensor:
    """Choose the patches to read: narrowed ones, then those with vessels, then any."""
    rank = torch.rand(truth["segment"].shape, device=truth["segment"].device)
    rank = rank + (truth["segment"] > 0) + 2 * (truth["narrowed"] >= NARROWED)
    return rank.topk(round(KEPT_SHARE * rank.shape[1]), dim=1).indices.sort(1).values


def _cross_entropy(logits, truth):
    return functional.cross_entropy(logits.float().flatten(0, -2), truth.flatten())


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
    strongest = np.abs(vectors).argmax(0)  # a sign is the processor's choice, so it is fixed here
    vectors = vectors * np.sign(vectors[strongest, np.arange(len(strongest))])
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


QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan 2024: steepest at 0, so that small directions grow
ITERATIONS = 5
# Peak rate of the hidden matrices. In a trial of 200 steps of the tower Muon had learnt what took
# AdamW alone about 500.
MATRIX_RATE = 5e-3
LIKE_ADAMW = 0.2  # root mean square of AdamW's usual step (Liu et al. 2025, arXiv 2502.16982)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, decoupled weight decay, and AdamW's size of step.

    Args:
        params: Matrices alone.
        lr: Learning rate, above 0; as AdamW's, or a few times that.
        momentum: 0 to 1.
        weight_decay: 0 or more.

    Raises:
        ValueError: A parameter is no matrix, or a number breaks its rule.

    Source:
        Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the step's
        size is that of `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.05,
    ):
        if not (lr > 0 and 0 <= momentum < 1 and weight_decay >= 0):
            raise ValueError(
                "Muon needs lr > 0, momentum in [0, 1) and weight_decay >= 0, "
                f"got {lr}, {momentum} and {weight_decay}"
            )
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            if odd := [tuple(p.shape) for p in group["params"] if p.ndim != 2]:
                raise ValueError(f"Muon takes matrices alone, got shapes {odd}")

    @torch.no_grad()
    def step(self) -> None:
        """Take one step; parameters without a gradient stay."""
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                state, rate = self.state[p], group["lr"]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                buffer = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                ahead = p.grad.lerp(buffer, group["momentum"])
                p.mul_(1 - rate * group["weight_decay"])
                size = rate * LIKE_ADAMW * max(p.shape) ** 0.5
                p.sub_(orthogonalise(ahead), alpha=size)


def muon_and_adamw(hidden: nn.Module, model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for a network's hidden matrices and AdamW for all else that learns.

    Embeddings, first and last layers, norms and biases are AdamW's, as Muon's authors have it.

    Args:
        hidden: The layers whose matrices are Muon's, at `MATRIX_RATE`: a part of `model`.
        model: Whatever of it requires no gradient is left out.
        rate: Peak learning rate of AdamW.
    """
    matrices = [p for p in hidden.parameters() if p.requires_grad and p.ndim == 2]
    own = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    adamw = torch.optim.AdamW(rest, lr=rate, weight_decay=0.05, betas=(0.9, 0.98), fused=True)
    return [Muon(matrices, lr=MATRIX_RATE), adamw]


def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """Return about the nearest matrix with orthogonal rows or columns, (n, m).

    Newton-Schulz iteration: singular values of more than a few thousandths of the matrix's norm end
    between about 0.7 and 1.2, which is all that Muon needs.
    """
    a, b, c = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


DENSE_SHARE = 0.3  # of the steps, before tokens are asked about the whole picture
# Two patches in three hold no vessel. Over the first steps the tower reads a part of the patches,
# at half the cost; over the last ones it reads all, as it will have to. Choice.
SPARSE_SHARE = 0.7
# How pictures are moved: choice, as far as the study's own pictures differ in framing.
ZOOM, TURN_DEG, SHIFT = 0.10, 4.0, 0.05  # log spread, degrees, share of the side


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """Turn (N, S, S) uint8 pictures into (N, 3, S, S) float32, -1 to 1, as the processors do."""
    grey = torch.from_numpy(np.ascontiguousarray(images)).float() / 127.5 - 1
    return grey[:, None].expand(-1, 3, -1, -1)


def train_tower(
    stills: Stills,
    config: SiglipVisionConfig,
    steps: int,
    seed: int = 0,
    batch_size: int = 32,
    learning_rate: float = 1.5e-3,
) -> tuple[TowerTask, list[dict]]:
    """Pretrain the tower, on a part of the patches first and without the whole picture's lesions.

    Args:
        stills: Training pictures with dense labels.
        config: From `twins.tower_config`.
        steps: Optimiser steps.
        seed: Order of the pictures, jitter and initial weights.
        batch_size: Pictures a step.
        learning_rate: Peak of AdamW's; a short warm-up, then a cosine to zero. Muon's, for the
            encoder's matrices, is `MATRIX_RATE`.

    Returns:
        (the trained task, on the CPU; one row of losses a step).

    Raises:
        ValueError: Fewer pictures than one batch.
    """
    if len(stills) < batch_size:
        raise ValueError(f"{len(stills)} stills are fewer than one batch of {batch_size}")
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    task = TowerTask(config)
    start_from_statistics(task.tower, stills.images[:1000])
    start_attention(task.tower, torch.Generator().manual_seed(seed))
    device = pick_device()
    task.to(device)
    encoder = getattr(task.tower, "vision_model", task.tower).encoder
    side = config.image_size // config.patch_size

    def batches(epoch: int):
        for step, index in enumerate(_batches(rng, len(stills), batch_size, steps)):
            images, moves = move(rng, stills.images[index])
            truth = patch_labels(stills, index, side, moves) | {"grades": stills.grades[index]}
            when = step >= DENSE_SHARE * steps, step < SPARSE_SHARE * steps
            yield 1, (to_pixels(jitter(rng, images)), truth, *when)

    def loss(pixels: torch.Tensor, truth: dict, whole: bool, sparse: bool) -> dict:
        truth = {k: torch.from_numpy(v).to(device) for k, v in truth.items()}
        truth["grades"] = truth["grades"].long()
        with autocast(device):
            return task.losses(pixels.to(device), truth, whole, sparse)

    optimisers = muon_and_adamw(encoder, task, learning_rate)
    done = fit(task, batches, loss, optimisers, steps, name="tower")
    return task.cpu().eval(), done.steps


def move(rng: np.random.Generator, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Zoom, turn and shift pictures a little; never mirror. Borders are repeated.

    Args:
        rng: Generator.
        images: (B, S, S) uint8.

    Returns:
        The moved pictures, and (B, 2, 3) the affine map of columns and rows.
    """
    size = images.shape[1]
    moved, maps = np.empty_like(images), np.empty((len(images), 2, 3))
    for i, image in enumerate(images):
        zoom, turn = math.exp(rng.normal(0, ZOOM)), rng.normal(0, TURN_DEG)
        maps[i] = cv2.getRotationMatrix2D((size / 2, size / 2), turn, zoom)
        maps[i, :, 2] += rng.uniform(-SHIFT, SHIFT, 2) * size
        moved[i] = cv2.warpAffine(image, maps[i], (size, size), borderMode=cv2.BORDER_REPLICATE)
    return moved, maps


@torch.no_grad()
def score_tower(task: TowerTask, stills: Stills, batch_size: int = 64) -> dict[str, float]:
    """Measure a tower on held-out stills.

    Args:
        task: The trained task.
        stills: Held-out pictures.
        batch_size: Pictures a pass.

    Returns:
        `patch_accuracy` (segment of vessel patches), `laterality_accuracy`, `width_error` (mean
        absolute, octaves, over vessel patches), `place_accuracy` (pictures with a visible lesion
        whose most suspect patch holds one), `segment_accuracy` (pictures with a lesion whose
        likeliest narrowed segment is a true one), `grade_accuracy` (of those named right, the
        exact grade), `grade_within_one` (one step off or exact), `lesion_f1` (segments called
        narrowed) and `healthy_accuracy` (pictures without a lesion called so). Shares, 0 to 1.
    """
    patches, widths, narrowest, summaries = [], [], [], []
    for start in range(0, len(stills), batch_size):
        tokens = task.read(to_pixels(stills.images[start : start + batch_size]))
        patches.append(task.segment(tokens).argmax(-1).numpy())
        widths.append(task.lumen(tokens)[..., 0].numpy())
        narrowest.append(task.narrowing(tokens)[..., 0].argmax(-1).numpy())
        logits = task.summary(tokens).unflatten(-1, (N_SEGMENTS, N_GRADES))
        summaries.append(logits.softmax(-1).mean(1).numpy())
    patch, chance = np.concatenate(patches), np.concatenate(summaries)
    grid = task.tower.config.image_size // task.tower.config.patch_size
    truth = patch_labels(stills, np.arange(len(stills)), grid)
    vessel, narrowed = truth["segment"] > 0, truth["narrowed"] >= NARROWED
    octaves = np.log2(np.maximum(truth["width_px"], 0.25))
    found = np.take_along_axis(narrowed, np.concatenate(narrowest)[:, None], 1)[:, 0]
    patch_is_lca = (patch >= 5).sum(1) > ((patch >= 1) & (patch <= 4)).sum(1)
    return {
        "patch_accuracy": float((patch == truth["segment"])[vessel].mean()),
        "laterality_accuracy": float((patch_is_lca == stills.lca).mean()),
        "width_error": float(np.abs(np.concatenate(widths) - octaves)[vessel].mean()),
        "place_accuracy": float(found[narrowed.any(1)].mean()),
    } | _lesion_scores(chance, stills.grades)


def jitter(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
    """Vary brightness, contrast and grain of (N, S, S) uint8 pictures; never mirror or turn."""
    grain = rng.standard_normal(images.shape, dtype=np.float32)
    grain *= rng.uniform(0, 2.5, (len(images), 1, 1)).astype(np.float32)
    gain = rng.uniform(0.75, 1.25, (len(images), 1, 1)).astype(np.float32)
    offset = rng.normal(0, 12, (len(images), 1, 1)).astype(np.float32)
    mean = images.mean((1, 2), keepdims=True, dtype=np.float32)
    return np.clip((images - mean) * gain + mean + offset + grain, 0, 255).astype(np.uint8)


def _batches(rng: np.random.Generator, count: int, size: int, steps: int):
    order, at = rng.permutation(count), 0
    for _ in range(steps):
        if at + size > count:
            order, at = rng.permutation(count), 0
        yield np.sort(order[at : at + size])
        at += size


def _lesion_scores(chance: np.ndarray, grades: np.ndarray) -> dict[str, float]:
    """Compare (N, 15, 7) probabilities with (N, 15) grades."""
    ill = (grades > 0).any(1)
    rows = np.flatnonzero(ill)
    likeliest = (1 - chance[rows, :, 0]).argmax(1)
    right = grades[rows, likeliest] > 0
    named = chance[rows, likeliest, 1:].argmax(1) + 1
    true = grades[rows, likeliest].astype(int)
    called = chance[..., 0] < 0.5
    hits = (called & (grades > 0)).sum()
    return {
        "segment_accuracy": float(right.mean()),
        "grade_accuracy": float((named == true)[right].mean()),
        "grade_within_one": float((np.abs(named - true) <= 1)[right].mean()),
        "lesion_f1": float(2 * hits / max(1, called.sum() + (grades > 0).sum())),
        "healthy_accuracy": float((~called[~ill].any(1)).mean()) if (~ill).any() else float("nan"),
    }
