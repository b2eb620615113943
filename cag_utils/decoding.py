"""Decoding with transformers: cases of like length together, greedily, a batch at a time."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from cag_utils.examples import encode_prompts, open_picture

ANSWER_COLUMNS = ("output", "seconds", "n_tokens")


@dataclass(frozen=True)
class Decoding:
    """How answers are made.

    Attributes:
        batch_size: Most cases at a time, at least 1.
        max_new_tokens: Longest answer, at least 1.
        temperature: 0 takes the likeliest token; above it, tokens are drawn from the whole
            vocabulary, the flatter the higher.
        seed: Of the draw; without effect at temperature 0.
    """

    batch_size: int
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self):
        """Check the numbers.

        Raises:
            ValueError: A size below 1, or a temperature below 0.
        """
        if min(self.batch_size, self.max_new_tokens) < 1 or self.temperature < 0:
            raise ValueError(
                "batch_size and max_new_tokens must be at least 1 and temperature at least 0, got "
                f"{self.batch_size}, {self.max_new_tokens} and {self.temperature}"
            )

    @property
    def sampling(self) -> dict:
        """The same as keywords of `generate`; a checkpoint's own top-k and top-p are left out."""
        if self.temperature == 0:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}


def prompt_lengths(processor: ProcessorMixin, prompts: Sequence[str]) -> np.ndarray:
    """Count the tokens of each prompt's text: (N,) int; a picture costs every case the same."""
    if not prompts:
        return np.zeros(0, int)
    return np.array([len(ids) for ids in processor.tokenizer(list(prompts))["input_ids"]])


def length_batches(lengths: Sequence[int], batch_size: int) -> list[np.ndarray]:
    """Sort cases by length and cut them into batches.

    A batch is padded to its longest prompt, so full batches of neighbours in length waste least.
    The longest come first: what does not fit into memory fails at once.

    Args:
        lengths: (N,) tokens of each prompt.
        batch_size: Most cases of a batch.

    Returns:
        Row numbers of each batch; every row once, equal lengths in their order.
    """
    order = np.argsort(-np.asarray(lengths, int), kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def decode(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[str],
    prompts: Sequence[str],
    settings: Decoding,
    label: str,
) -> pd.DataFrame:
    """Answer all cases with `model.generate` and its key-value cache.

    Args:
        model: In evaluation mode.
        processor: Its processor.
        images: Paths of frames.
        prompts: One a frame.
        settings: How; torch's own generators are left as they were.
        label: Of the progress bar.

    Returns:
        Columns `ANSWER_COLUMNS`, in the order of the prompts. A batch's seconds are shared out
        evenly, tokens are counted without padding and end of text.
    """
    batches = length_batches(prompt_lengths(processor, prompts), settings.batch_size)
    answers: list[tuple] = [()] * len(prompts)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices, enabled=settings.temperature > 0):
        if settings.temperature > 0:
            torch.manual_seed(settings.seed)
        for rows in tqdm(batches, desc=label, mininterval=30):
            began = time.perf_counter()
            some = [images[i] for i in rows], [prompts[i] for i in rows]
            texts, counts = _answer_batch(model, processor, *some, settings)
            each = (time.perf_counter() - began) / len(rows)
            for i, text, count in zip(rows, texts, counts, strict=True):
                answers[i] = (text.strip(), each, count)
    return pd.DataFrame(answers, columns=list(ANSWER_COLUMNS))


def end_tokens(model: PreTrainedModel) -> list[int]:
    """Return the ids that end an answer or fill the space after it."""
    config = model.generation_config
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    return [i for i in [*ends, config.pad_token_id] if i is not None]


def count_tokens(made: torch.Tensor, ends: Iterable[int]) -> list[int]:
    """Count the tokens of each answer up to its end.

    Args:
        made: (cases, tokens) ids.
        ends: Ids of end and padding.
    """
    ended = torch.isin(made, torch.tensor(list(ends)))
    return [int(row.nonzero()[0]) if row.any() else len(row) for row in ended]


@torch.inference_mode()
def _answer_batch(model, processor, images, prompts, settings: Decoding) -> tuple[list, list]:
    pictures = [open_picture(path, processor) for path in images]
    batch = encode_prompts(processor, pictures, prompts).to(model.device)
    made = model.generate(
        **batch, max_new_tokens=settings.max_new_tokens, use_cache=True, **settings.sampling
    )
    made = made[:, batch["input_ids"].shape[1] :].cpu()
    texts = processor.tokenizer.batch_decode(made, skip_special_tokens=True)
    return texts, count_tokens(made, end_tokens(model))
