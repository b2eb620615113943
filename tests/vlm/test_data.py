"""What the trainer is fed: what is scored, who sees whom, and features of the plain path."""

import pandas as pd
import pytest
import torch
from peft import get_peft_model
from PIL import Image

from cag_utils.corpus.examples import encode_prompts, open_picture, read_examples
from cag_utils.making.twins import IMAGE_PX
from cag_utils.vlm.data import CaseCollator, FeatureStore, accept_features, to_cases, tower_key
from cag_utils.vlm.generate import generate_answers
from cag_utils.vlm.loading import load_backbone
from cag_utils.vlm.lora import PROJECTOR, lora_config
from cag_utils.vlm.sft import answers_scored_only, make_trainer
from tests.vlm.world import NAMES, batch_of, examples_of, job_for, loss_and_gradients


def test_examples_carry_one_language_and_pictures_are_shrunk_never_enlarged(world):
    english, japanese = examples_of(world), examples_of(world, "ja")
    assert english["case_id"].is_monotonic_increasing and len(english) == 14
    first = english.iloc[0]
    assert "left coronary" in first["prompt"] and first["prompt"].endswith(first["report"])
    assert "左冠動脈" in japanese["prompt"][0] and japanese["answer"][0].startswith("LCX #11")
    with pytest.raises(ValueError, match="unknown language 'fr'"):
        examples_of(world, "fr")
    with pytest.raises(FileNotFoundError, match="and 13 more pictures"):
        read_examples(world, "en", world.parent)
    _, processor = load_backbone("gemma3", "tiny", device="cpu")
    assert open_picture(first["image"], processor).size == (IMAGE_PX, IMAGE_PX)  # from 256
    processor.image_processor.size = {"height": 896, "width": 896}
    picture = open_picture(first["image"], processor)
    assert (picture.size, picture.mode) == ((256, 256), "RGB")


@pytest.mark.parametrize(("column", "value", "match"), [
    ("findings_en", " ", "case-0002 has an empty answer"),
    ("report_en", "", "case-0002 has an empty report"),
    ("split", "tests", "did you mean 'test'"),
])  # fmt: skip
def test_bad_pairs_are_named(world, tmp_path, column, value, match):
    table = pd.read_csv(world)
    table.loc[2, column] = value
    table.to_csv(tmp_path / "pairs.csv", index=False)
    with pytest.raises(ValueError, match=match):
        read_examples(tmp_path / "pairs.csv", "en", world.parents[2])


@pytest.mark.parametrize("name", NAMES)
def test_only_the_answer_is_scored_and_the_prompt_is_that_of_generation(world, name):
    _, processor, batch = batch_of(name, world)
    for row, labels in zip(examples_of(world).head(3).itertuples(), batch["labels"], strict=True):
        scored = processor.tokenizer.decode(labels[labels >= 0], skip_special_tokens=True)
        assert scored.strip().removesuffix("<end_of_turn>").strip() == row.answer
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    # the end of the answer is learnt too: a model that never learnt to stop never stops
    ends = processor.tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"])
    at = -1 if name == "paligemma2" else -2
    assert {int(row[row >= 0][at]) for row in batch["labels"]} <= set(ends)
    row = examples_of(world).iloc[0]
    asked = encode_prompts(processor, [open_picture(row["image"], processor)], [row["prompt"]])
    n = asked["input_ids"].shape[1]
    assert torch.equal(asked["pixel_values"], batch["pixel_values"][:1])
    for key in ("input_ids", "token_type_ids"):
        assert torch.equal(asked[key][0], batch[key][0, :n])
    assert (batch["labels"][0, :n] == -100).all() and batch["labels"][0, n] >= 0


def mask_by_hand(name, batch, model) -> torch.Tensor:
    """(B, 1, T, T), True where a row's token sees a column's.

    All see what came before them. Besides, Gemma3's image tokens see each other, and PaliGemma's
    whole prefix (picture and prompt) sees itself. Nobody sees padding; a row of padding sees all,
    so that no softmax is over nothing.
    """
    n = batch["input_ids"].shape[1]
    image = batch["input_ids"] == model.config.image_token_index
    block = image if name == "gemma3" else batch["token_type_ids"] == 0
    real = batch["attention_mask"].bool()
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    seen = (causal | block[:, None, :] & block[:, :, None]) & real[:, None, :]
    return (seen | ~real[:, :, None])[:, None]


@pytest.mark.parametrize("name", ["gemma3", "paligemma2"])
def test_logits_are_those_of_a_mask_built_by_hand(world, name):
    model, _, batch = batch_of(name, world, n=2)
    batch.pop("labels")
    kept = batch["attention_mask"].bool()
    assert not kept.all()  # the rows differ in length: padding is part of the test
    # the twins' and the real models' sliding window, 1,024 tokens, is longer than any case here
    assert batch["input_ids"].shape[1] < model.config.text_config.sliding_window
    by_hand = mask_by_hand(name, batch, model)
    rest = {k: batch[k] for k in ("input_ids", "pixel_values")}
    found = []
    with torch.no_grad():
        own = model(**batch).logits[kept]
        for seen in (by_hand, by_hand.tril() | ~kept[:, None, :, None]):
            mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
            if name == "gemma3":  # it takes one mask a kind of layer
                mask = {"full_attention": mask, "sliding_attention": mask}
            found.append(model(**rest, attention_mask=mask).logits[kept])
    hand, wrong = found
    torch.testing.assert_close(own, hand, rtol=0, atol=1e-5)
    assert (own - wrong).abs().max() > 1e-3  # and a plain causal mask is another model


def filled(folder, name, images, dtype=None):
    """A twin, its processor, and a store that holds the pictures."""
    model, processor = load_backbone(name, "tiny", "cpu", dtype)
    store = FeatureStore(folder, model, processor)
    store.fill(images)
    return model, processor, store


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_the_plain_collators_but_for_the_picture(world, tmp_path, name):
    model, processor, plain = batch_of(name, world)
    cases = to_cases(examples_of(world).head(3), processor, batch_size=2)
    ours = CaseCollator(processor)([cases[i] for i in range(3)])
    assert ours.keys() == plain.keys() and len(set(cases["length"])) > 1
    for key, values in plain.items():
        assert torch.equal(ours[key], values), key
    _, _, store = filled(tmp_path, name, cases["image"])
    cached = CaseCollator(processor, store)([cases[i] for i in range(3)])
    assert cached.keys() == (ours.keys() - {"pixel_values"}) | {"tower_features"}
    with torch.no_grad():
        tokens = model.model.vision_tower(pixel_values=plain["pixel_values"]).last_hidden_state
    torch.testing.assert_close(cached["tower_features"], tokens, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_are_those_of_the_plain_path(world, tmp_path, name):
    found = []
    for cached in (False, True):
        job = job_for(world, tmp_path, name, dropout=0.0, cache_features=cached)
        trainer = make_trainer(job)
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
        assert ("tower_features" in batch) == cached
        torch.manual_seed(0)
        for part, values in trainer.model.named_parameters():
            if "lora_B" in part:  # fresh, B is zero and so is A's gradient
                torch.nn.init.normal_(values, std=0.02)
        found.append(loss_and_gradients(trainer, batch))
        with answers_scored_only():  # as TRL does on a GPU
            found.append(loss_and_gradients(trainer, batch))
    losses, (first, *others) = zip(*found, strict=True)
    assert losses == pytest.approx([losses[0]] * 4, abs=1e-5)
    assert sum(PROJECTOR in n for n in first) == 2  # the trained copy, not the frozen original
    assert all("modules_to_save" in n for n in first if PROJECTOR in n)
    assert all(values.abs().max() > 0 for values in first.values())
    for other, atol in zip(others, (1e-6, 1e-5, 1e-5), strict=True):
        torch.testing.assert_close(first, other, rtol=1e-3, atol=atol)


@pytest.mark.parametrize("name", ["gemma3", "paligemma2"])
def test_a_bfloat16_run_stores_bfloat16_and_computes_the_same(world, tmp_path, name):
    few = examples_of(world).head(2)
    model, processor, store = filled(tmp_path, name, few["image"], torch.bfloat16)
    model = get_peft_model(model, lora_config(4, 4))
    accept_features(model)
    cases = to_cases(few, processor)
    assert store.read(cases["image"]).dtype == torch.bfloat16
    losses = []
    for collate in (CaseCollator(processor), CaseCollator(processor, store)):
        batch = collate([cases[0], cases[1]])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            losses.append(model(**batch).loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)


def test_a_picture_is_computed_once_and_anew_if_another_bears_its_name(world, tmp_path):
    images = list(examples_of(world)["image"])
    model, processor, store = filled(tmp_path, "gemma3", images[:5])
    assert len(list(store.folder.glob("*.safetensors"))) == 5 == len(list(store.folder.iterdir()))
    again = FeatureStore(tmp_path, model, processor)
    assert again.fill([*images[:6], images[0]]) == 1
    assert torch.equal(again.read(images[:5]), store.read(images[:5]))
    with pytest.raises(ValueError, match=r"no tower features of .*call fill\(\)"):
        store.read([images[7]])
    path, found = str(tmp_path / "a.png"), []
    for level in (40, 200):
        Image.new("L", (256, 256), level).save(path)
        assert store.fill([path]) == 1
        found.append(store.read([path]))
    assert not torch.equal(*found)


def test_the_key_follows_weights_pixels_and_number_type(twins):
    def tower_of(name):
        model, processor = load_backbone(name, "tiny", "cpu")
        return model.model.vision_tower, processor

    tower, processor = tower_of("gemma3")
    key = tower_key(tower, processor, torch.float32)
    assert key == tower_key(*tower_of("gemma3"), torch.float32)
    assert key != tower_key(tower, processor, torch.bfloat16)
    assert key != tower_key(*tower_of("conceptclip_gemma3"), torch.float32)
    with torch.no_grad():
        next(tower.parameters()).view(-1)[0] += 1e-3
    assert tower_key(tower, processor, torch.float32) != key
    processor.image_processor.image_mean = [0.4] * 3
    assert tower_key(tower_of("gemma3")[0], processor, torch.float32) != key


@pytest.mark.parametrize("name", NAMES)
def test_answers_from_cached_features_are_the_plain_ones(world, tmp_path, name):
    model, processor = load_backbone(name, "tiny", "cpu")
    cases = examples_of(world)
    asked = list(cases["image"]), list(cases["prompt"]), 4, 8
    plain = generate_answers(model, processor, *asked)["output"].tolist()
    for _ in range(2):  # computed, then read
        cached = generate_answers(model, processor, *asked, features=tmp_path)
        assert cached["output"].tolist() == plain
    store = FeatureStore(tmp_path, model, processor)
    assert store.fill(asked[0]) == 0 and len(list(store.folder.iterdir())) == len(cases)


def test_what_another_process_computed_is_not_computed_again(world, tmp_path, monkeypatch):
    images = list(examples_of(world)["image"])[:6]
    model, processor, one = filled(tmp_path, "gemma3", [])
    other, encode, seen = FeatureStore(tmp_path, model, processor), one._encode, []

    def slow(part):  # the other process fills the rest while the first batch is at work
        seen.extend(part)
        if len(seen) == len(part):
            assert other.fill([path for path in images if path not in part]) == 4
        return encode(part)

    monkeypatch.setattr(one, "_encode", slow)
    assert one.fill(images, batch_size=2) == 2 == len(seen)
    assert one.read(images).shape == (6, 196, 128)
