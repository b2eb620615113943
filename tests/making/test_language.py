"""Caption pretraining: batches as the processors write them, and the classes' own loss."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cag_utils.making import language as lm
from cag_utils.making.captions import write_caption
from cag_utils.making.stills import Stills
from cag_utils.making.tower import to_pixels
from cag_utils.making.twins import IMAGE_PX, PATCH_PX, TURN, TWINS
from tests.making.world import as_written, random_twin, toy_stills


@pytest.fixture(scope="module", params=TWINS)
def twin(request):
    _, model, processor = random_twin(request.param)
    return request.param, copy.deepcopy(model), processor


def first_picture():
    return Image.fromarray(toy_stills().images[0]).convert("RGB")


def test_prompts_and_batches_are_the_processors_own(twin):
    kind, _, processor = twin
    question = "この画像は左\n\nReport #11?"
    inputs = as_written(processor, kind, first_picture(), question)
    assert inputs["input_ids"][0].tolist() == lm.prompt_ids(processor, question)
    assert torch.allclose(inputs["pixel_values"], to_pixels(toy_stills().images[:1]), atol=1e-6)
    batch = lm.collate(processor, [("Where?", "LAD 7."), ("How tight is it there?", "90%")])
    tok = processor.tokenizer
    assert batch["attention_mask"].sum(1).tolist()[0] < batch["input_ids"].shape[1]
    answered = batch["input_ids"][0][batch["weight"][0] == 1]
    if kind == "gemma3":
        assert tok.decode(answered) == f"LAD 7.{TURN[1]}\n"
        images = batch["input_ids"] == tok.image_token_id
        assert torch.equal(batch["token_type_ids"].bool(), images)
        assert not batch["weight"][images].any()
        return
    assert tok.decode(answered) == "LAD 7.<eos>"
    asked = {"text": ["<image>How tight is it there?"], "suffix": ["90%"]}
    own = processor(images=[[first_picture()]], **asked, return_tensors="pt")
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(own[name][0], batch[name][1])


def test_the_cached_loss_is_the_models_own(twin):
    _, model, processor = twin
    model.eval()
    batch = lm.collate(processor, [("Where?", "LAD 7."), ("Side?", "LCA")])
    batch["weight"] = (batch["weight"] == 1).float()  # the answer alone, as the class counts it
    labels = batch["input_ids"].masked_fill(batch["weight"] == 0, -100)
    inputs = {k: v for k, v in batch.items() if k != "weight"}
    with torch.no_grad():
        pixels = to_pixels(toy_stills().images[:2])
        tokens = model.model.vision_tower(pixel_values=pixels).last_hidden_state
        cached = lm.caption_loss(model, batch, tokens)
        own = model(**inputs, pixel_values=pixels, labels=labels).loss
    assert torch.allclose(cached, own, atol=1e-5)


def test_the_kinds_asked_for_train_the_language_model_and_leave_the_tower(twin, monkeypatch):
    _, model, processor = twin
    stills, kinds = toy_stills(), []

    def heard(rng, scene, language, kind=None):
        kinds.append(kind)
        return write_caption(rng, scene, language, kind)

    monkeypatch.setattr("cag_utils.making.language.write_caption", heard)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    features = lm.encode_stills(model.model.vision_tower, stills)
    assert features.shape == (8, (IMAGE_PX // PATCH_PX) ** 2, 128)
    asked = ("side", "worst")
    history = lm.train_captions(model, processor, stills, features, 3, batch_size=4, kinds=asked)
    assert [row["step"] for row in history] == [0, 1, 2]
    assert set(kinds) == set(asked) and len(kinds) == 12
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert any("projector" in k for k in changed) and not any("vision_tower" in k for k in changed)


def test_answers_and_scores(twin, monkeypatch):
    stills = toy_stills()
    _, model, processor = twin
    texts = lm.answer(model, processor, ["Where?", "Which side is it?"], stills.images[:2], 3)
    assert len(texts) == 2
    said = {"LCA": ["mid LAD: severe.", "left coronary artery (LCA)."], "RCA": ["none.", "RCA"]}

    def scripted(model, processor, questions, images, most=48):
        column = int("Which" in questions[0])
        return [said["LCA" if image[0, 0] == 60 else "RCA"][column] for image in images]

    monkeypatch.setattr("cag_utils.making.language.answer", scripted)
    found = lm.score_captions(model, processor, stills, "en")
    assert found["laterality"] == 1 and found["segment"] == 0.5 and found["grade"] == 1
    assert found["list_exact"] == 0.5 and np.isnan(found["healthy"])
    two = "mid LAD: severe, proximal LCX: mild."  # the first is named with its grade
    for text, share in (("mid LAD: severe, proximal LCX: severe.", 0.5), ("?", 0.0), (two, 1.0)):
        monkeypatch.setattr("cag_utils.making.language.write_caption", lambda *_: ("", two))
        monkeypatch.setattr("cag_utils.making.language.answer", lambda *a, t=text: [t] * 8)
        assert lm.score_told(model, processor, stills, "en") == share


def test_a_blind_guess_by_hand():
    grades = np.zeros((5, 15), np.uint8)
    grades[0, 6] = grades[1, 6] = grades[1, 10] = grades[2, 5] = 4  # left: #7 twice, #11, #6
    grades[3, 1] = 1  # right: #2 once; the fifth picture is healthy
    lca = np.array([True, True, True, False, False])
    nothing = dict.fromkeys(("images", "angles", "counts", "points", "segments", "width_px"))
    made = Stills(**nothing, narrowed=None, grades=grades, ideal=None, lca=lca)
    assert lm.score_blind_guess(made) == 3 / 4
    with pytest.raises(ValueError, match="nothing to guess"):
        lm.score_blind_guess(replace(made, grades=grades * 0))


@pytest.mark.parametrize("text, read", [
    ("mid LAD: severe, proximal LCX: significant.", {7: 90, 11: 75}),
    ("distal RCA branches: subtotal, left main: total occlusion.", {4: 99, 5: 100}),
    ("左冠動脈主幹部：中等度。", {5: 50}),
    ("none.", {}),
    ("なし。", {}),
    ("a vessel", None),
])  # fmt: skip
def test_lists_are_read_and_nonsense_is_not_health(text, read):
    assert lm.read_list(text) == read


def test_words_that_a_batch_does_not_write_are_left_where_they_are():
    words = torch.randn(6, 4, requires_grad=True)
    wanted, hidden = torch.tensor([2, 5, 2]), torch.randn(3, 4)
    held = lm._hold_unwritten(words, wanted)
    torch.testing.assert_close(held, words)  # the scores are those of the whole vocabulary
    torch.nn.functional.cross_entropy(hidden @ held.T, wanted).backward()
    assert words.grad.any(1).tolist() == [False, False, True, False, False, True]
    free = torch.randn(6, 4, requires_grad=True)  # the plain loss pushes every word
    torch.nn.functional.cross_entropy(hidden @ free.T, wanted).backward()
    assert free.grad.any(1).all()
