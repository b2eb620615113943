"""Caption pretraining: a language model learns to read a frozen tower, in generic words.

The tower's features are computed once. Every step writes fresh questions and answers about them,
in both languages, so no caption is seen twice and the model must look at the picture.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cag_utils.caption_batches import collate
from cag_utils.cine_dicom import name_view
from cag_utils.muon import muon_and_adamw
from cag_utils.networks import autocast, pick_device
from cag_utils.phantom.captions import KINDS, LANGUAGES, Scene, write_caption
from cag_utils.phantom.findings import decide_plan
from cag_utils.phantom.hospital_notes import write_report
from cag_utils.phantom.patients import draw_record
from cag_utils.pretrain import set_rate, to_pixels
from cag_utils.stills import Stills


def draw_scene(rng: np.random.Generator, stills: Stills, index: int) -> Scene:
    """Give a still a patient: a history that fits its lesions, and the plan they lead to."""
    lesions = stills.lesions(index)
    record = draw_record(rng, lesions, str(rng.choice(["M", "F"])))
    return Scene(
        laterality=stills.laterality(index),
        lesions=tuple(lesions),
        view=name_view(*stills.angles[index]),
        report=write_report(rng, record),
        plan=decide_plan(record, lesions),
        seen=stills.seen(index),
    )


@torch.no_grad()
def encode_stills(tower: torch.nn.Module, stills: Stills, batch_size: int = 64) -> torch.Tensor:
    """Return the tower's tokens of every still: (N, P, width) float16.

    Args:
        tower: A SiglipVisionModel.
        stills: The pictures.
        batch_size: Pictures a pass.
    """
    device = pick_device()
    tower.to(device).eval()
    rows = []
    for start in range(0, len(stills), batch_size):
        with autocast(device):
            pixels = to_pixels(stills.images[start : start + batch_size]).to(device)
            rows.append(tower(pixel_values=pixels).last_hidden_state.half().cpu())
    tower.cpu()
    return torch.cat(rows)


def caption_loss(model, batch: dict[str, torch.Tensor], features: torch.Tensor) -> torch.Tensor:
    """Return the weighted next-token loss of a batch, from cached tower features.

    Args:
        model: A twin.
        batch: From `collate`.
        features: (B, P, width) the tower's tokens.
    """
    inputs = {k: v for k, v in batch.items() if k != "weight"}
    seen = model.model.multi_modal_projector(features)
    image = BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=seen)
    hidden = model.model(**inputs, mm_encoder_outputs={"image": image}).last_hidden_state
    weight = batch["weight"][:, 1:]
    asked = weight > 0  # the vocabulary is wide: only the positions that count are scored
    wanted = batch["input_ids"][:, 1:][asked]
    words = _hold_unwritten(model.lm_head.weight, wanted)
    logits = functional.linear(hidden[:, :-1][asked], words).float()
    loss = functional.cross_entropy(logits, wanted, reduction="none")
    return (loss * weight[asked]).sum() / weight.sum()


def _hold_unwritten(words: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Let the loss move the output rows of those words alone that the batch writes.

    Every other word is pushed away a little at every step, all of them in one direction, and AdamW
    makes large steps of little pushes: soon they are one bundle of words that can never be written
    again, by no LoRA either. Held, they stay apart, and the model learns to avoid them instead.
    """
    written = torch.zeros(len(words), 1, dtype=torch.bool, device=words.device)
    written[wanted] = True
    return torch.where(written, words, words.detach())


def train_captions(
    model,
    processor,
    stills: Stills,
    features: torch.Tensor,
    steps: int,
    seed: int = 0,
    batch_size: int = 16,
    learning_rate: float = 2e-3,
    matrix_rate: float = 5e-3,
    kinds: Sequence[str] = tuple(KINDS),
    on_step: Callable[[int, float], None] | None = None,
) -> list[dict]:
    """Train projector and language model on generic captions, in place; the tower stays as it is.

    Args:
        model: A twin whose tower made `features`.
        processor: Its processor.
        stills: Training pictures.
        features: From `encode_stills`.
        steps: Optimiser steps.
        seed: Order of pictures, patients and wording.
        batch_size: Captions a step.
        learning_rate: Peak of AdamW's.
        matrix_rate: Peak of Muon's, for the language model's hidden matrices.
        kinds: Of captions, drawn by their share in `KINDS`. `LOOKING` leaves out long texts: the
            model learns to look in a third of the time.
        on_step: Called with step and loss.

    Returns:
        One row (step, loss) a step.
    """
    rng = np.random.default_rng(seed)
    device = pick_device()
    model.to(device).train()
    model.set_attn_implementation("eager")  # faster than SDPA in bfloat16 on a CPU
    model.model.vision_tower.requires_grad_(False)
    layers = model.model.language_model.layers
    optimisers = muon_and_adamw(layers, model, matrix_rate, learning_rate)
    trained = [p for p in model.parameters() if p.requires_grad]
    history, shares = [], np.array([KINDS[kind] for kind in kinds])
    for step in range(steps):
        for optimiser, peak in optimisers.items():
            set_rate(optimiser, peak, step, steps)
        index = rng.integers(len(stills), size=batch_size)
        drawn = rng.choice(list(kinds), batch_size, p=shares / shares.sum())
        scenes = [draw_scene(rng, stills, i) for i in index]
        pairs = [
            write_caption(rng, scene, LANGUAGES[int(rng.integers(2))], str(kind))
            for scene, kind in zip(scenes, drawn, strict=True)
        ]
        batch = {k: v.to(device) for k, v in collate(processor, pairs).items()}
        # A text of sixty words to copy counts more than a segment's name, not twenty times as much.
        batch["weight"] = batch["weight"] / batch["weight"].sum(1, keepdim=True).sqrt()
        with autocast(device):
            loss = caption_loss(model, batch, features[index].to(device, torch.float32))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        history.append({"step": step, "loss": float(loss.detach())})
        if on_step:
            on_step(step, history[-1]["loss"])
    model.cpu().eval().requires_grad_(True)
    return history
