"""What TRL is fed: prompt-completion examples with a picture, and PaliGemma's own collator."""

from collections.abc import Mapping, Sequence

import datasets
import pandas as pd
from transformers import BatchFeature, PaliGemmaProcessor, ProcessorMixin

from cag_utils.examples import open_picture, picture_side

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


def to_dataset(examples: pd.DataFrame, processor: ProcessorMixin) -> datasets.Dataset:
    """Make TRL's conversational prompt-completion dataset with pictures.

    Args:
        examples: Columns image, prompt, answer, from `examples.read_examples`.
        processor: A picture larger than it reads is shrunk once and held in memory; a smaller one
            is opened from its path when its turn comes.

    Returns:
        Columns images (a list of one), prompt, completion (lists of one message).
    """
    side = picture_side(processor)
    rows = []
    for image, prompt, answer in examples[["image", "prompt", "answer"]].itertuples(index=False):
        picture = open_picture(image, processor)
        rows.append(
            {
                "images": [picture if picture.width == side else image],
                "prompt": [{"role": ASKING, "content": prompt}],
                "completion": [{"role": ANSWERING, "content": answer}],
            }
        )
    message = datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")})
    features = {
        "images": datasets.List(datasets.Image(mode="RGB")),
        "prompt": message,
        "completion": message,
    }
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))
