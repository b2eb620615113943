"""Decoding: batches, their order and the engine change nothing but the speed."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from cag_utils import backbones
from cag_utils.adapters import lora_config, save_merged
from cag_utils.backbones import load_backbone
from cag_utils.decoding import (
    Decoding,
    count_tokens,
    length_batches,
    padding_share,
    prompt_lengths,
)
from cag_utils.examples import encode_prompts, open_picture
from cag_utils.generate import generate_answers
from cag_utils.pairs import prompt
from cag_utils.phantom.captions import random_scene
from cag_utils.twins import make_processor
from cag_utils.vllm_engine import prompt_ids
from tests.vlm_world import write_twins

NAMES = ("gemma3", "paligemma2", "conceptclip_gemma3")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Pictures, and prompts from one character to far longer than a report; twins on disk."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "WEIGHTS", write_twins(folder / "weights"))
        scenes = [random_scene(rng) for _ in range(14)]
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


@given(st.integers(1, 8), st.integers(1, 6), st.data())
def test_full_batches_of_like_length_never_waste_more(batch_size, n_batches, data):
    n = batch_size * n_batches
    lengths = data.draw(st.lists(st.integers(1, 300), min_size=n, max_size=n))
    unsorted = np.arange(n).reshape(n_batches, batch_size)
    best = padding_share(lengths, length_batches(lengths, batch_size))
    assert 0 <= best <= padding_share(lengths, unsorted) < 1


def test_padding_share_by_hand():
    assert padding_share([4, 1, 3], [np.array([0, 1]), np.array([2])]) == pytest.approx(3 / 11)


def test_reports_are_padded_less_when_sorted():
    rng = np.random.default_rng(1)
    scenes = [random_scene(rng) for _ in range(64)]
    prompts = [prompt(s.laterality, s.report["en"], "en") for s in scenes]
    lengths = prompt_lengths(make_processor("gemma3"), prompts)
    plain = padding_share(lengths, np.arange(64).reshape(4, 16))
    assert padding_share(lengths, length_batches(lengths, 16)) < plain / 2


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


def test_a_drawn_answer_repeats_with_its_seed_and_leaves_other_draws_alone(world):
    model, processor = load_backbone("paligemma2", "tiny", device="cpu")

    def said(**how):
        cases = world.images[:3], world.prompts[:3]
        return generate_answers(model, processor, *cases, 2, 8, **how)["output"].tolist()

    before = torch.get_rng_state()
    drawn = said(temperature=1.0, seed=3)
    assert drawn == said(temperature=1.0, seed=3) != said(temperature=1.0, seed=4)
    assert said() == said(seed=4) == said(temperature=1e-4) != drawn
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("wrong", [(0, 8, 0.0), (1, 0, 0.0), (1, 8, -0.1)])
def test_sizes_and_temperature_are_checked(wrong):
    with pytest.raises(ValueError, match="at least 1 and temperature at least 0, got"):
        Decoding(*wrong)


def test_cases_and_engine_are_checked():
    with pytest.raises(ValueError, match="one prompt a frame, got 1 frames, 2 prompts"):
        generate_answers(Parrot(), None, ["a.png"], ["a", "b"], 1, 1)
    with pytest.raises(ValueError, match="unknown engine 'vlm'"):
        generate_answers(Parrot(), None, [], [], 1, 1, engine="vlm")


@pytest.mark.parametrize("name", ["conceptclip_gemma3", "paligemma2"])
def test_merged_weights_answer_as_base_and_adapter(world, tmp_path, name):
    model, processor = load_backbone(name, "tiny", device="cpu")
    cases = world.images[:3], world.prompts[:3], 3, 12
    base = generate_answers(model, processor, *cases)["output"].tolist()
    tuned = get_peft_model(model, lora_config(4, 4)).eval()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for weight_name, values in tuned.named_parameters():
            if "lora_B" in weight_name:
                torch.nn.init.normal_(values, std=0.2)
    expected = generate_answers(tuned, processor, *cases)["output"].tolist()
    folder = save_merged(tuned, processor, tmp_path / "merged")
    merged = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    again = generate_answers(merged, AutoProcessor.from_pretrained(folder), *cases)
    assert again["output"].tolist() == expected != base


def as_vllm_expands(processor, ids):
    """Put the picture's tokens in by vLLM's rules (its gemma3_mm.py and paligemma.py)."""
    tokenizer = processor.tokenizer
    if not hasattr(processor, "boi_token"):
        image = [tokenizer.image_token_id] * processor.image_seq_length
        return [*image, tokenizer.bos_token_id, *ids]
    start = tokenizer.convert_tokens_to_ids(processor.boi_token)
    assert ids.count(start) == 1
    image = tokenizer(processor.full_image_sequence, add_special_tokens=False)["input_ids"]
    at = ids.index(start)
    # line breaks that meet are joined, as the tokenizer joins them
    text = tokenizer.decode([*ids[:at], *image, *ids[at + 1 :]])
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", ["gemma3", "paligemma2"])
def test_vllm_gets_the_very_tokens_of_the_other_engine(world, kind):
    processor = make_processor(kind)
    given_ids = prompt_ids(processor, world.prompts)
    for path, text, ids in zip(world.images, world.prompts, given_ids, strict=True):
        batch = encode_prompts(processor, [open_picture(path, processor)], [text])
        assert as_vllm_expands(processor, ids) == batch["input_ids"][0].tolist()


@pytest.fixture
def fake_vllm(monkeypatch):
    """A stand-in for vLLM: keeps what it is given and numbers its answers."""

    class LLM:
        def __init__(self, **settings):
            fake.settings = settings

        def generate(self, inputs, params, use_tqdm):
            fake.inputs, fake.params = inputs, params
            stops = ["stop", "length"] * len(inputs)
            answers = [
                SimpleNamespace(text=f" #{i} 75% ", token_ids=[4, 5, 1], finish_reason=stops[i])
                for i in range(len(inputs))
            ]
            return [SimpleNamespace(outputs=[answer]) for answer in answers]

    fake = SimpleNamespace(LLM=LLM, SamplingParams=lambda **values: values)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return fake


def test_vllm_answers_become_the_same_table(world, fake_vllm):
    processor = make_processor("gemma3")
    folder, cases = world.folder / "weights" / "gemma3", (world.images[:3], world.prompts[:3])
    made = generate_answers(folder, processor, *cases, 2, 9, seed=5, engine="vllm")
    assert made["output"].tolist() == ["#0 75%", "#1 75%", "#2 75%"]
    assert made["n_tokens"].tolist() == [2, 3, 2]  # the end token is no word
    assert list(made) == ["output", "seconds", "n_tokens"] and made["seconds"].nunique() == 1
    assert fake_vllm.params == {"temperature": 0.0, "max_tokens": 9, "seed": 5}
    assert fake_vllm.settings["model"] == str(folder) and fake_vllm.settings["max_num_seqs"] == 2
    given_ids = [x["prompt_token_ids"] for x in fake_vllm.inputs]
    assert given_ids == prompt_ids(processor, world.prompts[:3])
    sides = [x["multi_modal_data"]["image"].size for x in fake_vllm.inputs]
    assert sides == [(224, 224)] * 3


def test_vllm_that_cannot_run_says_what_to_do(world, fake_vllm, monkeypatch):
    folder = world.folder / "weights" / "gemma3"

    def ask(model):
        return generate_answers(model, make_processor("gemma3"), [], [], 2, 9, engine="vllm")

    assert ask(folder).empty
    for no_folder in (world.folder, Parrot()):
        with pytest.raises(FileNotFoundError, match="write it with adapters.save_merged"):
            ask(no_folder)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match="pip install vllm"):
        ask(folder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="use engine='transformers'"):
        ask(folder)
