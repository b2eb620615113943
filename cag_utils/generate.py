"""Answers of tuned and untuned models: prompted, timed, and every one kept."""

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from cag_utils.examples import encode_prompts, open_picture, picture_side
from cag_utils.params import check_choice
from cag_utils.sft_data import FeatureStore, core_of, project

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
    store: FeatureStore | None = None,
) -> pd.DataFrame:
    """Answer all cases with `model.generate` and its key-value cache.

    Args:
        model: In evaluation mode.
        processor: Its processor.
        images: Paths of frames.
        prompts: One a frame.
        settings: How; torch's own generators are left as they were.
        label: Of the progress bar.
        store: Filled with the frames' tower tokens; None runs the tower.

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
        for rows in tqdm(batches, desc=label, mininterval=30, disable=not label):
            began = time.perf_counter()
            some = [images[i] for i in rows], [prompts[i] for i in rows]
            texts, counts = _answer_batch(model, processor, *some, settings, store)
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
def _answer_batch(model, processor, images, prompts, settings: Decoding, store) -> tuple:
    blank = Image.new("RGB", (picture_side(processor),) * 2)  # stands in for what was seen before
    pictures = [blank if store else open_picture(path, processor) for path in images]
    batch = encode_prompts(processor, pictures, prompts).to(model.device)
    if store:
        del batch["pixel_values"]
        batch |= project(core_of(model), store.read(images).to(model.device))
    made = model.generate(
        **batch, max_new_tokens=settings.max_new_tokens, use_cache=True, **settings.sampling
    )
    made = made[:, batch["input_ids"].shape[1] :].cpu()
    texts = processor.tokenizer.batch_decode(made, skip_special_tokens=True)
    return texts, count_tokens(made, end_tokens(model))


STATUSES = ("ok", "empty", "refusal")
COLUMNS = (
    "case_id",
    "model",
    "language",
    "prompt",
    "output",
    "seconds",
    "n_tokens",
    "status",
    "ground_truth",
)
SHOT_WORDS = {
    "en": ("Examples of the answer, from other patients:", "Report: ", "Answer: "),
    "ja": ("他の患者の回答例：", "レポート：", "回答："),
}
# The first is PaliGemma2's, as the paper quotes it (4.3).
REFUSALS = (
    r"\bas an? (base |large )?(vlm|vision|ai|language model|assistant)",
    r"\bnot (been )?trained to\b",
    r"\b(i('m| am)|we('re| are)) (sorry|afraid|unable|not able|not allowed|not qualified)\b",
    r"^\W*(sorry|apologies)\b",
    r"\bi (can('t|not| not)|won't|will not|must decline)\b",
    r"申し訳(あり|ござい)ません",
    r"(お?答え|回答|対応|診断|判断|お手伝い)(する)?(こと)?(は|が)?(いた|致)?(し)?(でき|出来|しかね)(ません|かね|ない)",
)
REFUSAL = re.compile("|".join(REFUSALS), re.IGNORECASE)
FINDING = re.compile(r"#\s*\d+|\d+\s*[%％]")


def answer_status(output: str) -> str:
    """Say whether a model answered.

    The rule: nothing but white space and punctuation is `empty`. A text with a phrase of refusal
    is a `refusal`, unless it names a segment (#11) or a grade (75%): then the model answered, with
    an apology. All else is `ok`, right or wrong.

    Args:
        output: What the model wrote.

    Returns:
        ok, empty or refusal.
    """
    if not re.search(r"\w", output):
        return "empty"
    if REFUSAL.search(output.replace("’", "'")) and not FINDING.search(output):
        return "refusal"
    return "ok"


def pick_shots(examples: pd.DataFrame, n_shots: int, rng: np.random.Generator) -> pd.DataFrame:
    """Draw the examples that untuned models are shown; sides take turns.

    Args:
        examples: From `examples.read_examples`; only the train split is drawn from.
        n_shots: How many.
        rng: Generator.

    Returns:
        `n_shots` rows, LCA and RCA in turn as far as both exist.

    Raises:
        ValueError: The train split is smaller than that.
    """
    train = examples[examples["split"] == "train"]
    if len(train) < n_shots:
        raise ValueError(f"{n_shots} shots need as many training cases, there are {len(train)}")
    shuffled = train.iloc[rng.permutation(len(train))]
    turn = shuffled.groupby("laterality").cumcount()
    order = turn.to_numpy() * 2 + (shuffled["laterality"] == "RCA").to_numpy()
    return shuffled.iloc[np.argsort(order, kind="stable")[:n_shots]]


def few_shot_prompt(prompt: str, shots: pd.DataFrame, language: str) -> str:
    """Put examples of report and answer before a prompt.

    The shots are text only: PaliGemma was pretrained on one picture a prompt, and all untuned
    models, o4-mini too, should get the same words. They show the format, not how pictures look.

    Args:
        prompt: The dataset's prompt of one case.
        shots: Columns report, answer; none leaves the prompt as it is.
        language: en or ja.

    Raises:
        ValueError: Unknown language.
    """
    check_choice("language", language, SHOT_WORDS)
    if shots.empty:
        return prompt
    lead, report, answer = SHOT_WORDS[language]
    blocks = [
        f"{report}{row.report}\n{answer}{row.answer}" for row in shots.itertuples(index=False)
    ]
    return "\n\n".join([lead, *blocks, prompt])


def generate_answers(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[str],
    prompts: Sequence[str],
    batch_size: int,
    max_new_tokens: int,
    label: str = "generating",
    temperature: float = 0.0,
    seed: int = 0,
    features: str | Path = "",
) -> pd.DataFrame:
    """Let a model answer, greedily unless told otherwise.

    Cases are sorted by the length of their prompt before they are cut into batches, so that short
    prompts are not padded to long ones. A batch ends with its longest answer.

    Args:
        model: Tuned or not, in evaluation mode.
        processor: Its processor.
        images: Paths of frames.
        prompts: One a frame.
        batch_size: Most cases at a time; at temperature 0 it changes the speed, not the answers
            (in float32; bfloat16 may break a near tie the other way).
        max_new_tokens: Longest answer.
        label: Of the progress bar; empty shows none.
        temperature: 0 is greedy; above it, answers are drawn, and the draw depends on the batches.
        seed: Of the draw: the same seed and batch size give the same answers.
        features: Folder of tower features (`sft_data.FeatureStore`): models that share a tower
            compute a picture once. Empty runs the tower for each case.

    Returns:
        One row a case, in the order given: output, seconds (a batch's time shared out evenly),
        n_tokens (without padding and end of text).

    Raises:
        ValueError: Not one prompt a frame, a size below 1, or a temperature below 0.
    """
    settings = Decoding(batch_size, max_new_tokens, temperature, seed)
    if len(images) != len(prompts):
        raise ValueError(f"one prompt a frame, got {len(images)} frames, {len(prompts)} prompts")
    store = FeatureStore(features, model, processor) if features else None
    if store:
        store.fill(images)
    return decode(model, processor, images, prompts, settings, label, store)


def generation_table(
    examples: pd.DataFrame, prompts: Sequence[str], answers: pd.DataFrame, model: str, language: str
) -> pd.DataFrame:
    """Put answers into the table that the later notebooks read.

    Args:
        examples: One row a case, in the order of the answers.
        prompts: What the model was given.
        answers: From `generate_answers` or `endpoint.ask`; a `status` it brings is kept.
        model: Its key, e.g. `gemma3_lora`.
        language: en or ja.

    Returns:
        Columns `COLUMNS`; no case is dropped.

    Raises:
        ValueError: Not one answer a case.
    """
    if not len(examples) == len(prompts) == len(answers):
        raise ValueError(
            f"{model}: {len(examples)} cases, {len(prompts)} prompts and {len(answers)} answers"
        )
    statuses = [answer_status(text) for text in answers["output"]]
    if "status" in answers:
        statuses = answers["status"].where(answers["status"] != "", statuses).tolist()
    return pd.DataFrame(
        {
            "case_id": examples["case_id"].to_numpy(),
            "model": model,
            "language": language,
            "prompt": list(prompts),
            "output": answers["output"].to_numpy(),
            "seconds": answers["seconds"].to_numpy(),
            "n_tokens": answers["n_tokens"].to_numpy(),
            "status": statuses,
            "ground_truth": examples["answer"].to_numpy(),
        }
    )[list(COLUMNS)]


def status_counts(generations: pd.DataFrame) -> pd.DataFrame:
    """Count answers, empty outputs and refusals of each model; cases add up."""
    counts = pd.crosstab(generations["model"], generations["status"])
    counts = counts.reindex(columns=list(STATUSES), fill_value=0)
    return counts.assign(cases=counts.sum(axis=1)).reset_index().rename_axis(columns=None)
