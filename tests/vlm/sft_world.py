"""What the tests of fine-tuning share: twins and a corpus on disk, small jobs, batches."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cag_utils.corpus.examples import open_picture, read_examples
from cag_utils.profiles import load_profile
from cag_utils.vlm import loading
from cag_utils.vlm.data import conversation, plain_collator
from cag_utils.vlm.loading import load_backbone
from cag_utils.vlm.sft import Job, make_job
from tests.vlm.twins_world import write_pairs, write_twins

NAMES = ("gemma3", "paligemma2", "conceptclip_gemma3")


def make_world(folder: Path, train: int = 8, val: int = 2, test: int = 3) -> Iterator[Path]:
    """Put random twins in the shipped weights' place; yield the path of `pairs.csv`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "WEIGHTS", write_twins(folder / "weights"))
        yield write_pairs(folder / "outputs" / "smoke", train, val, test)


def job_for(pairs, folder, backbone="gemma3", language="en", **changes) -> Job:
    """A small job of two epochs, without answers along the way."""
    settings = load_profile("smoke").finetune
    plain = {"batch_size": 4, "max_steps": -1, "epochs": 2.0, "dropout": 0.1, "eval_cases": 0}
    settings = settings.model_copy(update=plain | changes)
    return make_job(settings, backbone, language, pairs, folder, seed=3)


def examples_of(pairs, language="en"):
    """All cases of the world."""
    return read_examples(pairs, language, pairs.parents[2])


def batch_of(name, pairs, n=3):
    """A twin, its processor, and a batch of the first cases as the plain collator makes it."""
    model, processor = load_backbone(name, "tiny", device="cpu")
    talks = [
        conversation(open_picture(row.image, processor), row.prompt, row.answer)
        for row in examples_of(pairs).head(n).itertuples()
    ]
    return model, processor, plain_collator(processor)(talks)
