import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import SiglipVisionConfig

from cag_utils.making_captions import (
    KINDS,
    LANGUAGES,
    Scene,
    base_corpus,
    name_view,
    random_scene,
    vocabulary_corpus,
    write_caption,
)
from cag_utils.making_language import (
    _hold_unwritten,
    answer,
    caption_loss,
    collate,
    draw_scene,
    encode_stills,
    prompt_ids,
    read_list,
    score_blind_guess,
    score_captions,
    train_captions,
)
from cag_utils.making_stills import (
    FIRST_HELD_OUT_SEED,
    FIRST_SEED,
    Stills,
    cached_stills,
    make_stills,
    patch_labels,
)
from cag_utils.making_tower import (
    TowerTask,
    jitter,
    move,
    position_sines,
    score_tower,
    start_attention,
    start_from_statistics,
    to_pixels,
    train_tower,
)
from cag_utils.making_twins import IMAGE_PX, PATCH_PX, TURN, build_twin, make_tokenizer
from cag_utils.phantom.clinic import PLANS, decide_plan, draw_record, write_findings, write_report
from cag_utils.segments import AHA_SEGMENTS, GRADES, check_lesion, segments_of

SIDES = st.sampled_from(["LCA", "RCA"])


def toy_still(seed, size_px, lesion=None, phase=0.0, wait_s=0.0):
    """A bright square and a bar on a picture, dark for the left side, grey for the right."""
    side = ("LCA", "RCA")[seed % 2]
    lesions = [check_lesion({"segment": 7 if side == "LCA" else 2, "percent": 90})]
    image = np.full((size_px, size_px), 60 if side == "LCA" else 190, np.uint8)
    middle = size_px // 2
    image[middle : middle + 9, middle : middle + 9] = 250
    image[30:50] = 100
    bar = [[column, row] for row in (36, 44) for column in range(2, size_px, 4)]
    trunk = 5 if side == "LCA" else 1
    return SimpleNamespace(
        image=image,
        laterality=side,
        lesions=lesions,
        points=np.array([[middle, middle], [-4, 2], *bar], np.float32),
        segments=np.array([lesions[0]["segment"], 3, *[trunk] * len(bar)]),
        width_px=np.array([4.0, 9.0, *[2.0] * len(bar)], np.float32),
        narrowed=np.array([0.9, 0.5, *[0.0] * len(bar)], np.float32),
        primary_deg=30.0,
        secondary_deg=-20.0,
    )


@pytest.fixture(scope="module")
def stills():
    return make_stills(range(8), IMAGE_PX, draw=toy_still)


@pytest.fixture(scope="module", params=["gemma3", "paligemma2"])
def twin(request, tmp_path_factory):
    return request.param, *build_twin(request.param, tmp_path_factory.mktemp("twin"))


def scene(side="LCA", segments=(7, 11), percents=(90, 75), seed=0):
    rng = np.random.default_rng(seed)
    pairs = zip(segments, percents, strict=True)
    lesions = tuple(check_lesion({"segment": s, "percent": p}) for s, p in pairs)
    record = draw_record(rng, lesions, "M")
    return Scene(side, lesions, "LAO", write_report(rng, record), decide_plan(record, lesions))


# --- patch labels -------------------------------------------------------------------------------


def three_by_three():
    """Two 30 px pictures of 3 x 3 patches of 10 px; the second shows one point."""
    points = [[2, 3], [4, 8], [9, 9], [15, 5], [25, 29], [-1, 5], [30, 5], [12, 12]]
    return Stills(
        images=np.zeros((2, 30, 30), np.uint8),
        grades=np.zeros((2, 15), np.uint8),
        lca=np.array([True, True]),
        angles=np.zeros((2, 2), np.float32),
        counts=np.array([7, 1]),
        points=np.array(points, np.float32),
        segments=np.array([5, 6, 6, 6, 11, 13, 13, 9], np.uint8),
        width_px=np.array([3, 5, 4, 2, 1, 9, 9, 6], np.float32),
        narrowed=np.array([0, 0.2, 0.7, 0, 0.5, 1, 1, 0], np.float32),
    )


def test_patch_labels_by_hand():
    found = patch_labels(three_by_three(), [0, 1], 3)
    # two points of #6 outvote one of #5; what lies outside the picture counts nowhere
    assert found.segment.tolist() == [[6, 6, 0, 0, 0, 0, 0, 0, 11], [0, 0, 0, 0, 9, 0, 0, 0, 0]]
    assert found.width_px[0].tolist() == [5, 2, 0, 0, 0, 0, 0, 0, 1]
    np.testing.assert_allclose(found.narrowed[0], [0.7, 0, 0, 0, 0, 0, 0, 0, 0.5])
    alone = patch_labels(three_by_three(), [1], 3)
    assert np.array_equal(alone.segment[0], found.segment[1])


def test_labels_move_with_the_picture():
    down = np.array([[[1.0, 0, 0], [0, 1, 10]]])  # ten pixels, one patch
    found = patch_labels(three_by_three(), [0], 3, down)
    assert found.segment.tolist() == [[0, 0, 0, 6, 6, 0, 0, 0, 0]]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_a_moved_pictures_points_stay_on_their_marks(seed):
    rng = np.random.default_rng(seed)
    picture = np.zeros((1, 64, 64), np.uint8)
    picture[0, 30:35, 24:29] = 255  # a square about (26, 32)
    moved, maps = move(rng, picture)
    column, row = maps[0] @ [26, 32, 1]
    rows, columns = np.nonzero(moved[0] > 128)
    assert abs(columns.mean() - column) < 1 and abs(rows.mean() - row) < 1


def test_stills_know_their_lesions_and_vessels(stills):
    assert len(stills) == 8 and stills.images.shape == (8, IMAGE_PX, IMAGE_PX)
    assert stills.laterality(0) == "LCA" and stills.laterality(1) == "RCA"
    assert stills.lesions(1) == [{"segment": 2, "percent": 90, "artery": "RCA"}]
    middle = (IMAGE_PX // PATCH_PX) // 2 * (IMAGE_PX // PATCH_PX + 1)
    found = patch_labels(stills, [0], IMAGE_PX // PATCH_PX)
    assert found.segment[0, middle] == 7 and found.narrowed[0, middle] == np.float32(0.9)
    assert stills.seen(0) == (5,)  # the bar; a point or two are no vessel


def test_real_stills_are_cached_and_do_not_depend_on_workers(tmp_path):
    kept = cached_stills(tmp_path, 5, 2, 120)
    again = cached_stills(tmp_path, 5, 2, 120)
    fresh = make_stills([5, 6], 120)
    for name in vars(kept):
        assert np.array_equal(getattr(kept, name), getattr(again, name))
        assert np.array_equal(getattr(kept, name), getattr(fresh, name))
    assert len(list(tmp_path.iterdir())) == 1
    shown = segments_of(kept.laterality(0))
    rows, _ = kept.rows(np.array([0]))
    assert set(kept.segments[rows].tolist()) <= set(shown)
    assert kept.counts.sum() == len(kept.points) == len(kept.width_px) == len(kept.narrowed)
    assert kept.width_px.min() >= 0 and 0 <= kept.narrowed.min() <= kept.narrowed.max() <= 1


def test_pretraining_patients_are_nobody_of_the_study():
    from cag_utils.making_scenes import STREAM as SCENES
    from cag_utils.phantom.exam import STREAMS
    from cag_utils.phantom.stills import STREAM

    # the first word of every seed: two generators with another first word share nothing
    assert len({STREAM, SCENES, *STREAMS.values()}) == 4
    assert FIRST_SEED + 1_000_000 < FIRST_HELD_OUT_SEED


# --- tower --------------------------------------------------------------------------------------


def small_tower():
    return SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=IMAGE_PX,
        patch_size=PATCH_PX,
        vision_use_head=False,
    )


def test_a_tower_learns_a_toy_world_and_repeats_itself(stills):
    task, history = train_tower(stills, small_tower(), 120, batch_size=8, learning_rate=1e-2)
    assert history[-1]["segment"] < 0.5 * history[0]["segment"]
    assert "summary" not in history[0] and "summary" in history[-1]
    assert history[-1]["width"] < 0.2 * history[0]["width"]
    scores = score_tower(task, stills)
    assert scores["segment_accuracy"] == 1 and scores["width_error"] < 0.3
    _, again = train_tower(stills, small_tower(), 3, batch_size=8, learning_rate=1e-2)
    _, third = train_tower(stills, small_tower(), 3, batch_size=8, learning_rate=1e-2)
    assert again == third


def test_scores_by_hand(stills):
    task = TowerTask(small_tower())
    torch.nn.init.zeros_(task.summary.weight)
    with torch.no_grad():  # the heads' biases decide: everyone has 99 % in #7, nothing else
        bias = task.summary.bias.view(15, 7)
        bias.zero_()
        bias[:, 0] = 5
        bias[6] = torch.tensor([0.0, 0, 0, 0, 0, 5, 0])
    scores = score_tower(task, stills)
    assert scores["segment_accuracy"] == 0.5  # right on the left side alone
    assert scores["grade_accuracy"] == 0.0  # 99 % named, 90 % true
    assert scores["grade_within_one"] == 1.0
    assert scores["lesion_f1"] == 0.5  # 8 called, 8 true, 4 shared
    assert np.isnan(scores["healthy_accuracy"])


def test_tower_training_needs_a_batch(stills):
    with pytest.raises(ValueError, match="fewer than one batch"):
        train_tower(stills, small_tower(), 1, batch_size=9)


def test_positions_and_patches_start_from_what_is_known(stills):
    sines = position_sines(3, 8)
    assert sines.shape == (9, 8) and sines[0].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert torch.equal(sines[1, :4], sines[0, :4])  # same row, so the row's waves agree
    with pytest.raises(ValueError, match="4 divides"):
        position_sines(3, 10)
    task = TowerTask(small_tower())
    noise = np.random.default_rng(0).integers(0, 256, stills.images.shape, dtype=np.uint8)
    start_from_statistics(task.tower, noise)
    with torch.no_grad():
        weight = next(p for n, p in task.tower.named_parameters() if "patch_embedding.weight" in n)
        spread = torch.nn.functional.conv2d(to_pixels(noise), weight, stride=PATCH_PX).std(
            (0, 2, 3)
        )
    assert torch.allclose(spread, torch.full_like(spread, 0.5), rtol=0.2)  # whitened


def test_attention_starts_at_tokens_like_itself():
    task = TowerTask(SiglipVisionConfig(**small_tower().to_dict() | {"hidden_size": 64}))
    start_attention(task.tower, torch.Generator().manual_seed(0))
    layer = getattr(task.tower, "vision_model", task.tower).encoder.layers[0].self_attn
    with torch.no_grad():
        # all heads together: queries times keys is noise plus a positive multiple of one
        product = layer.q_proj.weight.T @ layer.k_proj.weight
        value = layer.out_proj.weight @ layer.v_proj.weight
    off = product - torch.diag(product.diagonal())
    assert product.diagonal().mean() > 3 * off.abs().mean()
    assert value.diagonal().mean() == pytest.approx(-0.4, abs=0.1)
    again = TowerTask(SiglipVisionConfig(**small_tower().to_dict() | {"hidden_size": 64}))
    start_attention(again.tower, torch.Generator().manual_seed(0))
    same = getattr(again.tower, "vision_model", again.tower).encoder.layers[0].self_attn
    assert torch.equal(same.q_proj.weight, layer.q_proj.weight)


def test_jitter_changes_grey_levels_alone():
    flat = np.full((3, 20, 20), 128, np.uint8)
    out = jitter(np.random.default_rng(0), flat)
    assert out.shape == flat.shape and out.dtype == np.uint8
    assert len({int(x.mean()) for x in out}) > 1 and out.std((1, 2)).max() < 4


# --- captions -----------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), SIDES, st.sampled_from(LANGUAGES), st.sampled_from(list(KINDS)))
def test_captions_never_use_the_study_sentence(seed, side, language, kind):
    rng = np.random.default_rng(seed)
    segments = sorted(rng.choice(segments_of(side), 2, replace=False).tolist())
    made = scene(side, segments, rng.choice(GRADES, 2), seed)
    question, text = write_caption(rng, made, language, kind)
    assert question.strip() and text.strip()
    for sentence in (r"#\d+ shows \d+% stenosis\.", r"#\d+に\d+%の狭窄が確認できます"):
        assert not re.search(sentence, question + text)


OF_THE_PICTURE = [kind for kind in KINDS if kind not in ("glossary", "copy")]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), SIDES, st.sampled_from(LANGUAGES), st.sampled_from(OF_THE_PICTURE))
def test_no_answer_about_a_picture_knows_numbers_percents_or_plans(seed, side, language, kind):
    rng = np.random.default_rng(seed)
    segments = sorted(rng.choice(segments_of(side), 2, replace=False).tolist())
    made = scene(side, segments, rng.choice(GRADES, 2), seed)
    _, text = write_caption(rng, made, language, kind)
    assert not re.search(r"[\d#%％]", text)
    plans = [sentence for pair in PLANS.values() for sentence in pair]
    assert not any(sentence in text for sentence in plans)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), SIDES, st.sampled_from(LANGUAGES))
def test_lists_and_examples_tell_the_truth(seed, side, language):
    rng = np.random.default_rng(seed)
    segments = sorted(rng.choice(segments_of(side), 2, replace=False).tolist())
    made = scene(side, segments, rng.choice(GRADES, 2), seed)
    truth = {x["segment"]: x["percent"] for x in made.lesions}
    assert read_list(write_caption(rng, made, language, "list")[1]) == truth
    for kind in ("list", "examples", "referral"):
        _, text = write_caption(rng, made, language, kind)
        found = AHA_SEGMENTS[segments[0]], AHA_SEGMENTS[segments[1]]
        names = [s.name_en if language == "en" else s.name_ja for s in found]
        assert all(name in text for name in names)


def test_captions_by_hand():
    rng = np.random.default_rng(0)
    listed = write_caption(rng, scene(), "en", "list")[1]
    assert listed == "mid LAD: severe, proximal LCX: significant."
    left_main = scene("LCA", (5,), (50,))
    assert write_caption(rng, left_main, "ja", "list")[1] == "左冠動脈主幹部：中等度。"
    worst = {write_caption(rng, scene(), "en", "worst")[1] for _ in range(20)}
    assert worst == {"mid LAD, severe.", "LAD, mid LAD, severe."}
    assert write_caption(rng, left_main, "ja", "worst")[1].endswith("左冠動脈主幹部、中等度。")
    healthy = scene("RCA", (), ())
    assert write_caption(rng, healthy, "en", "list")[1] == "none."
    assert "RCA" in write_caption(rng, healthy, "en", "side")[1]
    shown = replace(scene(), seen=(5, 6))
    assert write_caption(rng, shown, "en", "vessels")[1] == "left main, proximal LAD."


def test_the_tokenizers_text_holds_the_findings_and_repeats_itself():
    texts = vocabulary_corpus(np.random.default_rng(1), 20)
    assert texts == vocabulary_corpus(np.random.default_rng(1), 20)
    assert any(" shows 90% stenosis" in t for t in texts)


@pytest.mark.parametrize(
    "angles, name",
    [((0, 0), "AP"), ((45, -30), "LAO caudal"), ((-30, 25), "RAO cranial"), ((-10, 9), "RAO")],
)
def test_views_are_named_as_in_the_laboratory(angles, name):
    assert name_view(*angles) == name


def test_captions_refuse():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="written in"):
        write_caption(rng, scene(), "fr")
    with pytest.raises(ValueError, match="of the kinds"):
        write_caption(rng, scene(), "en", "poem")
    with pytest.raises(ValueError, match="LCA or RCA"):
        Scene("left", (), "", {}, "none")
    with pytest.raises(ValueError, match="does not show"):
        Scene("RCA", ({"segment": 7, "percent": 50},), "", {}, "none")


def test_the_base_has_seen_every_token_that_the_study_writes():
    rng = np.random.default_rng(0)
    tokenizer = make_tokenizer("gemma3")
    scenes = [random_scene(rng) for _ in range(400)]
    seen = {i for t in base_corpus(rng, 800) for i in tokenizer(t).input_ids}
    findings = [write_findings(s.lesions, s.laterality, s.plan) for s in scenes]
    asked = {i for f in findings for text in f.values() for i in tokenizer(text).input_ids}
    assert not tokenizer.convert_ids_to_tokens(sorted(asked - seen))


# --- caption pretraining ------------------------------------------------------------------------


def test_prompts_are_the_processors_own(twin, stills):
    kind, _, processor = twin
    question = "この画像は左\n\nReport #11?"
    picture = Image.fromarray(stills.images[0]).convert("RGB")
    if kind == "gemma3":
        parts = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": parts}],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        )
    else:
        inputs = processor(images=[[picture]], text=["<image>" + question], return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == prompt_ids(processor, question)
    assert torch.allclose(inputs["pixel_values"], to_pixels(stills.images[:1]), atol=1e-6)


def test_batches_are_the_processors_own(twin, stills):
    kind, _, processor = twin
    batch = collate(processor, [("Where?", "LAD 7."), ("How tight is it there?", "90%")])
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
    picture = Image.fromarray(stills.images[0]).convert("RGB")
    own = processor(
        images=[[picture]], text=["<image>How tight is it there?"], suffix=["90%"],
        return_tensors="pt",
    )  # fmt: skip
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(own[name][0], batch[name][1])


def test_the_cached_loss_is_the_models_own(twin, stills):
    kind, model, processor = twin
    model.eval()
    batch = collate(processor, [("Where?", "LAD 7."), ("Side?", "LCA")])
    batch["weight"] = (batch["weight"] == 1).float()  # the answer alone, as the class counts it
    labels = batch["input_ids"].masked_fill(batch["weight"] == 0, -100)
    inputs = {k: v for k, v in batch.items() if k != "weight"}
    with torch.no_grad():
        pixels = to_pixels(stills.images[:2])
        tokens = model.model.vision_tower(pixel_values=pixels).last_hidden_state
        cached = caption_loss(model, batch, tokens)
        own = model(**inputs, pixel_values=pixels, labels=labels).loss
    assert torch.allclose(cached, own, atol=1e-5)


def test_captions_train_the_language_model_and_leave_the_tower(twin, stills):
    _, model, processor = twin
    before = {k: v.clone() for k, v in model.state_dict().items()}
    features = encode_stills(model.model.vision_tower, stills)
    assert features.shape == (8, (IMAGE_PX // PATCH_PX) ** 2, 128)
    history = train_captions(model, processor, stills, features, 3, batch_size=2)
    assert [row["step"] for row in history] == [0, 1, 2]
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert any("projector" in k for k in changed) and not any("vision_tower" in k for k in changed)


def test_answers_and_scores(twin, stills, monkeypatch):
    _, model, processor = twin
    texts = answer(model, processor, ["Where?", "Which side is it?"], stills.images[:2], 3)
    assert len(texts) == 2
    said = {"LCA": ["mid LAD: severe.", "left coronary artery (LCA)."], "RCA": ["none.", "RCA"]}

    def scripted(model, processor, questions, images, max_new_tokens=48):
        column = int("Which" in questions[0])
        return [said["LCA" if image[0, 0] == 60 else "RCA"][column] for image in images]

    monkeypatch.setattr("cag_utils.making_language.answer", scripted)
    found = score_captions(model, processor, stills, "en")
    assert found["laterality"] == 1 and found["segment"] == 0.5 and found["grade"] == 1
    assert found["list_exact"] == 0.5 and np.isnan(found["healthy"])


def test_a_blind_guess_by_hand():
    grades = np.zeros((5, 15), np.uint8)
    grades[0, 6] = grades[1, 6] = grades[1, 10] = grades[2, 5] = 4  # left: #7 twice, #11, #6
    grades[3, 1] = 1  # right: #2 once; the fifth picture is healthy
    lca = np.array([True, True, True, False, False])
    nothing = dict.fromkeys(("images", "angles", "counts", "points", "segments", "width_px"))
    made = Stills(**nothing, narrowed=None, grades=grades, lca=lca)
    assert score_blind_guess(made) == 3 / 4
    with pytest.raises(ValueError, match="nothing to guess"):
        score_blind_guess(replace(made, grades=grades * 0))


@pytest.mark.parametrize(
    "text, read",
    [
        ("mid LAD: severe, proximal LCX: significant.", {7: 90, 11: 75}),
        ("distal RCA branches: subtotal, left main: total occlusion.", {4: 99, 5: 100}),
        ("左冠動脈主幹部：中等度。", {5: 50}),
        ("none.", {}),
        ("なし。", {}),
        ("a vessel", None),
    ],
)
def test_lists_are_read_and_nonsense_is_not_health(text, read):
    assert read_list(text) == read


def test_a_scene_fits_its_still(stills):
    made = draw_scene(np.random.default_rng(0), stills, 0)
    assert made.laterality == "LCA" and made.view == "LAO caudal"
    assert [x["segment"] for x in made.lesions] == [7] and made.lesions[0]["percent"] == 90
    assert AHA_SEGMENTS[7].artery == made.lesions[0]["artery"]


def test_only_the_kinds_asked_for_are_written(twin, stills, monkeypatch):
    _, model, processor = twin
    kinds = []

    def heard(rng, scene, language, kind=None):
        kinds.append(kind)
        return write_caption(rng, scene, language, kind)

    monkeypatch.setattr("cag_utils.making_language.write_caption", heard)
    features = encode_stills(model.model.vision_tower, stills)
    train_captions(model, processor, stills, features, 5, batch_size=4, kinds=("side", "worst"))
    assert set(kinds) == {"side", "worst"} and len(kinds) == 20


def test_words_that_a_batch_does_not_write_are_left_where_they_are():
    words = torch.randn(6, 4, requires_grad=True)
    wanted = torch.tensor([2, 5, 2])
    hidden = torch.randn(3, 4)
    held = _hold_unwritten(words, wanted)
    torch.testing.assert_close(held, words)  # the scores are those of the whole vocabulary
    torch.nn.functional.cross_entropy(hidden @ held.T, wanted).backward()
    moved = words.grad.abs().sum(1) > 0
    assert moved.tolist() == [False, False, True, False, False, True]
    free = torch.randn(6, 4, requires_grad=True)  # the plain loss pushes every word
    torch.nn.functional.cross_entropy(hidden @ free.T, wanted).backward()
    assert (free.grad.abs().sum(1) > 0).all()
