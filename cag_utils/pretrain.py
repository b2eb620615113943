"""Pretraining of the SigLIP tower: label every patch first, then let every token know the answer.

A tower and a language model that start from noise together stay blind for a long time: the loss
falls by learning the wording alone. So the tower learns, patch by patch, which segment runs there,
how wide it is and how much of it a lesion takes, and then to spread that over all tokens, before a
word is read.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch import nn
from transformers import SiglipVisionConfig

from cag_utils.muon import muon_and_adamw
from cag_utils.networks import autocast, pick_device
from cag_utils.stills import N_SEGMENTS, PatchLabels, Stills, patch_labels
from cag_utils.tower_start import start_attention, start_from_statistics
from cag_utils.tower_task import N_GRADES, NARROWED, TowerTask

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
    matrix_rate: float = 5e-3,
    task: TowerTask | None = None,
    dense_share: float = DENSE_SHARE,
    sparse_share: float = SPARSE_SHARE,
    on_step: Callable[[int, dict], None] | None = None,
) -> tuple[TowerTask, list[dict]]:
    """Pretrain the tower.

    Args:
        stills: Training pictures with dense labels.
        config: From `twins.tower_config`.
        steps: Optimiser steps.
        seed: Order of the pictures, jitter and initial weights.
        batch_size: Pictures a step.
        learning_rate: Peak of AdamW's; 100 steps of warm-up, then a cosine to zero.
        matrix_rate: Peak of Muon's, for the encoder's matrices. In a trial of 200 steps Muon had
            learnt what took AdamW alone about 500.
        task: Goes on from here instead of starting afresh, e.g. with more pictures.
        dense_share: Share of the steps before tokens are asked about the whole picture.
        sparse_share: Share of the steps over which the tower reads a part of the patches.
        on_step: Called with the step and its losses, e.g. to print or to evaluate.

    Returns:
        (the trained task, on the CPU; one row of losses a step).

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
        start_attention(task.tower, torch.Generator().manual_seed(seed))
    device = pick_device()
    task.to(device).train()
    encoder = getattr(task.tower, "vision_model", task.tower).encoder
    optimisers = muon_and_adamw(encoder, task, matrix_rate, learning_rate)
    history = []
    for step, index in enumerate(_batches(rng, len(stills), batch_size, steps)):
        for optimiser, peak in optimisers.items():
            set_rate(optimiser, peak, step, steps)
        images, moves = move(rng, stills.images[index])
        truth = as_truth(stills, index, config.image_size // config.patch_size, moves)
        with autocast(device):
            losses = task.losses(
                to_pixels(jitter(rng, images)).to(device),
                {name: values.to(device) for name, values in truth.items()},
                whole=step >= dense_share * steps,
                sparse=step < sparse_share * steps,
            )
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        history.append({"step": step} | {k: float(v.detach()) for k, v in losses.items()})
        if on_step:
            on_step(step, history[-1])
    return task.cpu().eval(), history


def as_truth(
    stills: Stills, index: np.ndarray, side: int, moves: np.ndarray | None = None
) -> dict[str, torch.Tensor]:
    """Return what `TowerTask.losses` compares with, for some pictures.

    Args:
        stills: The pictures.
        index: (B,) which.
        side: The tower's patches along each side of the picture.
        moves: From `move`; None if they were not moved.
    """
    found: PatchLabels = patch_labels(stills, index, side, moves)
    truth = {name: torch.from_numpy(array) for name, array in vars(found).items()}
    return truth | {"grades": torch.from_numpy(stills.grades[index]).long()}


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
    vessel, narrowed = truth.segment > 0, truth.narrowed >= NARROWED
    octaves = np.log2(np.maximum(truth.width_px, 0.25))
    found = np.take_along_axis(narrowed, np.concatenate(narrowest)[:, None], 1)[:, 0]
    patch_is_lca = (patch >= 5).sum(1) > ((patch >= 1) & (patch <= 4)).sum(1)
    return {
        "patch_accuracy": float((patch == truth.segment)[vessel].mean()),
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


def set_rate(optimiser: torch.optim.Optimizer, peak: float, step: int, steps: int) -> None:
    """Set the learning rate: linear warm-up (100 steps, at most a tenth), then a cosine to zero."""
    warm = max(1, min(100, steps // 10))
    rate = peak * min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in optimiser.param_groups:
        group["lr"] = rate


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
