"""Floors and ceilings: what is written without a look, and that nothing of it has skill."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cag_utils.corpus.pairs import prompt
from cag_utils.phantom.clinic.findings import decide_plan, write_findings
from cag_utils.phantom.clinic.patients import Record
from cag_utils.profiles import Stats
from cag_utils.scores import floors, scorecard
from cag_utils.scores.entities import read_entities
from cag_utils.scores.floors import AT, BOUNDS, Bound, best_constants, name_of
from cag_utils.scores.measures import by_case, estimate, measures, skill
from cag_utils.scores.rubric import truth_of
from cag_utils.scores.scorecard import score_generations, skills, summarise_marks
from cag_utils.segments import GRADES, segments_of

STATS = Stats(n_resamples=200, level=0.95)
PATIENT = Record(70, "M", (), "effort_angina", (), (), 60)


def draw_pairs(n_patients, seed):
    """Two cases a patient, half of the sides without a lesion, with the phantom's own texts."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(n_patients):
        side = str(rng.choice(["LCA", "RCA"]))
        numbers = rng.choice(segments_of(side), size=rng.choice([0, 1, 2], p=(0.5, 0.35, 0.15)))
        lesions = [{"segment": int(n), "percent": int(rng.choice(GRADES))} for n in set(numbers)]
        plan = decide_plan(PATIENT, lesions)
        row = {f"findings_{k}": v for k, v in write_findings(lesions, side, plan).items()}
        row |= {"patient_id": f"pt-{i}", "laterality": side, "truth_laterality": side}
        row |= {"truth_lesions": json.dumps(lesions), "truth_plan": plan}
        rows += [row | {"case_id": f"case-{2 * i + k:04d}"} for k in (0, 1)]
    return pd.DataFrame(rows)


def scored(pairs, texts, language="en"):
    """The rubric's marks of texts, model to one text a row or one for all."""
    rows = [
        pd.DataFrame({"case_id": pairs["case_id"], "model": model, "output": text, "status": "ok"})
        for model, text in texts.items()
    ]
    return score_generations(pd.concat(rows), pairs, language)


def written(train, cases, language="en"):
    """What every author of texts writes for some cases."""
    said = {name: b.write(train, cases, language) for name, b in BOUNDS.items() if b.write}
    return {name: texts for name, texts in said.items() if texts is not None}


@pytest.mark.parametrize("language", ["en", "ja"])
def test_no_constant_sentence_has_skill_and_the_truth_has_one(language):
    train, test = draw_pairs(100, 0), draw_pairs(50, 1)
    for cases, fresh in ((train, False), (test, True)):
        bounds = written(train, cases, language)
        texts = {f"text {i}": t for i, t in enumerate(sorted(set(train[f"findings_{language}"])))}
        few = STATS.model_copy(update={"n_resamples": 100})
        found = skills(scored(cases, bounds | texts, language), few, 0).set_index("model")
        assert (found.loc[["truth"], ["skill", "low", "high"]] == 1).all(axis=None)
        constants = found.loc[list(texts)]
        assert len(constants) > 40 and (constants["low"] <= 0).all()
        assert fresh or (constants["skill"] <= 0).all()
        floor = found.loc[["constant", "constant_f1", "commonest"], "skill"]
        assert (floor <= 0).all() and (floor == 0).any()
        assert (found["score"] <= found["ceiling"]).all()


def test_the_best_constant_by_hand():
    rows = [("LCA", "LAD #6 shows 90% stenosis."), ("LCA", "No significant stenosis in the LCA.")]
    rows += [("LCA", "Nothing significant: no significant stenosis in the LCA.")] * 2
    rows += [("RCA", "RCA #2 shows 75% stenosis."), ("RCA", "RCA #1 and #2 show 75% stenosis.")]
    train = pd.DataFrame(rows, columns=["laterality", "findings_en"])
    best = best_constants(train, "en", "overall")  # two texts that say the same are one: the first
    assert best["LCA"] == "No significant stenosis in the LCA."
    # hits, said, true: #6 under all of LCA adds 1 of 4 to 1; RCA's two segments 3 of 4 to 3
    best = best_constants(train, "en", "lesion_f1")
    assert best == {"LCA": rows[1][1], "RCA": "RCA #1 and #2 show 75% stenosis."}
    with pytest.raises(ValueError, match="unknown measure 'f1'"):
        best_constants(train, "en", "f1")
    with pytest.raises(ValueError, match="no training case"):
        best_constants(train.head(0), "en", "overall")


def test_the_commonest_lesion_and_the_ideal_reader_say_what_they_should():
    lesions = [[(6, 90)], [(6, 90), (7, 25)], [(6, 75)], [(7, 90)], [(7, 25)], []]
    rows = []
    for found in lesions:
        found = [{"segment": s, "percent": p} for s, p in found]
        texts = write_findings(found, "LCA", decide_plan(PATIENT, found))
        row = {f"findings_{la}": text for la, text in texts.items()}
        plan = decide_plan(PATIENT, found)
        row |= {"laterality": "LCA", "truth_laterality": "LCA", "truth_plan": plan}
        rows.append(row | {"truth_lesions": json.dumps(found)})
    train = pd.DataFrame(rows)
    for language, text in (
        ("en", "LAD #6 shows 90% stenosis. PCI with a drug-eluting stent is recommended."),
        ("ja", "LAD #6に90%の狭窄を認めます。薬剤溶出性ステントによるPCIを推奨します。"),
    ):
        assert set(floors.write_commonest(train, train, language)) == {text}
        assert floors.write_ideal(train, train, language) is None  # own data know no such reader
        ideal = train.assign(ideal_lesions=train["truth_lesions"], ideal_plan=train["truth_plan"])
        said = floors.write_ideal(train, ideal, language)  # who sees all says the truth
        read = [truth_of({f"findings_{language}": text}, language) for text in said]
        assert read == [truth_of(row, language) for _, row in train.iterrows()]
        ideal["ideal_lesions"], ideal["ideal_plan"] = "[]", "none"
        read = read_entities(floors.write_ideal(train, ideal, language)[0], language)
        assert read.no_stenosis and read.plan == "none"


def test_a_model_is_asked_blind_before_anothers_picture_and_without_the_report(tmp_path):
    cases = pd.DataFrame(
        [(f"case-{i}", f"pt-{i // 2}", "LCA" if i < 6 else "RCA", f"{i}.png") for i in range(10)],
        columns=["case_id", "patient_id", "laterality", "image"],
    )
    cases["prompt"] = [prompt(side, "84M.", "en") for side in cases["laterality"]]
    blank = floors.ask_blank(cases, "en", tmp_path)
    [path] = set(blank["image"])
    assert Image.open(path).getcolors() == [(512**2, 128)]
    other = floors.ask_other(cases, "en", tmp_path)
    asked = other.merge(cases, on="image", suffixes=("", "_of"))
    assert sorted(other["image"]) == sorted(cases["image"]) and len(asked) == 10
    assert (asked["patient_id"] != asked["patient_id_of"]).all()
    assert (asked["laterality"] == asked["laterality_of"]).all()
    assert floors.ask_other(cases.head(3), "en", tmp_path).empty  # one patient has most of them
    told = floors.ask_without_report(cases, "en", tmp_path)["prompt"]
    assert not told.str.contains("84M").any() and told[0].endswith("future management.")
    cases["report"] = [f"{60 + i // 2}M." for i in range(10)]  # one a patient
    other = floors.ask_other_report(cases, "en", tmp_path)
    asked = [prompt(row.laterality, row.report, "en") for row in other.itertuples()]
    assert other["prompt"].tolist() == asked
    assert other["image"].sort_index().equals(cases["image"])
    assert (other["report"].sort_index() != cases["report"]).all()
    assert sorted(other["report"]) == sorted(cases["report"])


def test_scattered_and_mirrored_pictures_keep_the_grey_levels_and_their_cases(tmp_path):
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    cases = pd.DataFrame({"case_id": ["a", "b"], "image": str(tmp_path / "true.png")})
    Image.fromarray(grey).save(cases["image"][0])
    mirrored = floors.ask_mirrored(cases, "en", tmp_path)
    assert np.array_equal(np.asarray(Image.open(mirrored["image"][0])), grey[:, ::-1])
    first, second = (
        [np.asarray(Image.open(path)) for path in floors.ask_noise(cases, "en", tmp_path)["image"]]
        for _ in range(2)
    )
    assert all(sorted(x.ravel()) == list(range(12)) for x in first)
    assert not np.array_equal(first[0], first[1]) and not np.array_equal(first[0], grey)
    assert np.array_equal(first, second)  # a rerun asks the same


def test_skill_by_hand_and_the_better_floor_counts_case_by_case():
    low, high, one = np.array([0.2, 4.0]), np.array([0.1, 6.0]), np.array([1.0, 10.0])
    assert skill(np.array([0.6, 5.0]), one, low, high).round(9).tolist() == [0.5, -0.25]
    assert np.isnan(skill(one, one, one)).all()  # no room between floor and ceiling
    pairs = draw_pairs(30, 2)
    bounds = written(pairs, pairs)
    half = bounds["truth"].where(pairs.index % 2 == 0, "Sorry.")
    texts = {"truth": bounds["truth"], "constant": "Sorry.", "m_lora": half, "m_lora@blank": half}
    found = skills(scored(pairs, texts), STATS, 0).set_index(["model", "measure"])
    assert (found.loc["m_lora", "skill"] == 0).all()  # as good blind: it does not look
    assert set(found.loc["m_lora", "best_floor"]) == {"m_lora@blank"}
    assert found.loc[("m_lora@blank", "overall"), "best_floor"] == "constant"
    assert found.loc[("m_lora@blank", "overall"), "skill"] == pytest.approx(0.5)
    # without the report it sees the picture: no floor, however good
    found = skills(scored(pairs, texts | {"m_lora@no_report": bounds["truth"]}), STATS, 0)
    assert set(found.loc[found["model"] == "m_lora", "best_floor"]) == {"m_lora@blank"}
    # a sheet without the blind answers: lesions keep the program's floors, the score its own
    sheet = scored(pairs, {name: texts[name] for name in ("truth", "constant", "m_lora")})
    found = skills(sheet, STATS, 0, scored(pairs, texts)).set_index(["model", "measure"])
    assert found.loc[("m_lora", "lesion_f1"), "best_floor"] == "m_lora@blank"
    assert found.loc[("m_lora", "overall"), "best_floor"] == "constant"
    assert skills(scored(pairs, {"m_lora": half}), STATS, 0).empty  # neither floor nor ceiling
    with pytest.raises(ValueError, match="did you mean 'lesion_f1'"):
        skills(scored(pairs, texts), STATS.model_copy(update={"primary": "lesion_f"}), 0)


def test_a_model_that_does_not_look_is_called_so():
    pairs = draw_pairs(30, 3)
    texts = {m: pairs["findings_en"] for m in ("a_lora", "b_lora", "b_lora@other", "a_lora@other")}
    blind = {"a_lora@blank": "Sorry.", "b_lora@blank": "Sorry.", "a_lora@other": "Sorry."}
    marks = scored(pairs, texts | blind)
    looks = scorecard.looks_at_picture(marks, STATS, 0)
    drops = looks.set_index(["model", "asked"])["difference"]
    assert drops.to_dict() == {
        (m, a): float((m, a) != ("b_lora", "other"))
        for m in ("a_lora", "b_lora")
        for a in ("blank", "other")
    }
    summary = summarise_marks(marks, STATS, 0)
    nothing = pd.DataFrame(columns=scorecard.SKILLS)
    table = scorecard.table4(summary, nothing, looks).set_index("model")["looks"]
    assert (table["a_lora"], table["b_lora"]) == ("looks", "does not look")
    assert set(table.drop(["a_lora", "b_lora"])) == {"–"}
    figures = scorecard.flat_metrics(summary, nothing, looks, pd.DataFrame())
    assert (figures["a_lora.looks"], figures["b_lora.looks"]) == ("looks", "does not look")
    assert figures["floor.b_lora@other.lesion_f1"] == figures["a_lora.blank_drop"] == 1


@pytest.mark.parametrize("blank, other, verdict", [
    ((0.1, 0.3), (0.01, 0.2), "looks"),
    ((0.1, 0.3), (-0.01, 0.2), "unclear"),
    ((0.0, 0.3), (0.1, 0.2), "unclear"),  # an interval that touches 0 shows nothing
    ((-0.2, 0.0), (0.1, 0.2), "does not look"),
    ((-0.2, 0.1), (-0.3, -0.1), "does not look"),
    ((float("nan"),) * 2, (float("nan"),) * 2, "unclear"),  # no lesion to go by
])  # fmt: skip
def test_verdicts_of_looking_follow_from_both_intervals(blank, other, verdict):
    rows = [("m_lora", "blank", 0.0, *blank), ("m_lora", "other", 0.0, *other)]
    looks = pd.DataFrame(rows, columns=scorecard.LOOKS)
    assert scorecard.looks_verdicts(looks) == {"m_lora": verdict}


def test_figures_of_models_are_taken_on_the_cases_they_share():
    pairs = draw_pairs(10, 4)
    marks = scored(pairs, {"a": pairs["findings_en"], "b": "Sorry."})
    few = marks[(marks["model"] == "a") | (marks["case_id"] < "case-0004")]
    [found] = estimate(by_case(few), ["a", "b"], ["overall"], np.subtract, STATS, 0)
    assert found.value == 10
    none = few[(few["model"] == "b") | (few["case_id"] > "case-0010")]
    [found] = estimate(by_case(none), ["a", "b"], ["overall"], np.subtract, STATS, 0)
    assert np.isnan(found.value)


def test_a_floor_is_added_by_one_entry(monkeypatch):
    """A made-up one, through the calls of notebooks 05 and 07: names, order, skill and tables."""
    shrug = Bound("A shrug", write=lambda _, cases, __: pd.Series("No plan.", cases.index))
    monkeypatch.setitem(BOUNDS, "shrug", shrug)
    monkeypatch.setitem(BOUNDS, "dark", Bound("a dark picture", ask=floors.ask_blank))
    pairs = draw_pairs(10, 5)
    texts = written(pairs, pairs) | {"gemma3_lora": pairs["findings_en"]}
    texts |= {f"gemma3_lora{AT}dark": "Sorry.", "gemma3_base@zero": "Sorry."}
    marks = scored(pairs, texts)
    order = floors.in_order(marks["model"])
    assert order[:2] == ["gemma3_base@zero", "gemma3_lora"] and order[-1] == "truth"
    assert set(floors.floors_of("gemma3_lora", order)) >= {"shrug", "gemma3_lora@dark"}
    assert "gemma3_lora@dark" not in floors.floors_of("gemma3_base@zero", order)
    assert name_of("gemma3_lora@dark") == "Gemma3 w/LoRA, a dark picture"
    assert name_of("gemma3_base@zero") == "Gemma3 (unfine-tuned), zero-shot"
    assert floors.colour_of("gemma3_lora@dark") == floors.colour_of("gemma3_lora") != "0.5"
    summary, found = summarise_marks(marks, STATS, 0), skills(marks, STATS, 0)
    table = scorecard.lesion_table(summary, found, "lesion_f1").set_index("model")
    assert table.loc["A shrug", "kind"] == table.loc["Gemma3 w/LoRA, a dark picture", "kind"]
    assert table.loc["A shrug", "kind"] == "floor" and table.loc["Truth", "kind"] == "ceiling"
    figures = scorecard.flat_metrics(
        summary, found, pd.DataFrame(columns=scorecard.LOOKS), found[:0]
    )
    assert figures["floor.shrug.overall"] == 0 and figures["gemma3_lora.skill"] == 1
    assert set(measures()) <= {key.rpartition(".")[2] for key in figures}
