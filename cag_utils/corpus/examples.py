"""Cases as a model reads them: picture, prompt and expected answer, and how they become tensors."""

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from PIL import Image
from transformers import BatchFeature, PaliGemmaProcessor, ProcessorMixin

from cag_utils.corpus.pairs import prompt
from cag_utils.params import check_choice
from cag_utils.tables import load_table

LANGUAGES = ("en", "ja")
SPLITS = ("train", "val", "test")
CONTROL = re.compile(r"<([/|]?[A-Za-z_][\w|/-]*)>")


def read_examples(pairs: str | Path, language: str, outputs: str | Path) -> pd.DataFrame:
    """Read notebook 03's pairs as prompts and answers in one language.

    Args:
        outputs: The folder its `png` paths are relative to, `outputs/<profile>/`.

    Returns:
        By `case_id`: case_id, patient_id, split, laterality, image (absolute path), report, answer,
        prompt.

    Raises:
        ValueError: Unknown language or split, an empty report or answer.
        FileNotFoundError: A picture is missing.
    """
    check_choice("language", language, LANGUAGES)
    table = load_table(pairs, dtype={"patient_id": str}, keep_default_na=False)
    table = table.sort_values("case_id", kind="stable").reset_index(drop=True)
    for split in sorted(set(table["split"])):
        check_choice("split", split, SPLITS)
    made = table[["case_id", "patient_id", "split", "laterality"]].assign(
        image=[str(Path(outputs) / png) for png in table["png"]],
        report=table[f"report_{language}"].map(plain_text),
        answer=table[f"findings_{language}"].map(plain_text),
    )
    for column in ("report", "answer"):
        if (bare := made[column].str.strip() == "").any():
            raise ValueError(f"{pairs}: case {made['case_id'][bare].iloc[0]} has an empty {column}")
    if lost := [path for path in made["image"] if not Path(path).is_file()]:
        raise FileNotFoundError(f"{lost[0]} and {len(lost) - 1} more pictures of {pairs} are gone")
    texts = zip(made["laterality"], made["report"], strict=True)
    made["prompt"] = [prompt(side, report, language) for side, report in texts]
    return made


def plain_text(text: str) -> str:
    """Return a note in which no word is one of a tokenizer's: `<image>`, `</s>`, `<|im_end|>`.

    A tokenizer would take them, typed in a note, for a picture or the end of a turn.
    """
    return CONTROL.sub(r"‹\1›", text)


def first_patients(cases: pd.DataFrame, n_patients: int) -> pd.DataFrame:
    """Return all cases of the first patients by id (pseudonyms, so by chance); 0 keeps all."""
    kept = sorted(set(cases["patient_id"]))[: n_patients or None]
    return cases[cases["patient_id"].isin(kept)].reset_index(drop=True)


def picture_side(processor: ProcessorMixin) -> int:
    """Return the side, in pixels, of the square picture a processor makes."""
    return int(processor.image_processor.size["height"])


def open_picture(path: str | Path, processor: ProcessorMixin) -> Image.Image:
    """Open a frame as RGB, shrunk to what the model reads, never enlarged.

    Training and generation open pictures here, so both see the same pixels.

    Args:
        path: PNG of one frame, grey or colour.
        processor: Supplies the side and the resampling filter.
    """
    with Image.open(path) as found:
        picture = found.convert("RGB")
    side = picture_side(processor)
    if min(picture.size) > side:
        picture = picture.resize((side, side), processor.image_processor.resample)
    return picture


def prompt_style(processor: ProcessorMixin) -> str:
    """Return how prompts are written: `Backbone.prompt` as `load_backbone` left it, or by class."""
    told = "prefix" if isinstance(processor, PaliGemmaProcessor) else "chat"
    return getattr(processor, "prompt_style", told)


def encode_prompts(
    processor: ProcessorMixin,
    pictures: Sequence[Image.Image | Sequence[Image.Image]],
    prompts: Sequence[str],
) -> BatchFeature:
    """Turn pictures, one or several a prompt, and prompts into a batch, ready for `generate`.

    Returns:
        Padded on the left, so every prompt ends where its answer begins.

    Raises:
        ValueError: Several pictures for a backbone that was pretrained on one.
    """
    seen = [[one] if isinstance(one, Image.Image) else list(one) for one in pictures]
    tensors = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    if prompt_style(processor) == "prefix":
        if max(map(len, seen), default=1) > 1:
            raise ValueError("a prefix-style backbone (PaliGemma) takes one picture a prompt")
        texts = [f"<image>{text}" for text in prompts]
        batch = processor(images=seen, text=texts, **tensors)
        batch.pop("labels")
        return batch
    turns = []
    for own, text in zip(seen, prompts, strict=True):
        content = [{"type": "image"}] * len(own) + [{"type": "text", "text": text}]
        turns.append([{"role": "user", "content": content}])
    texts = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    tensors["add_special_tokens"] = False  # the template has written <bos> already
    return processor(images=seen, text=texts, **tensors)
