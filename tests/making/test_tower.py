"""The SigLIP tower: what it starts from, what it learns, and Muon."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import SiglipVisionConfig, SiglipVisionModel

from cag_utils.making import sight
from cag_utils.making import tower as learning
from cag_utils.making.twins import IMAGE_PX, PATCH_PX, make_tower_config
from cag_utils.shipped import WEIGHTS
from tests.making.world import toy_stills


def small_tower(hidden_size=16):
    return SiglipVisionConfig(
        hidden_size=hidden_size, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        image_size=IMAGE_PX, patch_size=PATCH_PX, vision_use_head=False,
    )  # fmt: skip


def test_a_tower_learns_a_toy_world_and_repeats_itself(tmp_path):
    stills, rate = toy_stills(), {"recipe": learning.Recipe(learning_rate=1e-2)}
    task, done = learning.train_tower(stills, small_tower(), 120, batch_size=8, **rate)
    history = done.steps
    assert history[-1]["segment"] < 0.5 * history[0]["segment"]
    assert "summary" not in history[0] and "summary" in history[-1]
    assert history[-1]["width"] < 0.2 * history[0]["width"]
    scores = sight.score_tower(task, stills)
    assert scores["segment_accuracy"] == scores["significant_f1"] == 1
    assert scores["width_error"] < 0.3
    # killed after the first of two parts, it ends where it would have ended
    two = {"steps": 4, "batch_size": 8, "parts": 2}
    whole = learning.train_tower(stills, small_tower(), **two)[0].state_dict()

    calls = []
    path = tmp_path / "t.pt"
    with pytest.raises(KeyboardInterrupt):
        learning.train_tower(
            stills, small_tower(), **two, checkpoint=path,
            evaluate=lambda task: _second_call_dies(calls),
        )  # fmt: skip
    kept = {"checkpoint": path, "evaluate": lambda task: {"significant_f1": 0.0}}
    again, done = learning.train_tower(stills, small_tower(), **two, **kept)
    assert len(done.epochs) == 2 and len(calls) == 2
    assert all(torch.equal(v, whole[k]) for k, v in again.state_dict().items())


def _second_call_dies(calls):
    calls.append(1)
    if len(calls) == 2:
        raise KeyboardInterrupt
    return {"significant_f1": 0.0}


def test_a_convnet_has_the_same_heads_and_guides_a_tower():
    stills = toy_stills()
    recipe = learning.Recipe("convnext", learning_rate=1e-3)
    guide, done = learning.train_tower(stills, small_tower(), 8, batch_size=8, recipe=recipe)
    assert done.steps[-1]["segment"] < done.steps[0]["segment"] and guide.hidden is None
    pixels = learning.to_pixels(stills.images[:2])
    assert guide.read(pixels).shape == (2, 196, learning.CONV_WIDTH)
    kept = torch.tensor([[0, 5], [7, 3]])
    assert torch.equal(guide.read(pixels, kept)[1, 1], guide.read(pixels)[1, 3])
    guided = learning.Recipe(guided_share=0.5, start="structured", strength=2, bfloat16=True)
    with pytest.raises(ValueError, match="needs a trained guide"):
        learning.train_tower(stills, small_tower(), 4, batch_size=8, recipe=guided)
    _, done = learning.train_tower(stills, small_tower(), 4, 0, 8, guided, guide)
    assert ["guide" in row for row in done.steps] == [True, True, False, False]


def test_a_tower_goes_on_from_the_shipped_one_and_is_kept(tmp_path):
    shipped = SiglipVisionModel.from_pretrained(WEIGHTS / "siglip_tower", dtype=torch.float32)
    recipe = learning.Recipe(start="shipped", dense_share=0, sparse_share=0)
    task = learning.start_task(recipe, make_tower_config(), toy_stills().images, 0)
    pixels = learning.to_pixels(toy_stills().images[:2])
    with torch.no_grad():
        assert torch.allclose(task.read(pixels), shipped(pixels).last_hidden_state, atol=1e-5)
    _, done = learning.train_tower(toy_stills(), make_tower_config(), 1, 0, 8, recipe)
    assert "summary" in done.steps[0]
    learning.save_tower(task, tmp_path / "tower", {"place_accuracy": 0.25}, "a test")
    kept = SiglipVisionModel.from_pretrained(tmp_path / "tower", dtype=torch.float32)
    assert torch.equal(kept.post_layernorm.bias, shipped.post_layernorm.bias)
    places = tmp_path / "tower", WEIGHTS / "siglip_tower"
    heads, known = (load_file(folder / learning.HEADS) for folder in places)
    assert {"segment.weight", "summary.bias", "nowhere"} < set(heads) == set(known)
    assert all(torch.equal(heads[name], known[name]) for name in heads)
    card = (tmp_path / "tower" / "README.md").read_text(encoding="utf-8")
    assert "| place_accuracy | 0.250 |" in card and "1,313,408" in card


def test_crowded_pictures_are_shown_over_their_share_of_the_steps(monkeypatch):
    stills, shown = toy_stills(), []
    some = learning.patch_labels
    monkeypatch.setattr(
        learning, "patch_labels", lambda a, index, *b: shown.append(index) or some(a, index, *b)
    )
    recipe = learning.Recipe(crowded_share=0.5)
    learning.train_tower(stills, small_tower(), 8, 0, 4, recipe, crowded=4)
    early, late = np.concatenate(shown[:4]), np.concatenate(shown[4:])
    assert sorted(early) == sorted(2 * list(range(8)))  # twice each, the 4 crowded ones among them
    assert sorted(late) == sorted(4 * list(range(4)))  # the others, in every batch
    with pytest.raises(ValueError, match="fewer than one batch"):
        learning.train_tower(stills, small_tower(), 8, 0, 5, recipe, crowded=4)


def test_significant_lesions_are_scored_by_segment_and_by_grade():
    grades = np.zeros((3, 15), np.uint8)
    grades[0, 6], grades[1, 4], grades[2, 6], grades[2, 1] = 3, 2, 4, 2  # 75, LM 50, 90, 50
    true = sight.significant(grades)
    assert true.sum() == 3 and true[0, 6] and true[1, 4] and true[2, 6] and not true[2, 1]
    chance = np.zeros((3, 15, 7))
    chance[..., 0] = 1
    chance[0, 6] = [0.2, 0, 0.2, 0.3, 0.3, 0, 0]  # 0.6 significant
    chance[1, 4] = [0.1, 0.5, 0.4, 0, 0, 0, 0]  # 0.4 in the left main
    np.testing.assert_allclose(sight.significant_chance(chance)[[0, 1], [6, 4]], [0.6, 0.4])
    assert sight.best_threshold(sight.significant_chance(chance), true) < 0.4
    table = sight.score_by_part(sight.significant_chance(chance) > 0.5, grades)
    found = table.set_index("part")["f1"].round(3).to_dict()
    assert found == {"all": 0.5, "#5": 0.0, "#7": 0.667, "50 %": 0.0, "75 %": 1.0, "90 %": 0.0}


def test_structured_attention_looks_at_one_neighbour():
    tower = learning.TowerTask(small_tower(128)).tower
    tower.embeddings.position_embedding.weight.data = learning.position_sines(14, 128)
    steps = np.random.default_rng(3).integers(-1, 2, 2)  # of the first head
    learning.start_structured(tower, np.random.default_rng(3))
    attention, places = tower.encoder.layers[0].self_attn, learning.position_sines(14, 128)
    size = 128 // tower.config.num_attention_heads
    with torch.no_grad():
        query, key = (places @ w.weight[:size].T for w in (attention.q_proj, attention.k_proj))
    row, column = divmod(int((query[14 * 6 + 6] @ key.T).argmax()), 14)
    assert [row - 6, column - 6] == steps.tolist()


def test_scores_by_hand():
    stills = toy_stills()
    task = learning.TowerTask(small_tower())
    torch.nn.init.zeros_(task.summary.weight)
    with torch.no_grad():  # the heads' biases decide: everyone has 99 % in #7, nothing else
        bias = task.summary.bias.view(15, 7)
        bias.zero_()
        bias[:, 0] = 5
        bias[6] = torch.tensor([0.0, 0, 0, 0, 0, 5, 0])
    scores = sight.score_tower(task, stills)
    assert scores["segment_accuracy"] == 0.5  # right on the left side alone
    assert scores["grade_accuracy"] == 0.0  # 99 % named, 90 % true
    assert scores["grade_within_one"] == 1.0
    assert scores["lesion_f1"] == 0.5  # 8 called, 8 true, 4 shared
    assert np.isnan(scores["healthy_accuracy"])
    with pytest.raises(ValueError, match="fewer than one batch"):
        learning.train_tower(stills, small_tower(), 1, batch_size=9)


def test_positions_patches_and_attention_start_from_what_is_known():
    stills = toy_stills()
    sines = learning.position_sines(3, 8)
    assert sines.shape == (9, 8) and sines[0].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert torch.equal(sines[1, :4], sines[0, :4])  # same row, so the row's waves agree
    with pytest.raises(ValueError, match="4 divides"):
        learning.position_sines(3, 10)
    task = learning.TowerTask(small_tower())
    noise = np.random.default_rng(0).integers(0, 256, stills.images.shape, dtype=np.uint8)
    learning.start_from_statistics(task.tower, noise)
    with torch.no_grad():
        weight = task.tower.embeddings.patch_embedding.weight
        seen = torch.nn.functional.conv2d(learning.to_pixels(noise), weight, stride=PATCH_PX)
    spread = seen.std((0, 2, 3))
    assert torch.allclose(spread, torch.full_like(spread, 0.5), rtol=0.2)  # whitened
    # attention starts at tokens like itself
    tower = learning.TowerTask(small_tower(64)).tower
    learning.start_attention(tower, torch.Generator().manual_seed(0))
    layer = tower.encoder.layers[0].self_attn
    with torch.no_grad():
        # all heads together: queries times keys is noise plus a positive multiple of one
        product = layer.q_proj.weight.T @ layer.k_proj.weight
        value = layer.out_proj.weight @ layer.v_proj.weight
    off = product - torch.diag(product.diagonal())
    assert product.diagonal().mean() > 3 * off.abs().mean()
    assert value.diagonal().mean() == pytest.approx(-0.4, abs=0.1)


def test_jitter_changes_grey_levels_alone():
    flat = np.full((3, 20, 20), 128, np.uint8)
    out = learning.jitter(np.random.default_rng(0), flat)
    assert out.shape == flat.shape and out.dtype == np.uint8
    assert len({int(x.mean()) for x in out}) > 1 and out.std((1, 2)).max() < 4
