"""What an untuned twin knows: its own generic words on held-out stills, against the truth."""

import re
from collections.abc import Sequence

import numpy as np
import torch

from cag_utils.caption_batches import is_gemma3, prompt_ids
from cag_utils.phantom.caption_phrases import GRADE_WORDS
from cag_utils.pretrain import to_pixels
from cag_utils.segments import AHA_SEGMENTS
from cag_utils.stills import Stills

NAMES = {name: s.number for s in AHA_SEGMENTS.values() for name in (s.name_en, s.name_ja)}
PERCENTS = {word: percent for percent, words in GRADE_WORDS.items() for word in words.values()}
LIST_ENTRY = re.compile(f"({'|'.join(NAMES)})(?:: |：)({'|'.join(PERCENTS)})")


@torch.no_grad()
def answer(
    model,
    processor,
    questions: Sequence[str],
    images: np.ndarray,
    max_new_tokens: int = 48,
) -> list[str]:
    """Answer one question about each picture, greedily.

    Args:
        model: A twin.
        processor: Its processor.
        questions: One a picture.
        images: (N, S, S) uint8.
        max_new_tokens: Longest answer.

    Returns:
        The answers.
    """
    tok = processor.tokenizer
    rows = [prompt_ids(processor, q) for q in questions]
    shape = (len(rows), max(map(len, rows)))
    ids = torch.full(shape, tok.pad_token_id)
    mask = torch.zeros(shape, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, shape[1] - len(row) :] = torch.tensor(row)
        mask[i, shape[1] - len(row) :] = 1
    kinds = (ids == tok.image_token_id).long() if is_gemma3(processor) else torch.zeros_like(ids)
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        token_type_ids=kinds,
        pixel_values=to_pixels(images),
        max_new_tokens=max_new_tokens,
        do_sample=False,
    )[:, shape[1] :]
    return tok.batch_decode(out, skip_special_tokens=True)


def score_captions(
    model, processor, stills: Stills, language: str, batch_size: int = 50
) -> dict[str, float]:
    """Ask a twin to list the lesions of held-out stills and compare with the truth.

    Args:
        model: A twin.
        processor: Its processor.
        stills: Held-out pictures.
        language: en or ja.
        batch_size: Pictures a pass.

    Returns:
        Shares, 0 to 1: `laterality` (side of the named arteries, or of the description when none is
        named), `segment` (pictures with a lesion of which the first listed is a true one), `grade`
        (of those, the exact grade), `list_exact` (all pictures: the very list), `healthy`.
    """
    question = {"en": "List every lesion.", "ja": "病変をすべて挙げてください。"}
    side = {"en": "Which coronary artery is this?", "ja": "これはどちらの冠動脈ですか？"}
    lists, sides = [], []
    for start in range(0, len(stills), batch_size):
        part = stills.images[start : start + batch_size]
        lists += answer(model, processor, [question[language]] * len(part), part)
        sides += answer(model, processor, [side[language]] * len(part), part, 16)
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


def score_blind_guess(stills: Stills) -> float:
    """Return the `segment` score of always naming the commonest narrowed segment of the side.

    Whoever scores no better has seen the side and nothing of the lesion.

    Args:
        stills: Pictures; at least one with a lesion.

    Returns:
        Share of the pictures with a lesion, 0 to 1.

    Raises:
        ValueError: No picture has a lesion.
    """
    narrowed = stills.grades > 0
    if not narrowed.any():
        raise ValueError("no still has a lesion: there is nothing to guess")
    hits = sum(narrowed[stills.lca == side].sum(0).max() for side in (True, False))
    return float(hits / narrowed.any(1).sum())


def read_list(text: str) -> dict[int, int] | None:
    """Read a twin's list of lesions in its own generic words.

    Args:
        text: E.g. `proximal LAD: severe, mid LCX: mild.`, or `none.`, or the Japanese of either.

    Returns:
        Segment to percent; empty for none; None if the text is neither (it then counts as wrong).
    """
    found = re.findall(LIST_ENTRY, text)
    if not found and text.strip() not in ("none.", "なし。"):
        return None
    return {NAMES[name]: PERCENTS[grade] for name, grade in found}
