"""Pretraining of the SigLIP tower: label every patch first, then let every token know the answer.

A tower and a language model that start from noise together stay blind for a long time: the loss
falls by learning the wording alone. So the tower learns where vessels run and where they narrow
(per patch), and then to spread that over all tokens, before a word is read.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import SiglipVisionConfig, SiglipVisionModel

from cag_utils.segments import GRADES
from cag_utils.stills import N_SEGMENTS, Stills
from cag_utils.tower_start import start_from_statistics

N_GRADES = len(GRADES) + 1  # no narrowing, then the six grades
TOKENS_ASKED = 16  # tokens a step that must know the whole picture's lesions
DENSE_SHARE = 0.35  # of the steps, before tokens are asked about the whole picture


class TowerTask(nn.Module):
    """A SigLIP tower with linear heads on its tokens; the heads are thrown away afterwards.

    Attributes:
        tower: The tower.
        segment: Token to the AHA segment in its patch, or none (16).
        narrowing: Token to how much it looks narrowed (first), and to the grade if it is (6).
        nowhere: How much a picture looks like one without a narrowing: one number.
        summary: Token to the grade of each of the 15 segments in the whole picture (15 x 7).
    """

    def __init__(self, config: SiglipVisionConfig):
        super().__init__()
        # Eager attention: on CPUs, SDPA's backward pass is the slower one in bfloat16.
        self.tower = SiglipVisionModel._from_config(config, attn_implementation="eager")
        width = config.hidden_size
        self.segment = nn.Linear(width, N_SEGMENTS + 1)
        self.narrowing = nn.Linear(width, N_GRADES)
        self.nowhere = nn.Parameter(torch.zeros(1))
        self.summary = nn.Linear(width, N_SEGMENTS * N_GRADES)

    def losses(
        self, pixels: torch.Tensor, truth: dict[str, torch.Tensor], whole: bool
    ) -> dict[str, torch.Tensor]:
        """Return the loss of each head.

        Args:
            pixels: (B, 3, S, S), -1 to 1.
            truth: `segment_map` and `grade_map` (B, P), `grades` (B, 15), long.
            whole: Whether tokens are also asked about the whole picture.
        """
        tokens = self.tower(pixel_values=pixels).last_hidden_state
        found = {"segment": _cross_entropy(self.segment(tokens), truth["segment_map"])}
        found |= self._narrowing_losses(tokens, truth["grade_map"])
        if whole:
            asked = tokens[:, torch.randperm(tokens.shape[1])[:TOKENS_ASKED]]
            logits = self.summary(asked).unflatten(-1, (N_SEGMENTS, N_GRADES))
            grades = truth["grades"][:, None].expand(-1, asked.shape[1], -1)
            found["summary"] = N_SEGMENTS * _cross_entropy(logits, grades)
        return found

    def _narrowing_losses(self, tokens, grade_map) -> dict[str, torch.Tensor]:
        """Where is it, among all patches and nowhere? And there, how tight?

        One patch in a hundred holds a narrowing: a loss a patch would be won by never seeing one.
        """
        scores = self.narrowing(tokens).float()
        nowhere = self.nowhere.expand(len(tokens), 1)
        chance = torch.cat([scores[..., 0], nowhere], 1).log_softmax(1)
        narrowed = grade_map > 0
        target = torch.cat([narrowed, ~narrowed.any(1, keepdim=True)], 1).float()
        target = target / target.sum(1, keepdim=True)
        where = -(target * chance).sum(1).mean()
        if not narrowed.any():
            return {"where": where}
        grade = _cross_entropy(scores[narrowed][:, 1:], grade_map[narrowed] - 1)
        return {"where": where, "grade": grade}


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
    task: TowerTask | None = None,
    dense_share: float = DENSE_SHARE,
    on_step: Callable[[int, dict], None] | None = None,
) -> tuple[TowerTask, list[dict]]:
    """Pretrain the tower.

    Args:
        stills: Training pictures with dense labels.
        config: From `twins.tower_config`.
        steps: Optimiser steps.
        seed: Order of the pictures, jitter and initial weights.
        batch_size: Pictures a step.
        learning_rate: Peak; 100 steps of warm-up, then a cosine to zero.
        task: Goes on from here instead of starting afresh, e.g. with more pictures.
        dense_share: Share of the steps before tokens are asked about the whole picture.
        on_step: Called with the step and its losses, e.g. to print or to evaluate.

    Returns:
        (the trained task, one row of losses a step).

    Raises:
        ValueError: Fewer pictures than one batch.
    """
    if len(stills) < batch_size:
        raise ValueError(f"{len(stills)} stills are fewer than one batch of {batch_size}")
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    if task is None:
        task = TowerTask(config)
        start_from_statistics(task.tower, stills.images[:1000])
    task.train()
    optimiser = torch.optim.AdamW(
        task.parameters(), lr=learning_rate, weight_decay=0.05, betas=(0.9, 0.98), fused=True
    )
    history = []
    for step, index in enumerate(_batches(rng, len(stills), batch_size, steps)):
        set_rate(optimiser, learning_rate, step, steps)
        truth = {
            name: torch.from_numpy(getattr(stills, name)[index]).long()
            for name in ("segment_map", "grade_map", "grades")
        }
        pixels = to_pixels(jitter(rng, stills.images[index]))
        with cpu_autocast():
            losses = task.losses(pixels, truth, whole=step >= dense_share * steps)
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        history.append({"step": step} | {k: float(v.detach()) for k, v in losses.items()})
        if on_step:
            on_step(step, history[-1])
    return task.eval(), history


@torch.no_grad()
def score_tower(task: TowerTask, stills: Stills, batch_size: int = 64) -> dict[str, float]:
    """Measure a tower on held-out stills.

    Args:
        task: The trained task.
        stills: Held-out pictures.
        batch_size: Pictures a pass.

    Returns:
        `patch_accuracy` (segment of vessel patches), `laterality_accuracy`, `place_accuracy`
        (pictures with a visible lesion whose most suspect patch holds one), `segment_accuracy`
        (pictures with a lesion whose likeliest narrowed segment is a true one), `grade_accuracy`
        (of those named right, the exact grade), `lesion_f1` (segments called narrowed) and
        `healthy_accuracy` (pictures without a lesion called so). Shares, 0 to 1.
    """
    patches, narrowest, summaries = [], [], []
    for start in range(0, len(stills), batch_size):
        with cpu_autocast():
            pixels = to_pixels(stills.images[start : start + batch_size])
            tokens = task.tower(pixel_values=pixels).last_hidden_state
            patches.append(task.segment(tokens).argmax(-1).numpy())
            narrowest.append(task.narrowing(tokens)[..., 0].argmax(-1).numpy())
            logits = task.summary(tokens).float().unflatten(-1, (N_SEGMENTS, N_GRADES))
        summaries.append(logits.softmax(-1).mean(1).numpy())
    patch, chance = np.concatenate(patches), np.concatenate(summaries)
    vessel = stills.segment_map > 0
    narrowed = stills.grade_map > 0
    found = np.take_along_axis(narrowed, np.concatenate(narrowest)[:, None], 1)[:, 0]
    patch_is_lca = (patch >= 5).sum(1) > ((patch >= 1) & (patch <= 4)).sum(1)
    return {
        "patch_accuracy": float((patch == stills.segment_map)[vessel].mean()),
        "laterality_accuracy": float((patch_is_lca == stills.lca).mean()),
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


def cpu_autocast() -> torch.autocast:
    """Return bfloat16 autocasting where the CPU computes in it, twice as fast; else float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported())


def set_rate(optimiser: torch.optim.Optimizer, peak: float, step: int, steps: int) -> None:
    """Set the learning rate: linear warm-up (100 steps, at most a tenth), then a cosine to zero."""
    warm = max(1, min(100, steps // 10))
    rate = peak * min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in optimiser.param_groups:
        group["lr"] = rate


def _cross_entropy(logits, truth):
    return functional.cross_entropy(logits.float().flatten(0, -2), truth.flatten())


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
    called = chance[..., 0] < 0.5
    hits = (called & (grades > 0)).sum()
    return {
        "segment_accuracy": float(right.mean()),
        "grade_accuracy": float((named == grades[rows, likeliest])[right].mean()),
        "lesion_f1": float(2 * hits / max(1, called.sum() + (grades > 0).sum())),
        "healthy_accuracy": float((~called[~ill].any(1)).mean()) if (~ill).any() else float("nan"),
    }
