"""Answers of tuned and untuned models: prompted, timed, and every one kept."""

import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from cag_utils.corpus.examples import encode_prompts, open_picture, picture_side
from cag_utils.params import check_choice
from cag_utils.scores.entities import read_entities
from cag_utils.vlm.data import FeatureStore, core_of, project

STATUSES = ("ok", "empty", "refusal", "cut")  # cut: at the token limit, so told by an endpoint
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


def prompt_lengths(processor: ProcessorMixin, prompts: Sequence[str]) -> list[int]:
    """Count the tokens of each prompt's text; a picture costs every case the same."""
    return [len(processor.tokenizer(text)["input_ids"]) for text in prompts]


def length_batches(lengths: Sequence[int], batch_size: int) -> list[np.ndarray]:
    """Sort cases by length, stably, and cut them into batches of row numbers.

    A batch is padded to its longest prompt, so full batches of neighbours in length waste least.
    The longest come first: what does not fit into memory fails at once.
    """
    order = np.argsort(-np.asarray(lengths, int), kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def count_tokens(made: torch.Tensor, ends: Iterable[int]) -> list[int]:
    """Count the tokens of each answer, (cases, tokens), up to an id of end or padding."""
    ended = torch.isin(made, torch.tensor(list(ends)))
    return [int(row.nonzero()[0]) if row.any() else len(row) for row in ended]


def answer_status(output: str) -> str:
    """Say whether a model answered.

    The rule: nothing but white space and punctuation is `empty`. A text with a phrase of refusal
    is a `refusal`, unless a side, a stenosis, an absence or a plan can be read in it: then the
    model answered, with an apology. All else is `ok`, right or wrong.
    """
    if not re.search(r"\w", output):
        return "empty"
    if not REFUSAL.search(output.replace("’", "'")):
        return "ok"
    read = read_entities(output, "ja")  # which reads English as well
    return "refusal" if read.unparseable and not read.sides else "ok"


def pick_shots(examples: pd.DataFrame, n_shots: int, rng: np.random.Generator) -> pd.DataFrame:
    """Draw the examples that untuned models are shown, from the train split.

    Returns:
        `n_shots` rows of the examples, each of another patient, LCA and RCA in turn as far as both
        exist.

    Raises:
        ValueError: The train split has fewer patients than that.
    """
    train = examples[examples["split"] == "train"]
    shuffled = train.iloc[rng.permutation(len(train))].drop_duplicates("patient_id")
    if (found := len(shuffled)) < n_shots:
        raise ValueError(f"{n_shots} shots need as many training patients, there are {found}")
    turn = shuffled.groupby("laterality").cumcount()
    order = turn.to_numpy() * 2 + (shuffled["laterality"] == "RCA").to_numpy()
    return shuffled.iloc[np.argsort(order, kind="stable")[:n_shots]]


def few_shot_prompt(prompt: str, shots: pd.DataFrame, language: str) -> str:
    """Put examples (columns report, answer) before the dataset's prompt of one case.

    The shots are text only: PaliGemma was pretrained on one picture a prompt, and all untuned
    models, o4-mini too, should get the same words. They show the format, not how pictures look.

    Raises:
        ValueError: Unknown language.
    """
    check_choice("language", language, SHOT_WORDS)
    if shots.empty:
        return prompt
    lead, report, answer = SHOT_WORDS[language]
    blocks = [f"{report}{row.report}\n{answer}{row.answer}" for row in shots.itertuples()]
    return "\n\n".join([lead, *blocks, prompt])


def generate_answers(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[str | tuple[str, ...]],
    prompts: Sequence[str],
    batch_size: int,
    max_new_tokens: int,
    label: str = "generating",
    features: str | Path = "",
) -> pd.DataFrame:
    """Let a model answer greedily, with `model.generate` and its key-value cache.

    Args:
        model: Tuned or not, in evaluation mode.
        images: Paths of frames; a tuple of them where one prompt has several.
        prompts: One a frame, or a tuple of frames.
        batch_size: Most cases at a time; it changes the speed, not the answers (in float32;
            bfloat16 may break a near tie the other way).
        label: Of the progress bar; empty shows none.
        features: Folder of a `FeatureStore`; empty runs the tower for each case.

    Returns:
        One row a case, in the order given: output, seconds (a batch's time shared out evenly),
        n_tokens (without padding and end of text). The same picture with the same prompt is asked
        once.

    Raises:
        ValueError: Not one prompt a frame, or a size below 1.
    """
    if min(batch_size, max_new_tokens) < 1:
        got = f"{batch_size} and {max_new_tokens}"
        raise ValueError(f"batch_size and max_new_tokens must be >= 1, got {got}")
    if len(images) != len(prompts):
        raise ValueError(f"one prompt a frame, got {len(images)} frames, {len(prompts)} prompts")
    store = FeatureStore(features, model, processor) if features else None
    if store:
        store.fill([path for own in images for path in _paths(own)])
    asked = list(zip(map(_paths, images), prompts, strict=True))
    times = Counter(asked)
    images, prompts = zip(*times, strict=True) if asked else ((), ())
    answers: dict[tuple, tuple] = {}
    batches = length_batches(prompt_lengths(processor, prompts), batch_size)
    for rows in tqdm(batches, desc=label, mininterval=30, disable=not label):
        began = time.perf_counter()
        some = [images[i] for i in rows], [prompts[i] for i in rows]
        texts, counts = _answer_batch(model, processor, *some, max_new_tokens, store)
        each = (time.perf_counter() - began) / sum(times[pair] for pair in zip(*some, strict=True))
        for pair, text, count in zip(zip(*some, strict=True), texts, counts, strict=True):
            answers[pair] = (text.strip(), each, count)
    table = [answers[pair] for pair in asked]
    return pd.DataFrame(table, columns=["output", "seconds", "n_tokens"])


def generation_table(
    examples: pd.DataFrame, prompts: Sequence[str], answers: pd.DataFrame, model: str, language: str
) -> pd.DataFrame:
    """Put answers into the table that the later notebooks read; no case is dropped.

    Args:
        examples: One row a case, in the order of the answers.
        answers: From `generate_answers` or `endpoint.ask`; a `status` it brings is kept.
        model: Its key, e.g. `gemma3_lora`.

    Returns:
        case_id, model, language, prompt, output, seconds, n_tokens, status, ground_truth.

    Raises:
        ValueError: Not one answer a case.
    """
    n_cases, n_prompts, n_answers = len(examples), len(prompts), len(answers)
    if not n_cases == n_prompts == n_answers:
        raise ValueError(f"{model}: {n_cases} cases, {n_prompts} prompts and {n_answers} answers")
    statuses = [answer_status(text) for text in answers["output"]]
    if "status" in answers:
        statuses = answers["status"].where(answers["status"] != "", statuses).tolist()
    head = {"model": model, "language": language, "prompt": list(prompts)}
    said = {name: answers[name].to_numpy() for name in ("output", "seconds", "n_tokens")}
    tail = {"status": statuses, "ground_truth": examples["answer"].to_numpy()}
    return pd.DataFrame({"case_id": examples["case_id"].to_numpy()} | head | said | tail)


def status_counts(generations: pd.DataFrame) -> pd.DataFrame:
    """Count answers, empty outputs, refusals and cut answers of each model; cases add up."""
    counts = pd.crosstab(generations["model"], generations["status"])
    counts = counts.reindex(columns=list(STATUSES), fill_value=0)
    return counts.assign(cases=counts.sum(axis=1)).reset_index().rename_axis(columns=None)


def _paths(images: str | Path | tuple[str, ...]) -> tuple[str, ...]:
    return images if isinstance(images, tuple) else (str(images),)


@torch.inference_mode()
def _answer_batch(model, processor, images, prompts, max_new_tokens: int, store) -> tuple:
    blank = Image.new("RGB", (picture_side(processor),) * 2)  # stands in for what was seen before
    pictures = [[blank if store else open_picture(p, processor) for p in own] for own in images]
    batch = encode_prompts(processor, pictures, prompts).to(model.device)
    if store:
        del batch["pixel_values"]
        tokens = store.read([path for own in images for path in own])
        batch |= project(core_of(model), tokens.to(model.device))
    made = model.generate(**batch, max_new_tokens=max_new_tokens, use_cache=True, do_sample=False)
    made = made[:, batch["input_ids"].shape[1] :].cpu()
    texts = processor.tokenizer.batch_decode(made, skip_special_tokens=True)
    ends, pad = model.generation_config.eos_token_id, model.generation_config.pad_token_id
    ends = [*ends, pad] if isinstance(ends, list) else [ends, pad]
    return texts, count_tokens(made, [i for i in ends if i is not None])
