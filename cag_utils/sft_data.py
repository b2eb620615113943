"""What the trainer is fed: cases as tokens, once made, and their pictures when their turn comes.

How a case becomes tokens is TRL's and the processors' business (`plain_collator`). It is done once
a case; afterwards a batch is a matter of padding (`CaseCollator`).
"""

from collections.abc import Callable, Mapping, Sequence

import datasets
import pandas as pd
import torch
from PIL import Image
from transformers import BatchFeature, PaliGemmaProcessor, ProcessorMixin
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from cag_utils.examples import picture_side
from cag_utils.tower_features import FORWARD_NAME, FeatureStore, prepare_pixels

PADDING = {"input_ids": None, "attention_mask": 0, "token_type_ids": 0, "labels": -100}
ASKING, ANSWERING = "user", "assistant"  # TRL's chat roles


class PaliGemmaCollator:
    """Prompt-completion examples as PaliGemma's prefix and suffix.

    TRL's own collator cannot feed PaliGemma prompt-completion data, and with chat messages it
    leaves `token_type_ids` at 0: every answer token would see the ones it is to predict. Here the
    prefix (picture and prompt) is bidirectional, the suffix causal, and only the suffix is scored.
    """

    def __init__(self, processor: PaliGemmaProcessor):
        self.processor = processor

    def __call__(self, examples: Sequence[Mapping]) -> BatchFeature:
        """Return a batch with labels; -100 on prefix and padding."""
        batch = self.processor(
            images=[[e["images"][0]] for e in examples],
            text=[f"<image>{e['prompt'][-1]['content']}" for e in examples],
            suffix=[e["completion"][-1]["content"] for e in examples],
            return_tensors="pt",
            padding=True,
            padding_side="right",
        )
        batch["labels"][batch["attention_mask"] == 0] = -100
        return batch


def plain_collator(processor: ProcessorMixin) -> Callable[[Sequence[Mapping]], BatchFeature]:
    """Return what turns conversations with pictures into a batch whose answers alone are scored.

    TRL's own for Gemma3, ours for PaliGemma.
    """
    if isinstance(processor, PaliGemmaProcessor):
        return PaliGemmaCollator(processor)
    return DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)


def to_cases(
    examples: pd.DataFrame, processor: ProcessorMixin, batch_size: int = 32
) -> datasets.Dataset:
    """Make tokens of all cases, once.

    The tokens do not depend on the picture, only on how many image tokens the processor spends, so
    a blank one stands in for all.

    Args:
        examples: Columns image, prompt, answer, from `examples.read_examples`.
        processor: Of the backbone.
        batch_size: Cases a pass.

    Returns:
        Columns image (path), input_ids, token_type_ids, labels (-100 but for the answer), length.
    """
    collate, side = plain_collator(processor), picture_side(processor)
    blank = Image.new("RGB", (side, side))
    rows = []
    for start in range(0, len(examples), batch_size):
        part = examples.iloc[start : start + batch_size]
        talks = [
            conversation(blank, prompt, answer)
            for prompt, answer in zip(part["prompt"], part["answer"], strict=True)
        ]
        rows += _unpad(collate(talks))
    for row, image in zip(rows, examples["image"], strict=True):
        row["image"] = image
    return datasets.Dataset.from_list(rows)


class CaseCollator:
    """Pads cases of `to_cases` on the right, and adds their pictures.

    The batch is the plain collator's, but for the picture: with a store it is `tower_features`,
    without one `pixel_values`.
    """

    def __init__(self, processor: ProcessorMixin, store: FeatureStore | None = None):
        self.processor, self.store = processor, store

    def __call__(self, cases: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        """Return input_ids, attention_mask, token_type_ids, labels, each (B, T), and pictures."""
        width = max(len(case["input_ids"]) for case in cases)
        batch = {}
        for name, filler in PADDING.items():
            filler = self.processor.tokenizer.pad_token_id if filler is None else filler
            rows = [_values(case, name) for case in cases]
            batch[name] = torch.tensor([row + [filler] * (width - len(row)) for row in rows])
        images = [case["image"] for case in cases]
        if self.store is None:
            return batch | {"pixel_values": prepare_pixels(images, self.processor)}
        return batch | {FORWARD_NAME: self.store.read(images)}


def _values(case: Mapping, name: str) -> list[int]:
    return [1] * len(case["input_ids"]) if name == "attention_mask" else list(case[name])


def _unpad(batch: Mapping[str, torch.Tensor]) -> list[dict]:
    """Rows of a batch without its padding."""
    rows = []
    for i, kept in enumerate(batch["attention_mask"].bool()):
        names = ("input_ids", "token_type_ids", "labels")
        rows.append({name: batch[name][i][kept].tolist() for name in names})
        rows[-1]["length"] = int(kept.sum())
    return rows


def conversation(picture: Image.Image | str, prompt: str, answer: str) -> dict:
    """Return one case as TRL's prompt and completion, each a list of one message."""
    return {
        "images": [picture],
        "prompt": [{"role": ASKING, "content": prompt}],
        "completion": [{"role": ANSWERING, "content": answer}],
    }
