"""Captions: the truth in other words than the study's."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cag_utils.cines.dicom import name_view
from cag_utils.making.captions import (
    KINDS,
    LANGUAGES,
    Scene,
    base_corpus,
    random_scene,
    vocabulary_corpus,
    write_caption,
)
from cag_utils.making.language import read_list
from cag_utils.making.twins import make_tokenizer
from cag_utils.phantom.clinic.findings import PLANS, decide_plan, write_findings
from cag_utils.phantom.clinic.notes import write_report
from cag_utils.phantom.clinic.patients import draw_record
from cag_utils.segments import AHA_SEGMENTS, GRADES, check_lesion, segments_of

SIDES = st.sampled_from(["LCA", "RCA"])


def scene(side="LCA", segments=(7, 11), percents=(90, 75), seed=0):
    rng = np.random.default_rng(seed)
    pairs = zip(segments, percents, strict=True)
    lesions = tuple(check_lesion({"segment": s, "percent": p}) for s, p in pairs)
    record = draw_record(rng, lesions, "M")
    return Scene(side, lesions, "LAO", write_report(rng, record), decide_plan(record, lesions))


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
    seen = {i for ids in tokenizer(base_corpus(rng, 400)).input_ids for i in ids}
    findings = [write_findings(s.lesions, s.laterality, s.plan) for s in scenes]
    texts = [text for both in findings for text in both.values()]
    asked = {i for ids in tokenizer(texts).input_ids for i in ids}
    assert not tokenizer.convert_ids_to_tokens(sorted(asked - seen))
