"""Cached tower features: batches, losses and gradients of the plain path, and never stale."""

import pytest
import torch
from peft import get_peft_model
from PIL import Image

from cag_utils.vlm.data import CaseCollator, FeatureStore, accept_features, to_cases, tower_key
from cag_utils.vlm.generate import generate_answers
from cag_utils.vlm.loading import load_backbone
from cag_utils.vlm.lora import PROJECTOR, lora_config
from cag_utils.vlm.sft import make_trainer
from tests.vlm.sft_world import NAMES, batch_of, examples_of, job_for, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    yield from make_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_the_plain_collators_but_for_the_picture(world, tmp_path, name):
    model, processor, plain = batch_of(name, world)
    cases = to_cases(examples_of(world).head(3), processor, batch_size=2)
    ours = CaseCollator(processor)([cases[i] for i in range(3)])
    assert ours.keys() == plain.keys() and len(set(cases["length"])) > 1
    for key, values in plain.items():
        assert torch.equal(ours[key], values), key
    store = FeatureStore(tmp_path, model, processor)
    store.fill(cases["image"])
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
        data = trainer.train_dataset
        batch = trainer.data_collator([data[i] for i in range(3)])
        assert ("tower_features" in batch) == cached
        _give_lora_a_voice(trainer.model)
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        grads = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
        found.append((loss.item(), grads))
    (one, first), (two, second) = found
    assert one == pytest.approx(two, abs=1e-5) and first.keys() == second.keys()
    assert sum(PROJECTOR in n for n in first) == 2  # the trained copy, not the frozen original
    assert all("modules_to_save" in n for n in first if PROJECTOR in n)
    for key in first:
        assert first[key].abs().max() > 0
        torch.testing.assert_close(first[key], second[key], rtol=1e-3, atol=1e-5)


def _give_lora_a_voice(model):
    """Fresh, B is zero and so is A's gradient."""
    torch.manual_seed(0)
    for name, values in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(values, std=0.02)


@pytest.mark.parametrize("name", ["gemma3", "paligemma2"])
def test_a_bfloat16_run_stores_bfloat16_and_computes_the_same(world, tmp_path, name):
    model, processor = load_backbone(name, "tiny", "cpu", torch.bfloat16)
    model = get_peft_model(model, lora_config(4, 4))
    accept_features(model)
    cases = to_cases(examples_of(world).head(2), processor)
    store = FeatureStore(tmp_path, model, processor)
    store.fill(cases["image"])
    assert store.read(cases["image"]).dtype == torch.bfloat16
    losses = []
    for collate in (CaseCollator(processor), CaseCollator(processor, store)):
        batch = collate([cases[0], cases[1]])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            losses.append(model(**batch).loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)


def test_a_picture_is_computed_once_and_read_from_disk(world, tmp_path, monkeypatch):
    model, processor = load_backbone("gemma3", "tiny", "cpu")
    images = list(examples_of(world)["image"])
    store = FeatureStore(tmp_path, model, processor)
    assert store.fill(images[:5], batch_size=2) == 5
    assert len(list(store.folder.glob("*.safetensors"))) == 5 == len(list(store.folder.iterdir()))
    again = FeatureStore(tmp_path, model, processor)
    assert again.fill([*images[:6], images[0]]) == 1
    assert torch.equal(again.read(images[:5]), store.read(images[:5]))
    with pytest.raises(ValueError, match=r"no tower features of .*call fill\(\)"):
        store.read([images[7]])


def test_another_picture_under_the_same_name_is_computed_anew(world, tmp_path):
    model, processor = load_backbone("gemma3", "tiny", "cpu")
    path = tmp_path / "a.png"
    Image.new("L", (256, 256), 40).save(path)
    store = FeatureStore(tmp_path / "store", model, processor)
    store.fill([str(path)])
    first = store.read([str(path)])
    Image.new("L", (256, 256), 200).save(path)
    assert store.fill([str(path)]) == 1
    assert not torch.equal(store.read([str(path)]), first)


def test_the_key_follows_weights_pixels_and_number_type(world):
    model, processor = load_backbone("gemma3", "tiny", "cpu")
    tower = model.model.vision_tower
    key = tower_key(tower, processor, torch.float32)
    # shared: the same tower in another model, and read anew
    assert key == tower_key(*_tower_of("gemma3"), torch.float32)
    assert key != tower_key(tower, processor, torch.bfloat16)
    assert key != tower_key(*_tower_of("conceptclip_gemma3"), torch.float32)
    with torch.no_grad():
        next(tower.parameters()).view(-1)[0] += 1e-3
    assert tower_key(tower, processor, torch.float32) != key
    processor.image_processor.image_mean = [0.4] * 3
    assert tower_key(*_tower_of("gemma3")[:1], processor, torch.float32) != key


def _tower_of(name):
    model, processor = load_backbone(name, "tiny", "cpu")
    return model.model.vision_tower, processor


def test_the_handle_takes_the_projector_out_again(world, tmp_path):
    model, processor = load_backbone("gemma3", "tiny", "cpu")
    cases = to_cases(examples_of(world).head(1), processor)
    store = FeatureStore(tmp_path, model, processor)
    store.fill(cases["image"])
    batch = CaseCollator(processor, store)([cases[0]])
    handle, calls = accept_features(model), []
    model.model.multi_modal_projector.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model(**batch)
        handle.remove()
        model(**batch)
    assert len(calls) == 1


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


def test_what_another_process_has_computed_meanwhile_is_not_computed_again(world, tmp_path):
    model, processor = load_backbone("gemma3", "tiny", "cpu")
    images = list(examples_of(world)["image"])[:6]
    one, other = (FeatureStore(tmp_path, model, processor) for _ in range(2))
    encode, seen = one._encode, []

    def slow(part):  # the other process fills the rest while the first batch is at work
        seen.extend(part)
        if len(seen) == len(part):
            assert other.fill([path for path in images if path not in part]) == 4
        return encode(part)

    one._encode = slow
    assert one.fill(images, batch_size=2) == 2 == len(seen)
    assert one.read(images).shape == (6, 196, 128)
