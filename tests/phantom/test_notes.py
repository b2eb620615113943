import re
import unicodedata

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cag_utils.corpus.pairs import prompt, read_reports
from cag_utils.phantom.clinic import notes
from cag_utils.phantom.clinic.notes import type_note, write_report, write_sentences
from cag_utils.phantom.clinic.patients import Record, draw_record, estimated_gfr
from cag_utils.scores.entities import read_entities
from cag_utils.segments import GRADES
from tests.phantom.test_clinic import lesions_st, seed_st

LANGUAGES = ("en", "ja")
LEAST_PATTERNS = 40  # of the study's issue: sentence patterns a language
# Words that would tell what the picture must show, or who the patient is.
TELLTALE = re.compile(
    r"#|segment|stenos|narrow|occlu|\bLAD\b|\bLCX\b|\bRCA\b|\bLCA\b|\bLM|circumflex|descending|left"
    r"|right|anterior|inferior|lateral|septal|vessel disease|calcif|normal coronar"
    r"|狭窄|閉塞|枝|主幹|左|右|前壁|下壁|側壁|番|有意|\d月|\d日|(?:19|20)\d\d[年/.-]|Dr\.|医師",
    re.IGNORECASE,
)


def patients(count, seed=0):
    """Patients of all grades, sexes and segments, each with its record's generator."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        lesions = [{"segment": 1 + i % 15, "percent": GRADES[i % 6]}] if i % 7 else []
        yield rng, draw_record(rng, lesions, "MF"[i % 2])


def folded(text):
    """The note without the typist: one width, one space, no line breaks."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text))


_ABBREVIATED = r"(?<![A-Za-z-])(?:{})(?![A-Za-z])"
RISKS = {
    "hypertension": ("(?i:hypertension)", "高血圧", "HTN?"),
    "diabetes": ("(?i:diabetes)", "糖尿病", "DM"),
    "dyslipidemia": ("(?i:dyslipidemia)", "脂質異常症", "[DH]L"),
    "smoking": ("(?i:current smoking)|(?<!ex-)smoker", "現在喫煙|喫煙\\+", "(?!)"),
    "ex_smoking": ("(?i:former smoking|ex-smoker)", "過去喫煙|禁煙後", "(?!)"),
    "family_history": ("(?i:family history)|FHx", "家族歴", "(?!)"),
    "ckd": ("(?i:chronic kidney)", "慢性腎臓病", "CKD"),
    "hemodialysis": ("(?i:hemodialysis)", "血液透析", "HD"),
    "atrial_fibrillation": ("(?i:atrial fibrillation)", "心房細動", "AF"),
    "stroke": ("(?i:prior stroke|old CVA)", "脳梗塞", "(?!)"),
    "pad": ("(?i:peripheral artery)", "末梢動脈疾患", "PAD"),
    "obesity": ("(?i:obes)", "肥満", "(?!)"),
}
DENIED = re.compile(
    r"(?i:no prior MI, ?PCI or CABG)|心筋梗塞[、,] ?PCI[、,] ?CABGの既往なし"
    r"|MI ?\(-\)[、,] ?PCI ?\(-\)[、,] ?CABG ?\(-\)"
)
HISTORY = {
    "cabg": ("CABG", "CABG"),
    "pci": ("PCI|(?i:after stenting)", "PCI|ステント留置後"),
    "mi": ("(?<![A-Z])MI(?![A-Za-z])", "心筋梗塞"),
}
STRESS = {
    "stress_positive": ("positive|suggested|(?i:(?<!no )ischemia on)", "陽性|示唆|虚血あり"),
    "stress_negative": ("negative|without ischemia|(?i:no ischemia)", "陰性|虚血なし|誘発されず"),
    "stress_equivocal": ("inconclusive|stopped early", "判定困難|途中で終了"),
}
STRESS_TOLD = ("(?i:exercise ECG|stress (?:SPECT|echo))", "負荷心")
DRUGS = {
    "aspirin": ("aspirin", "アスピリン"), "clopidogrel": ("clopidogrel", "クロピドグレル"),
    "statin": ("statin", "スタチン"), "amlodipine": ("amlodipine", "アムロジピン"),
    "bisoprolol": ("bisoprolol", "ビソプロロール"), "dpp4": ("DPP-4", "DPP-4"),
    "warfarin": ("warfarin", "ワルファリン"), "apixaban": ("apixaban", "アピキサバン"),
}  # fmt: skip
WOMAN = (r"(?i:\bwoman\b)|\d\dF\b", "女性|\\d\\dF(?![A-Za-z])")
MAN = (r"(?i:\bman\b)|\d\dM\b", "男性|\\d\\dM(?![A-Za-z])")
AGE = (
    r"(\d\d)(?:-year-old| y/o| yo\b| years old|[MF]\b)|(?i:(?:wo)?man), ?(\d\d)",
    r"(\d\d)(?:歳|才|[MF])",
)


def stated(text, language):
    i = LANGUAGES.index(language)
    text = folded(text)
    told = DENIED.sub("", text)
    short = {key for key, row in RISKS.items() if re.search(_ABBREVIATED.format(row[2]), text)}

    def named(table, text=text):
        return {key for key, words in table.items() if re.search(words[i], text)}

    age = re.search(AGE[i], text)
    ef = re.search(r"EF ?(\d+) ?%", text)
    return {
        "age": int(next(filter(None, age.groups()))),
        "woman": bool(re.search(WOMAN[i], text)), "man": bool(re.search(MAN[i], text)),
        "risks": named(RISKS) | short, "history": named(HISTORY, told), "acute": "STEMI" in text,
        "stress": named(STRESS) if re.search(STRESS_TOLD[i], text) else set(),
        "drugs": named(DRUGS), "ef": int(ef[1]) if ef else None,
    }  # fmt: skip


def test_both_languages_state_the_record_and_never_contradict_each_other():
    for rng, record in patients(800):
        report = write_report(rng, record)
        read = {language: stated(report[language], language) for language in LANGUAGES}
        assert read["en"] == read["ja"], report
        quoted = {"drugs": set(record.drugs), "ef": record.ef}  # told if there is room
        assert read["en"] | quoted == quoted | {
            "age": record.age, "woman": record.sex == "F", "man": record.sex == "M",
            "risks": set(record.risk_factors), "history": set(record.history),
            "acute": record.acute, "stress": set(record.tests) & set(STRESS),
        }, (report, record)  # fmt: skip
        assert read["en"]["ef"] in {None, record.ef}
        assert read["en"]["drugs"] in (set(), set(record.drugs))


@settings(deadline=None, max_examples=150)
@given(lesions_st, st.sampled_from("MF"), seed_st)
def test_a_report_tells_the_patient_and_never_the_picture(lesions, sex, seed):
    rng = np.random.default_rng(seed)
    report = write_report(rng, draw_record(rng, lesions, sex))
    for language, text in report.items():
        assert not TELLTALE.search(folded(text)), TELLTALE.search(folded(text))
        assert "{" not in text and "\n\n" not in text
        read = read_entities(text, language)
        assert (read.stenoses, read.sides, read.cleared) == ((), frozenset(), frozenset()), text
        percents = re.findall(r"([A-Za-z]*) ?(\d+) ?%", folded(text))
        assert all(name.endswith("EF") for name, _ in percents), text  # nothing else has a %
    numbers = [sorted(re.findall(r"\d+(?:\.\d+)?", folded(report[la]))) for la in LANGUAGES]
    assert numbers[0] == numbers[1]
    assert re.search(r"[ぁ-ん一-龥]", report["ja"]) and report["en"].isascii()


@given(lesions_st.filter(bool), seed_st, st.data())
def test_where_the_lesions_are_changes_no_letter(lesions, seed, data):
    """Equal grades elsewhere give the same report, so no statistic of it can name a segment."""
    moved = data.draw(st.permutations(range(1, 16)))[: len(lesions)]
    elsewhere = [x | {"segment": s} for x, s in zip(lesions, moved, strict=True)]
    texts = []
    for found in (lesions, elsewhere):
        rng = np.random.default_rng(seed)
        texts.append(write_report(rng, draw_record(rng, found, "M")))
    assert texts[0] == texts[1]


SAID = notes.phrases()
OPENINGS = {
    *SAID.openings, *SAID.openings_without_risks, *SAID.openings_with_complaint
}  # fmt: skip
PATTERNS = [
    *OPENINGS, *SAID.risks_apart, *SAID.no_risks_apart, *SAID.no_history,
    *SAID.medications, *SAID.no_medications, *SAID.requests, *SAID.fillers,
]  # fmt: skip
for table in (SAID.indications, SAID.histories, SAID.tests):
    PATTERNS += [pair for variants in table.values() for pair in variants]


def skeleton(text):
    """A pattern without slots, facts, articles and punctuation: a swapped fact makes none new."""
    facts = r"{\w+}|stemi|nstemi|cabg|pci|\bmi\b|positive|negative|陽性|陰性"
    bare = re.sub(r"\b(?:a|an|the|of|for|in|on)\b|[^\w ]", "", re.sub(facts, "_", text.lower()))
    return re.sub(r"_[_ ]*", "_", bare).strip()


def test_notes_vary_have_their_order_and_at_least_forty_patterns_a_language():
    """Counted from the text itself: a template must match the whole sentence it is said to be."""
    seen, texts, counts, requests, asked = set(), set(), [], set(SAID.requests), 0
    for rng, record in patients(400, seed=3):
        sentences = write_sentences(rng, record)
        for sentence in sentences:
            for template, text in zip(sentence.pattern, sentence[1:], strict=True):
                wanted = re.sub(r"\\{\w+\\}", ".+", re.escape(template))
                assert re.fullmatch(wanted, text), (template, text)
        told = [sentence.pattern for sentence in sentences]
        seen |= set(told)
        assert told[0] in OPENINGS and not OPENINGS & set(told[1:])  # the patient first
        assert not requests & set(told[:-1])  # and a request only at the end
        asked += told[-1] in requests
        texts.add(" ".join(s.en for s in sentences))
        counts.append(len(" ".join(s.en for s in sentences).split()))
    assert asked > 100 and len(texts) > 395 and np.std(counts) > 4
    assert min(counts) >= notes.WORDS_LOW and max(counts) <= notes.WORDS_HIGH
    assert seen <= set(PATTERNS) and len(set(PATTERNS)) == len(PATTERNS)
    for i in range(2):
        assert len({skeleton(pair[i]) for pair in seen}) >= LEAST_PATTERNS
    assert len(seen) >= 0.9 * len(PATTERNS)  # none is dead weight


def test_a_note_by_hand():
    record = Record(
        81, "F", ("hypertension",), "follow_up", ("pci",), ("stress_negative",), 60,
        details={"pci_months": 8, "stress_kind": "spect"},
    )  # fmt: skip
    texts = [write_sentences(np.random.default_rng(seed), record) for seed in range(200)]
    said = {text for sentences in texts for s in sentences for text in (s.en, s.ja)}
    assert {"Hypertension in an 81-year-old woman.", "PCI 8 months ago."} <= said
    assert "Stress SPECT without ischemia." in said and "Ischemia on stress SPECT." not in said
    assert {
        "8か月前にPCI。",
        "負荷心筋シンチ陰性。",
        "81F。リスク：HT。",
        "81F。リスク：高血圧。",
    } <= said


BARE = Record(70, "M", (), "dyspnea", (), ("echo",), 60)  # lacks what its sentences quote
# A number that ends a sentence before one that begins the next: a lost space would join them.
ENGLISH = ["LDL 160.", "70-year-old man, HT, DM.", "Chest pain for 3 months.", "CABG 5 years ago."]
JAPANESE = ["LDLは160。", "70歳男性、HT（CCS II）。", "既往：DM、EF 60%。", "カルシウムスコア 28。"]


def letters(text):
    kept = re.sub(r"[\s.,、。]+", "", unicodedata.normalize("NFKC", text)).lower()
    return re.sub(r"(?:-year-old|yo)", "", kept)


@given(seed_st)
def test_typing_changes_width_space_case_and_stops_alone(seed):
    for language, sentences in (("en", ENGLISH), ("ja", JAPANESE)):
        note = type_note(np.random.default_rng(seed), sentences, language)
        assert letters(note) == letters("".join(sentences))
        numbers = [re.findall(r"\d+(?:\.\d+)?", folded(x)) for x in (note, " ".join(sentences))]
        assert numbers[0] == numbers[1]
        assert "\n\n" not in note and note == note.strip()


HABITS = {
    "en": (r"  ", r"months\.CABG", r"\bchest", r"\.\.", r"70 yo", r"HT,DM", r"\n", r"ago$"),
    "ja": (r"７０歳", r"ＨＴ", r"60％", r"EF60", r"\(CCS", r"，|, ", r"。。", r"．", r"。[ 　]",
           r"\n", r"28$"),
}  # fmt: skip


@pytest.mark.parametrize(("language", "sentences"), [("en", ENGLISH), ("ja", JAPANESE)])
def test_each_habit_occurs_in_some_notes_and_not_in_most(language, sentences):
    rng = np.random.default_rng(0)
    typed = [type_note(rng, sentences, language) for _ in range(1500)]
    for habit in HABITS[language]:
        assert 0.005 < np.mean([bool(re.search(habit, note)) for note in typed]) < 0.35, habit
    assert typed.count((" " if language == "en" else "").join(sentences)) > 450  # typed cleanly


def test_the_corpus_reads_every_note_back_letter_by_letter(tmp_path):
    table = pd.DataFrame([write_report(*made) for made in patients(150, seed=5)])
    table = table.add_prefix("report_").assign(exam=[f"1.2.{i}" for i in range(150)])
    table = table[["exam", "report_ja", "report_en"]]
    path = tmp_path / "reports.csv"
    path.write_bytes(table.to_csv(index=False, lineterminator="\n").encode())
    read = read_reports(path, b"secret")
    assert table["report_en"].str.contains("\n").any()
    for language in LANGUAGES:
        written = table[f"report_{language}"].tolist()
        assert read[f"report_{language}"].tolist() == written
        assert prompt("LCA", written[0], language).endswith(written[0])


@pytest.mark.parametrize(("call", "match"), [
    (lambda rng: type_note(rng, [], "en"), "at least one sentence"),
    (lambda rng: type_note(rng, ["A."], "fr"), "language .*'fr'|'fr'"),
    (lambda rng: estimated_gfr(0, 60, "M"), "above 0, got 0 and 60"),
    (lambda rng: [write_sentences(rng, BARE) for _ in range(20)], "this record's details lack"),
])  # fmt: skip
def test_what_cannot_be_written_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call(np.random.default_rng(0))


def test_gfr_hand_worked():
    # 60 ** -0.287 = exp(-1.17508) = 0.30879; times 194 = 59.9, and 0.739 of it in women
    assert estimated_gfr(1.0, 60, "M") == pytest.approx(59.91, abs=0.02)
    assert estimated_gfr(1.0, 60, "F") == pytest.approx(44.27, abs=0.02)


def test_measurements_fit_the_patient():
    seen = set()
    for _, record in patients(1500, seed=6):
        found, risks = record.details, set(record.risk_factors)
        seen |= risks
        assert found["egfr"] == round(estimated_gfr(found["creatinine"], record.age, record.sex))
        if "hemodialysis" in risks:
            assert found["creatinine"] >= 6 and "bnp" not in record.tests
        else:
            assert (found["egfr"] < 60) == ("ckd" in risks)
        assert (found["hba1c"] >= 6.5) == ("diabetes" in risks)
        assert found["ldl"] < 140 or "dyslipidemia" in risks
        assert (found["systolic"] >= 132) == ("hypertension" in risks)
        assert found["systolic"] > found["diastolic"]
        assert 2 <= found["hours"] < 12
        if record.indication == "heart_failure":
            assert found["bnp"] >= 200 and found["stress_kind"] != "treadmill"
        assert ("ecg_af" in record.tests) <= ("atrial_fibrillation" in risks)
        assert ("ecg_sinus" in record.tests) <= ("atrial_fibrillation" not in risks)
        assert not ("ct_calcium" in record.tests and {"pci", "cabg"} & set(record.history))
        assert ("warfarin" in record.drugs) <= ("hemodialysis" in risks)
        assert ("apixaban" in record.drugs) <= ("hemodialysis" not in risks)
        for event in record.history:
            assert 0 < found[f"{event}_months"] < 12 * record.age
        if record.indication == "follow_up":
            assert 6 <= found["pci_months"] <= 12
        if {"pci", "mi"} <= set(record.history):
            assert found["pci_months"] == found["mi_months"]
    assert {"hemodialysis", "ckd", "diabetes", "atrial_fibrillation"} <= seen
