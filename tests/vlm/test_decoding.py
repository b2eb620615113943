"""Decoding: batches and their order change nothing but the speed."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cag_utils.corpus.pairs import prompt
from cag_utils.making.captions import random_facts
from cag_utils.making.twins import make_processor
from cag_utils.vlm import loading
from cag_utils.vlm.generate import (
    count_tokens,
    generate_answers,
    length_batches,
    prompt_lengths,
)
from cag_utils.vlm.loading import load_backbone
from tests.vlm.twins_world import write_twins

NAMES = ("gemma3", "paligemma2", "conceptclip_gemma3")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Pictures, and prompts from one character to far longer than a report; twins on disk."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "WEIGHTS", write_twins(folder / "weights"))
        scenes = [random_facts(rng) for _ in range(14)]
        languages = ["en", "ja"] * 7
        prompts = [
            prompt(s.laterality, s.report[w], w) for s, w in zip(scenes, languages, strict=True)
        ]
        prompts += ["?", "\n\n".join(prompts[:6]), "LAD"]
        images = [str(folder / f"{i}.png") for i in range(len(prompts))]
        for path in images:
            grey = rng.integers(0, 256, (48, 48), dtype=np.uint8)
            Image.fromarray(grey).resize((256, 256)).save(path)
        yield SimpleNamespace(images=images, prompts=prompts, folder=folder)


@pytest.mark.parametrize("name", NAMES)
def test_batches_answer_as_one_by_one(world, name):
    model, processor = load_backbone(name, "tiny", device="cpu")
    lengths = prompt_lengths(processor, world.prompts)
    assert lengths.min() < 5 and lengths.max() > 600  # so the batch of 16 is mostly padding
    one, sixteen = (
        generate_answers(model, processor, world.images, world.prompts, n, 12) for n in (1, 16)
    )
    assert one["output"].tolist() == sixteen["output"].tolist()
    assert one["n_tokens"].tolist() == sixteen["n_tokens"].tolist()
    assert one["output"].nunique() > 10  # a model that always says the same would prove nothing
    assert len(one) == 17 and (one["seconds"] > 0).all() and one["n_tokens"].between(0, 12).all()


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 20))
def test_every_case_is_in_one_batch_and_the_longest_come_first(lengths, batch_size):
    batches = length_batches(lengths, batch_size)
    order = [int(i) for rows in batches for i in rows]
    assert sorted(order) == list(range(len(lengths)))
    assert all(len(rows) == batch_size for rows in batches[:-1])
    assert order == sorted(order, key=lambda i: (-lengths[i], i))


class Parrot:
    """A model that repeats the end of its prompt."""

    device = torch.device("cpu")
    generation_config = SimpleNamespace(eos_token_id=1, pad_token_id=0)

    def generate(self, input_ids, **_):
        return torch.cat([input_ids, input_ids[:, -4:]], 1)


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(0, 30), max_size=9), batch_size=st.integers(1, 4))
def test_answers_come_back_in_the_order_of_the_cases(world, lengths, batch_size):
    processor = make_processor("paligemma2")
    prompts = ["the LAD " * n + f"#{i}" for i, n in enumerate(lengths)]
    images = world.images[: len(prompts)]
    made = generate_answers(Parrot(), processor, images, prompts, batch_size, 4)
    assert [text.split("#")[-1] for text in made["output"]] == [str(i) for i in range(len(made))]
    assert len(made) == len(lengths) and list(made) == ["output", "seconds", "n_tokens"]


def test_tokens_are_counted_up_to_the_end():
    made = torch.tensor([[5, 6, 1, 0, 0], [5, 6, 7, 8, 9], [1, 0, 0, 0, 0], [5, 2, 1, 5, 1]])
    assert count_tokens(made, [1, 0]) == [2, 5, 0, 2]


@pytest.mark.parametrize("wrong", [(0, 8), (1, 0)])
def test_sizes_are_checked(wrong):
    with pytest.raises(ValueError, match="must be >= 1, got"):
        generate_answers(Parrot(), None, [], [], *wrong)


def test_one_prompt_a_frame():
    with pytest.raises(ValueError, match="one prompt a frame, got 1 frames, 2 prompts"):
        generate_answers(Parrot(), None, ["a.png"], ["a", "b"], 1, 1)
