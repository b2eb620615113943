"""Captions: the truth in other words than the study's."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cag_utils.making import captions
from cag_utils.making.language import read_list
from cag_utils.making.twins import make_tokenizer
from cag_utils.phantom.clinic.findings import PLANS, write_findings
from cag_utils.segments import AHA_SEGMENTS, GRADES, check_lesion, segments_of

SIDES, LANGUAGES = st.sampled_from(["LCA", "RCA"]), st.sampled_from(captions.LANGUAGES)
PICTURE = st.tuples(st.integers(0, 10**6), SIDES, LANGUAGES)


def patient(side="LCA", segments=(7, 11), percents=(90, 75), seed=0):
    pairs = zip(segments, percents, strict=True)
    lesions = [check_lesion({"segment": s, "percent": p}) for s, p in pairs]
    return captions.draw_patient(np.random.default_rng(seed), side, lesions, (45, 0), ())


def drawn(seed, side):
    rng = np.random.default_rng(seed)
    segments = sorted(rng.choice(segments_of(side), 2, replace=False).tolist())
    return rng, patient(side, segments, rng.choice(GRADES, 2), seed)


@settings(max_examples=80, deadline=None)
@given(PICTURE, st.sampled_from(list(captions.KINDS)))
def test_captions_never_use_the_study_sentence_and_answers_know_no_numbers(picture, kind):
    rng, facts = drawn(*picture[:2])
    question, text = captions.write_caption(rng, facts, picture[2], kind)
    assert question.strip() and text.strip()
    for sentence in (r"#\d+ shows \d+% stenosis\.", r"#\d+に\d+%の狭窄が確認できます"):
        assert not re.search(sentence, question + text)
    if kind not in ("glossary", "copy", "coded"):  # of the picture: no number, percent or plan
        assert not re.search(r"[\d#%％]", text)
        assert not any(sentence in text for pair in PLANS.values() for sentence in pair)


@settings(max_examples=30, deadline=None)
@given(PICTURE)
def test_lists_and_examples_tell_the_truth(picture):
    rng, facts = drawn(*picture[:2])
    language = picture[2]
    truth = {x["segment"]: x["percent"] for x in facts.lesions}
    assert read_list(captions.write_caption(rng, facts, language, "list")[1]) == truth
    for kind in ("list", "examples", "referral"):
        _, text = captions.write_caption(rng, facts, language, kind)
        found = [AHA_SEGMENTS[segment] for segment in truth]
        assert all((s.name_en if language == "en" else s.name_ja) in text for s in found)


@settings(max_examples=20, deadline=None)
@given(PICTURE)
def test_what_is_told_in_words_is_what_is_answered(picture):
    rng, facts = drawn(*picture[:2])
    question, text = captions.write_caption(rng, facts, picture[2], "told")
    told = read_list(text)
    assert told is not None and set(told) <= set(segments_of(picture[1])) and len(told) <= 3
    names = [(AHA_SEGMENTS[s], captions.GRADE_WORDS[p][picture[2]]) for s, p in told.items()]
    assert all(
        (s.name_en if picture[2] == "en" else s.name_ja) in question and grade in question
        for s, grade in names
    )


@settings(max_examples=30, deadline=None)
@given(PICTURE)
def test_coded_texts_say_the_same_with_the_textbooks_numbers(picture):
    rng, facts = drawn(*picture[:2])
    question, answer = captions.write_caption(rng, facts, picture[2], "coded")
    words, codes = sorted((question, answer), key=lambda text: "#" in text)
    found = {int(s): int(p) for s, p in re.findall(r"#(\d+) (\d+)%", codes)}
    assert found and found == read_list(words)


def test_captions_by_hand():
    rng = np.random.default_rng(0)
    listed = captions.write_caption(rng, patient(), "en", "list")[1]
    assert listed == "mid LAD: severe, proximal LCX: significant."
    left_main = patient("LCA", (5,), (50,))
    assert captions.write_caption(rng, left_main, "ja", "list")[1] == "左冠動脈主幹部：中等度。"
    worst = {captions.write_caption(rng, patient(), "en", "worst")[1] for _ in range(20)}
    assert worst == {"mid LAD, severe.", "LAD, mid LAD, severe."}
    _, worst = captions.write_caption(rng, left_main, "ja", "worst")
    assert worst.endswith("左冠動脈主幹部、中等度。")
    healthy = patient("RCA", (), ())
    assert captions.write_caption(rng, healthy, "en", "list")[1] == "none."
    assert "RCA" in captions.write_caption(rng, healthy, "en", "side")[1]
    assert captions.write_caption(rng, healthy, "ja", "vessels")[1] == "なし。"
    views = {(0, 0): "AP", (45, -30): "LAO caudal", (-30, 25): "RAO cranial", (-10, 9): "RAO"}
    for angles, name in views.items():
        assert captions.draw_patient(rng, "LCA", [], angles, ()).view == name
    shown = replace(patient(), seen=(5, 6))
    assert captions.write_caption(rng, shown, "en", "vessels")[1] == "left main, proximal LAD."
    survey = captions.write_caption(rng, replace(patient(), seen=(6, 7)), "en", "survey")[1]
    assert survey == "proximal LAD: no, mid LAD: severe, proximal LCX: significant."
    assert captions.write_caption(rng, healthy, "ja", "survey")[1] == "なし。"


def test_the_base_has_seen_every_token_that_the_study_writes():
    rng, tokenizer = np.random.default_rng(0), make_tokenizer("gemma3")
    drawn = [captions.random_facts(rng) for _ in range(200)]
    seen = {i for ids in tokenizer(captions.base_corpus(rng, 200)).input_ids for i in ids}
    findings = [write_findings(x.lesions, x.laterality, x.plan) for x in drawn]
    texts = [text for both in findings for text in both.values()]
    asked = {i for ids in tokenizer(texts).input_ids for i in ids}
    assert not tokenizer.convert_ids_to_tokens(sorted(asked - seen))
    texts = captions.vocabulary_corpus(np.random.default_rng(1), 20)
    assert texts == captions.vocabulary_corpus(np.random.default_rng(1), 20)
    assert any(" shows 90% stenosis" in text for text in texts)  # as the tokenizer may know


LEFT = {"segment": 7, "percent": 50}


@pytest.mark.parametrize(("call", "match"), [
    (lambda: captions.write_caption(np.random.default_rng(0), patient(), "fr"), "written in"),
    (lambda: captions.write_caption(None, patient(), "en", "poem"), "of the kinds"),
    (lambda: captions.PictureFacts("left", (), "", {}, "none"), "LCA or RCA"),
    (lambda: captions.PictureFacts("RCA", (LEFT,), "", {}, "none"), "does not show"),
])  # fmt: skip
def test_captions_refuse(call, match):
    with pytest.raises(ValueError, match=match):
        call()
