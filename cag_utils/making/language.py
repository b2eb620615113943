"""Caption pretraining: a language model learns to read a frozen tower, in generic words.

The tower's features are computed once. Every step writes fresh questions and answers about them,
in both languages, so no caption is seen twice and the model must look at the picture.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import Gemma3Processor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cag_utils.keyframes.network import autocast, pick_device
from cag_utils.keyframes.training import fit
from cag_utils.making.captions import GRADE_WORDS, KINDS, LANGUAGES, wording, write_caption
from cag_utils.making.muon import muon_and_adamw
from cag_utils.making.stills import Stills
from cag_utils.making.tower import to_pixels
from cag_utils.making.twins import POOLED_TOKENS
from cag_utils.segments import AHA_SEGMENTS

LEARNING_RATE = 2e-3  # peak of AdamW's
GROUPED = 4  # batches drawn at once and parted by length: half of what is padded is saved


@torch.no_grad()
def encode_stills(tower: torch.nn.Module, stills: Stills) -> torch.Tensor:
    """Return a SiglipVisionModel's tokens of every still: (N, P, width) float16."""
    device = pick_device()
    tower.to(device).eval()
    with autocast(device):
        parts = (to_pixels(stills.images[i : i + 64]) for i in range(0, len(stills), 64))
        rows = [tower(pixel_values=x.to(device)).last_hidden_state.half().cpu() for x in parts]
    tower.cpu()
    return torch.cat(rows)


def caption_loss(model, batch: dict[str, torch.Tensor], features: torch.Tensor) -> torch.Tensor:
    """Return the weighted next-token loss of a batch, from cached tower features.

    Args:
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
    kinds: Sequence[str] = tuple(KINDS),
    parts: int = 1,
    checkpoint: Path | None = None,
) -> list[dict]:
    """Train projector and language model on generic captions, in place; the tower stays as it is.

    Args:
        model: A twin whose tower made `features`.
        features: From `encode_stills`.
        steps: Optimiser steps, a multiple of `parts`.
        seed: Order of pictures, patients and wording.
        batch_size: Captions a step.
        kinds: Of captions, drawn by their share in `KINDS`. `LOOKING` leaves out long texts: the
            model learns to look in a third of the time.
        parts: Of the training; after each, `checkpoint` is written, from which the same call goes
            on after a kill with the same result.
        checkpoint: File, or None.

    Returns:
        One row (step, loss) a step.
    """
    device = pick_device()
    model.to(device)
    model.set_attn_implementation("eager")
    model.model.vision_tower.requires_grad_(False)
    shares = np.array([KINDS[kind] for kind in kinds])

    def batches(part: int):
        rng = np.random.default_rng([seed, part])
        for done in range(0, steps // parts, GROUPED):
            count = min(GROUPED, steps // parts - done)
            index = rng.integers(len(stills), size=count * batch_size)
            drawn = rng.choice(list(kinds), len(index), p=shares / shares.sum())
            facts = [stills.facts(rng, i) for i in index]
            pairs = [
                write_caption(rng, one, LANGUAGES[int(rng.integers(2))], str(kind))
                for one, kind in zip(facts, drawn, strict=True)
            ]
            lengths = processor.tokenizer([question + text for question, text in pairs])
            order = np.argsort([len(ids) for ids in lengths.input_ids], kind="stable")
            for rows in rng.permutation(order.reshape(count, batch_size)):
                yield 1, ([pairs[i] for i in rows], features[index[rows]])

    def loss(pairs: list[tuple[str, str]], seen: torch.Tensor) -> dict[str, torch.Tensor]:
        batch = {k: v.to(device) for k, v in collate(processor, pairs).items()}
        # A text of sixty words to copy counts more than a segment's name, not twenty times as much.
        batch["weight"] = batch["weight"] / batch["weight"].sum(1, keepdim=True).sqrt()
        with autocast(device):
            return {"loss": caption_loss(model, batch, seen.to(device, torch.float32))}

    optimisers = muon_and_adamw(model.model.language_model.layers, model, LEARNING_RATE)
    key = f"{kinds} {seed} {len(stills)} {batch_size}"
    kept = {"checkpoint": checkpoint, "key": key, "name": "captions"}
    done = fit(model, batches, loss, optimisers, steps // parts, parts, **kept)
    model.cpu().eval().requires_grad_(True)
    return done.steps


PROMPT_WEIGHT = 0.2  # Gemma3 also learns to continue its prompt, so that it knows reports by heart


def _is_gemma3(processor) -> bool:
    return isinstance(processor, Gemma3Processor)


def prompt_ids(processor, question: str) -> list[int]:
    """Return a question's token ids, image tokens included, exactly as a processor writes them."""
    tok = processor.tokenizer
    if _is_gemma3(processor):
        image = f"{tok.boi_token}{tok.image_token * POOLED_TOKENS}{tok.eoi_token}"
        said = f"user\n\n\n{image}\n\n{question.strip()}"
        text = f"{tok.bos_token}<start_of_turn>{said}<end_of_turn>\n<start_of_turn>model\n"
    else:
        images = tok.image_token * processor.image_processor.image_seq_length
        text = f"{images}{tok.bos_token}{question.strip()}\n"
    return tok(text, add_special_tokens=False).input_ids


def collate(processor, pairs: Sequence[tuple[str, str]]) -> dict[str, torch.Tensor]:
    """Turn pairs of question and answer into a right-padded batch.

    Returns:
        `input_ids`, `attention_mask`, `token_type_ids` (as the model class wants them: image tokens
        for Gemma3, the answer for PaliGemma) and `weight`, each (B, T); `weight` is what the loss
        of predicting each token counts.
    """
    tok = processor.tokenizer
    end = "<end_of_turn>\n" if _is_gemma3(processor) else tok.eos_token
    prompts = [torch.tensor(prompt_ids(processor, question)) for question, _ in pairs]
    told = tok([text + end for _, text in pairs], add_special_tokens=False).input_ids
    rows = [torch.cat([q, torch.tensor(a)]) for q, a in zip(prompts, told, strict=True)]
    ids = pad_sequence(rows, batch_first=True, padding_value=tok.pad_token_id)
    at = torch.arange(ids.shape[1])
    mask = torch.stack([at < len(row) for row in rows]).long()
    is_answer = mask * torch.stack([at >= len(q) for q in prompts])
    weight = is_answer.float()
    if not _is_gemma3(processor):  # the prefix sees itself whole: predicting it would be cheating
        return dict(input_ids=ids, attention_mask=mask, token_type_ids=is_answer, weight=weight)
    is_image = (ids == tok.image_token_id).long()
    after_image = is_image.flip(1).cumsum(1).flip(1) == 0
    weight += PROMPT_WEIGHT * (mask.bool() & after_image & (is_answer == 0))
    return dict(input_ids=ids, attention_mask=mask, token_type_ids=is_image, weight=weight)


NAMES = {name: s.number for s in AHA_SEGMENTS.values() for name in (s.name_en, s.name_ja)}
PERCENTS = {word: percent for percent, words in GRADE_WORDS.items() for word in words.values()}
LIST_ENTRY = re.compile(f"({'|'.join(NAMES)})(?:: |：)({'|'.join(PERCENTS)})")


@torch.no_grad()
def answer(model, processor, questions: Sequence[str], images: np.ndarray, most=48) -> list[str]:
    """Answer one question about each picture, (N, S, S) uint8, greedily, in `most` tokens."""
    tok = processor.tokenizer
    rows = [prompt_ids(processor, q) for q in questions]
    batch = dict(tok.pad({"input_ids": rows}, padding_side="left", return_tensors="pt"))
    ids = batch["input_ids"]
    kinds = (ids == tok.image_token_id).long() if _is_gemma3(processor) else torch.zeros_like(ids)
    batch |= {"token_type_ids": kinds, "pixel_values": to_pixels(images)}
    out = model.generate(**batch, max_new_tokens=most, do_sample=False)
    return tok.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)


def score_captions(model, processor, stills: Stills, language: str) -> dict[str, float]:
    """Ask a twin in English or Japanese for the lesions of held-out stills; compare with the truth.

    Returns:
        Shares, 0 to 1: `laterality` (side of the named arteries, or of the description when none is
        named), `segment` (pictures with a lesion of which the first listed is a true one), `grade`
        (of those, the exact grade), `list_exact` (all pictures: the very list), `healthy`.
    """
    lesions, side = (wording("asks", kind, language)[0] for kind in ("list", "side"))
    lists, sides = [], []
    for start in range(0, len(stills), 50):
        part = stills.images[start : start + 50]
        lists += answer(model, processor, [lesions] * len(part), part)
        sides += answer(model, processor, [side] * len(part), part, 16)
    truth = [{x["segment"]: x["percent"] for x in stills.lesions(i)} for i in range(len(stills))]
    pairs = list(zip(truth, map(read_list, lists), strict=True))
    first = [(t, next(iter((f or {}).items()), (0, 0))) for t, f in pairs if t]
    exact = [t[segment] == percent for t, (segment, percent) in first if segment in t]
    well = [f == {} for t, f in pairs if not t]
    named = [stills.laterality(i) in text for i, text in enumerate(sides)]
    return {
        "laterality": float(np.mean(named)),
        "segment": float(np.mean([segment in t for t, (segment, _) in first])),
        "grade": float(np.mean(exact)) if exact else 0.0,
        "list_exact": float(np.mean([t == f for t, f in pairs])),
        "healthy": float(np.mean(well)) if well else float("nan"),
    }


def score_told(model, processor, stills: Stills, language: str, seed: int = 0) -> float:
    """Return the share of lesions, 0 to 1, that a twin lists when they are told it in words.

    The captions of the kind `told`, one a held-out still; a lesion counts with its grade.
    """
    rng, named = np.random.default_rng(seed), []
    facts = [stills.facts(rng, i) for i in range(len(stills))]
    pairs = [write_caption(rng, one, language, "told") for one in facts]
    for start in range(0, len(pairs), 50):
        part = pairs[start : start + 50]
        images = stills.images[start : start + 50]
        said = answer(model, processor, [question for question, _ in part], images)
        for (_, told), text in zip(part, said, strict=True):
            found = (read_list(text) or {}).items()
            named += [lesion in found for lesion in read_list(told).items()]
    return float(np.mean(named))


def score_blind_guess(stills: Stills) -> float:
    """Return the `segment` score, 0 to 1, of naming each side's commonest narrowed segment.

    Whoever scores no better has seen the side and nothing of the lesion.

    Raises:
        ValueError: No picture has a lesion.
    """
    narrowed = stills.grades > 0
    if not narrowed.any():
        raise ValueError("no still has a lesion: there is nothing to guess")
    hits = sum(narrowed[stills.lca == side].sum(0).max() for side in (True, False))
    return float(hits / narrowed.any(1).sum())


def read_list(text: str) -> dict[int, int] | None:
    """Read a twin's list of lesions: `proximal LAD: severe, mid LCX: mild.`, `none.`, or Japanese.

    Returns:
        Segment to percent; empty for none; None if the text is neither (it then counts as wrong).
    """
    found = re.findall(LIST_ENTRY, text)
    if not found and text.strip() not in ("none.", "なし。"):
        return None
    return {NAMES[name]: PERCENTS[grade] for name, grade in found}
