"""Answers of `generate_answers` in batches of 16 against plain `generate` one by one, as a ratio.

Run: `python tests/benchmarks/bench_generation.py`. Untrained twins of the shipped ones' sizes and
kinds, on a CPU; prompts are the study's, with reports of phantom patients, each on another picture.
Every answer is forced to a fixed number of tokens: the phantom profile's limit, which is what a
model writes that does not know when to stop, and (`_short`) that of a mean finding. The headline is
the slower of the two kinds. A batch saves the work of each step, not that of reading prompt and
picture, so the ratio falls with the length of the answer. The last answers of a batch would keep it
waiting where lengths differ; with forced lengths nothing waits.

One by one: the same pictures, prompts, processor and greedy decoding with its cache, one
`model.generate` a case, of every fourth case to save time; the model is loaded by transformers
alone, with the attention it chooses. Both ways in turn in one process, answers a second on the
wall; the median of the rounds' ratios; the texts must be the same.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from cag_utils.corpus.examples import encode_prompts, open_picture
from cag_utils.corpus.pairs import prompt
from cag_utils.making.captions import random_facts
from cag_utils.making.twins import TWINS, build_twin
from cag_utils.profiles import load_profile
from cag_utils.vlm import loading
from cag_utils.vlm.generate import generate_answers
from cag_utils.vlm.loading import load_backbone, quiet_libraries

N_CASES, BATCH_SIZE, ROUNDS = 32, 16, 3
STEP = 4  # every fourth case is answered one by one too
LENGTHS = {"": load_profile("phantom").generate.max_new_tokens, "_short": 30}  # new tokens


def write_cases(folder: Path) -> tuple[list[str], list[str]]:
    """Return paths of noise pictures and prompts with the reports of random patients."""
    rng = np.random.default_rng(0)
    images = [str(folder / f"{i:02d}.png") for i in range(N_CASES)]
    for path in images:
        Image.fromarray(rng.integers(0, 256, (512, 512), dtype=np.uint8)).save(path)
    scenes = [random_facts(rng) for _ in images]
    return images, [prompt(s.laterality, s.report["en"], "en") for s in scenes]


@torch.inference_mode()
def one_by_one(model, processor, images: list[str], prompts: list[str], n_tokens: int) -> list[str]:
    """Answer as a script without batches does."""
    texts = []
    for path, text in zip(images, prompts, strict=True):
        batch = encode_prompts(processor, [open_picture(path, processor)], [text])
        made = model.generate(**batch, max_new_tokens=n_tokens, do_sample=False)
        made = made[:, batch["input_ids"].shape[1] :]
        texts += processor.tokenizer.batch_decode(made, skip_special_tokens=True)
    return [text.strip() for text in texts]


def in_batches(model, processor, images: list[str], prompts: list[str], n_tokens: int) -> list[str]:
    """Answer as the study does."""
    made = generate_answers(model, processor, images, prompts, BATCH_SIZE, n_tokens)
    return made["output"].tolist()


def timed(call, *arguments) -> tuple[float, list[str]]:
    """Return the seconds on the wall and the answers."""
    start = time.perf_counter()
    texts = call(*arguments)
    return time.perf_counter() - start, texts


def compare(model, plain, processor, images, prompts, n_tokens: int) -> tuple[float, float]:
    """Return the median ratio of both ways' speed, and the study's answers a second."""
    for one in (model, plain):
        one.generation_config.min_new_tokens = n_tokens
    every, some = (images, prompts), (images[::STEP], prompts[::STEP])
    in_batches(model, processor, *every, n_tokens)
    ratios, seconds = [], []
    for _ in range(ROUNDS):
        fast, batched = timed(in_batches, model, processor, *every, n_tokens)
        slow, single = timed(one_by_one, plain, processor, *some, n_tokens)
        assert batched[::STEP] == single, "batches changed an answer"
        ratios.append(STEP * slow / fast)
        seconds.append(fast)
    return statistics.median(ratios), N_CASES / statistics.median(seconds)


def main() -> dict[str, float]:
    """Measure both kinds of twin at both lengths."""
    quiet_libraries()
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        images, prompts = write_cases(Path(name))
        loading.WEIGHTS = Path(name)
        for kind in TWINS:
            build_twin(kind, Path(name) / kind)
            plain = AutoModelForImageTextToText.from_pretrained(Path(name) / kind).eval()
            model, processor = load_backbone(kind, "tiny", "cpu")
            for end, n_tokens in LENGTHS.items():
                ratio, speed = compare(model, plain, processor, images, prompts, n_tokens)
                figures[f"generation_times_one_by_one_{kind}{end}"] = round(ratio, 2)
                figures[f"generation_answers_per_second_{kind}{end}"] = round(speed, 2)
    both = [figures[f"generation_times_one_by_one_{kind}"] for kind in TWINS]
    return {"generation_times_one_by_one": min(both)} | figures


if __name__ == "__main__":
    print(json.dumps(main()))
