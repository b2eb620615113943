import json
import math
import shutil
from operator import itemgetter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cag_utils.paper.claims import compare_claims
from cag_utils.phantom.clinic.findings import write_findings
from cag_utils.profiles import Stats
from cag_utils.scores import scorecard
from cag_utils.scores.rubric import CRITERIA, Criterion, truth_of
from cag_utils.scores.scorecard import against_base, read_sheet, score_generations, summarise_marks
from cag_utils.scores.textmetrics import METRICS
from tests.paper.test_claims import GIVEN
from tests.running import execute

STATS = Stats(n_resamples=200, level=0.95)
MODELS = ["gemma3_base", "gemma3_lora", "paligemma2_lora"]
perfect = itemgetter("findings_en")
TRUTHS = (
    ([{"segment": 11, "percent": 75}], "LCA", "functional"),
    ([{"segment": 2, "percent": 90}], "RCA", "pci"),
    ([], "RCA", "none"),
    ([{"segment": 6, "percent": 100}], "LCA", "cto"),
)


def pairs():
    """Two frames of each of four patients, with the phantom's truth."""
    rows = []
    for i in range(8):
        lesions, side, plan = TRUTHS[i // 2]
        row = {f"findings_{k}": v for k, v in write_findings(lesions, side, plan).items()}
        row |= {"case_id": f"case-{i:04d}", "patient_id": f"pt-{i // 2}", "truth_laterality": side}
        rows.append(row | {"truth_lesions": json.dumps(lesions), "truth_plan": plan})
    return pd.DataFrame(rows)


def generations(table, answers):
    """One row a case and model; `answers` maps a model to a function of the pair's row."""
    rows = [
        (row["case_id"], model, answer(row), "ok")
        for model, answer in answers.items()
        for row in table.to_dict("records")
    ]
    return pd.DataFrame(rows, columns=["case_id", "model", "output", "status"])


NO_LOOKS, NO_SKILL = (pd.DataFrame(columns=c) for c in (scorecard.LOOKS, scorecard.SKILLS))
ON_SHEET = [name for name in CRITERIA if name not in ("missed_error", "invented_error")]


def sorry(row):
    return "Sorry, I can not help with that."


def marks(base=sorry, lora=perfect, language="en", **others):
    answers = {"gemma3_base": base, "gemma3_lora": lora} | others
    return score_generations(generations(pairs(), answers), pairs(), language)


def test_each_generation_is_marked_against_its_own_case():
    scored = marks()
    tuned = scored[scored["model"] == "gemma3_lora"]
    base = scored[scored["model"] == "gemma3_base"]
    assert len(tuned) == len(base) == 8 and set(scored["reader"]) == {"rubric"}
    assert (tuned["overall"] == 10).all() and (tuned[list(CRITERIA)] == 0).all(axis=None)
    assert (base["overall"] == 0).all() and (base[list(CRITERIA)] == 1).all(axis=None)
    assert tuned["patient_id"].tolist() == pairs()["patient_id"].tolist()
    # an empty or refused output is wrong, not left out
    made = generations(pairs(), {"gemma3_lora": perfect})
    made.loc[0, ["output", "status"]] = [float("nan"), "empty"]
    made.loc[1, "status"] = "refusal"  # whatever it goes on to say
    scored = score_generations(made, pairs(), "en")
    assert scored["overall"].tolist() == [0, 0] + [10] * 6
    assert scored["unparseable"].tolist() == [1, 1] + [0] * 6


def test_own_data_without_truth_columns_are_judged_by_their_findings_or_stay_missing():
    table = pairs()
    bare = table.drop(columns=[c for c in table if c.startswith("truth_")])
    made = generations(table, {"gemma3_lora": perfect})
    assert score_generations(made, bare, "en").equals(score_generations(made, table, "en"))
    assert truth_of(bare.iloc[2], "ja") == truth_of(table.iloc[2], "ja")
    in_japanese = itemgetter("findings_ja")
    assert (marks(in_japanese, in_japanese, "ja")["overall"] == 10).all()
    table = bare
    table["findings_en"] = "LCX #11 shows 75% stenosis."  # validated findings without a plan
    made = generations(table, {"gemma3_lora": perfect, "gemma3_base": perfect})
    summary = summarise_marks(score_generations(made, table, "en"), STATS, 0)
    assert math.isnan(summary["treatment_error"][0]) and summary["numbering_error"][0] == 0
    assert scorecard.table4(summary, NO_SKILL, NO_LOOKS)["treatment_error"].isna().all()
    figures = scorecard.flat_metrics(summary, NO_SKILL, NO_LOOKS, pd.DataFrame())
    assert figures["gemma3_lora.treatment_error_rate"] is figures["gemma3_lora.plan_right"] is None
    table["findings_en"] = "PCI is recommended."  # and now without a vessel
    scored = score_generations(made, table, "en")
    summary = summarise_marks(scored, STATS, 0)
    assert math.isnan(summary["segment_accuracy"][0])
    assert scorecard.lesion_table(summary, NO_SKILL, "lesion_f1")["lesion_f1"][0] == "–"
    compared = against_base(scored, STATS, 0)
    known = {"overall", "logical_right", "treatment_right", "plan_right"}
    assert set(compared["measure"]) == known


def test_the_summary_hand_worked_and_table4_in_the_papers_columns_and_order():
    wrong = iter([0, 1] * 4)  # the first frame of each patient is right, the second refused
    scored = marks(lambda row: sorry(row) if next(wrong) else perfect(row))
    row = summarise_marks(scored, STATS, 0).iloc[0]
    assert (row["cases"], row["overall"], row["reader"]) == (8, 5, "rubric")
    assert row["sd"] == pytest.approx(math.sqrt(8 * 25 / 7))
    assert row["missed_error"] == 4 and row["missed_error_rate"] == 0.5
    assert row["unparseable_rate"] == row["side_unnamed_rate"] == row["laterality_accuracy"] == 0.5
    # three of six lesions are named, and nothing else: recall 3 / 6, F1 2 x 3 / (6 + 3)
    assert (row["lesion_recall"], row["lesion_precision"]) == (0.5, 1)
    assert row["lesion_f1"] == pytest.approx(2 / 3) and row["healthy_right"] == 0.5
    # Every patient has one right and one wrong frame: resampling patients changes nothing.
    assert [row[f"segment_accuracy{end}"] for end in scorecard.ENDS] == [0.5, 0.5, 0.5]
    scored = marks(zephyr=sorry)
    summary = summarise_marks(scored[::-1], STATS, 0)
    table = scorecard.table4(summary, NO_SKILL, NO_LOOKS)
    assert list(table.columns[:6]) == ["kind", "model", "reader", "cases", "mean", "sd"]
    assert list(table.columns[6:13]) == list(CRITERIA)
    # A model the study has no name for is kept, under its own.
    assert table["model"].tolist() == ["Gemma3 (unfine-tuned)", "Gemma3 w/LoRA", "zephyr"]
    assert table["laterality_error"].tolist() == [8, 0, 8] and set(table["skill"]) == {"–"}
    lesions = scorecard.lesion_table(summary, NO_SKILL, "lesion_f1")
    assert lesions["lesion_f1"].tolist()[1] == "1.00 (1.00 to 1.00)"


def test_how_often_each_rule_fires():
    lesion = (
        "LAD #11 shows 75% stenosis. No revascularization is needed; continue risk factor control."
    )
    rates = scorecard.rule_rates(marks(lora=lambda row: lesion))["gemma3_lora"]
    fired = {"logical: number of another artery", "logical: plan against grade or plan"}
    fired |= {"logical_error"}
    assert {name for name in rates.index if name.startswith("log") and rates[name]} == fired
    assert rates["laterality_error"] == 0.5 and rates["invented_error"] == 0.75
    assert rates["numbering_error"] == 1 and rates["side_unnamed"] == 0


def test_a_tuned_model_beats_its_base_only_when_the_interval_is_clear_of_zero():
    compared = against_base(marks(), STATS, 0).set_index("measure")
    assert compared.loc["overall", "difference"] == 10 and compared["beats_base"].all()
    assert compared.loc["lesion_f1", "cases"] == 8 and compared.loc["lesion_f1", "difference"] == 1
    assert "lesion_precision" not in compared.index  # the base names nothing: no precision
    assert {f"{name.removesuffix('_error')}_right" for name in CRITERIA} < set(compared.index)
    summary = summarise_marks(marks(), STATS, 0)
    figures = scorecard.flat_metrics(summary, NO_SKILL, NO_LOOKS, compared.reset_index())
    ones = "segment_accuracy laterality_accuracy lesion_f1 grades_near overall_gain_clear".split()
    ones += ["plan_right", "segment_accuracy_gain", "missed_right_gain"]
    wanted = dict.fromkeys(ones, 1) | {"overall_mean": 10, "overall_gain": 10, "n": 8}
    wanted["base"] = "gemma3_base"
    assert {name: figures[f"gemma3_lora.{name}"] for name in wanted} == wanted
    assert figures["gemma3_base.logical_error_rate"] == 1 and figures["gemma3_base.n"] == 8
    # beside a floor that calls all clean: two of eight pictures; a blank lifts the model's own
    none = {"constant": lambda row: f"No significant stenosis in the {row['truth_laterality']}."}
    floored = against_base(marks(**none), STATS, 0).set_index("measure")
    assert compared["floor"].isna().all() and floored.loc["healthy_right", "floor"] == 1
    assert floored.loc["segment_accuracy", ["tuned", "untuned", "floor"]].tolist() == [1, 0, 0.25]
    blind = marks(**none, **{"gemma3_lora@blank": perfect})
    blind = blind[(blind["model"] != "gemma3_lora@blank") | (blind["case_id"] < "case-0002")]
    found = against_base(blind, STATS, 0).set_index("measure").loc["segment_accuracy"]
    assert (found["floor"], found["cases"], found["difference"]) == (1, 8, 1)
    same = against_base(marks(perfect, perfect), STATS, 0)
    assert (same["difference"] == 0).all() and not same["beats_base"].any()
    worse = against_base(marks(perfect, sorry), STATS, 0)
    assert (worse["high"] <= 0).all() and not worse["beats_base"].any() and len(worse) == 14
    # right on two of four patients, and on the others and one case more
    half = lambda row: perfect(row) if row["case_id"] < "case-0004" else sorry(row)  # noqa: E731
    rest = lambda row: sorry(row) if row["case_id"] < "case-0003" else perfect(row)  # noqa: E731
    compared = against_base(marks(half, rest), STATS, 0)
    compared = compared.set_index("measure").loc[["overall", "segment_accuracy", "missed_right"]]
    assert (compared["difference"] > 0).all() and (compared["low"] < 0).all()
    assert not compared["beats_base"].any()


def test_which_base_a_tuned_model_is_compared_with():
    swapped, own, other = "conceptclip_gemma3_lora", "conceptclip_gemma3_base", "gemma3_base"
    scored = marks(**dict.fromkeys((swapped, own, "paligemma2_lora"), perfect))

    def based(*models):
        found = against_base(scored[scored["model"].isin(models)], STATS, 0)
        return dict(zip(found["model"], found["base"], strict=True))

    assert based("paligemma2_lora", other) == {}  # no base of its own
    assert based(swapped, other) == {swapped: other}
    assert based(swapped, other, own) == {swapped: own}


def test_the_base_is_asked_as_it_does_best_on_validation_cases():
    zero = "gemma3_base@zero"
    tried = marks(sorry, perfect, **{zero: lambda row: "LCX #11 shows 75% stenosis."})
    tried = tried[tried["model"] != "gemma3_lora"]
    chosen = scorecard.choose_bases(tried, STATS, 0).set_index("model")
    assert chosen["chosen"].to_dict() == {"gemma3_base": False, zero: True}
    assert (chosen["base"] == "gemma3_base").all() and chosen.loc["gemma3_base", "overall"] == 0
    same = scorecard.choose_bases(marks(sorry, perfect, **{zero: sorry}), STATS, 0)
    assert same.loc[same["chosen"], "model"].tolist() == ["gemma3_base", "gemma3_lora"]  # equals
    scored = marks(sorry, perfect, **{zero: perfect})
    for best, base in (([], "gemma3_base"), (["gemma3_base"], "gemma3_base"), ([zero], zero)):
        found = against_base(scored, STATS, 0, best).set_index("measure").loc["overall"]
        assert (found["base"], found["difference"]) == (base, 0 if base == zero else 10)


def fill(sheet, reader="r1", overall=5.0):
    return sheet.assign(reader=reader, overall=overall, **dict.fromkeys(ON_SHEET, 0))


def test_a_readers_sheet_replaces_the_rubric_but_not_the_matches():
    scored = marks()
    blank = scored[["case_id", "model"]]
    both = pd.concat([fill(blank, "r1", 6.0), fill(blank, "r2", 8.0)])
    read = scorecard.score_by_sheet(both, scored)
    assert list(read.columns) == list(scored.columns) and set(read["reader"]) == {"r1", "r2"}
    assert (read.loc[read["model"] == "gemma3_base", "missed_error"] == 1).all()  # the rubric's own
    summary = summarise_marks(read, STATS, 0).set_index(["model", "reader"])
    base = summary.loc["gemma3_base"]
    assert base["overall"].to_dict() == {"r1": 6, "r2": 8, "mean": 7}
    assert set(base["cases"]) == {8} and set(base["missed_error"]) == {8}  # not 16 of 8 cases
    assert base["logical_error"].to_dict() == {"r1": 0, "r2": 0, "mean": 0}
    ticked = pd.concat([fill(blank), fill(blank, "r2").assign(logical_error=1)])
    ticked = summarise_marks(scorecard.score_by_sheet(ticked, scored), STATS, 0)
    assert ticked["logical_error"].tolist() == [0, 8, 4] * 2  # readers, and their mean of 8 cases
    figures = scorecard.flat_metrics(ticked, NO_SKILL, NO_LOOKS, pd.DataFrame())
    assert figures["gemma3_lora.logical_error_rate"] == 0.5
    assert summary["segment_accuracy"].tolist() == [0] * 3 + [1] * 3
    # Two readers of one text are one case, not two.
    cases = against_base(read, STATS, 0).set_index("measure")["cases"]
    assert cases["overall"] == 8 and cases["segment_accuracy"] == 8
    foreign = fill(blank).replace({"case_id": {"case-0003": "case-0999"}})
    with pytest.raises(ValueError, match="2 texts that 05 did not generate.*'case-0999'"):
        scorecard.score_by_sheet(foreign, scored)


def test_the_rubric_against_each_reader_and_most_of_them_hand_worked():
    texts = pd.DataFrame({"case_id": list("0011"), "model": list("ABAB"), "patient_id": "p"})
    flags = dict.fromkeys(ON_SHEET, 0.0)
    marked = lambda who, x, side: texts.assign(  # noqa: E731
        reader=who, overall=x, **flags | {"laterality_error": side}
    )
    sheet = [marked("r1", [2, 4, 6, 8], [0, 1, 0, 1]), marked("r2", [4, 6, 8, 10], [0, 1, 1, 1])]
    rubric = marked("rubric", [2, 4, 6, 8], [0, 1, 1, 1])
    compare = scorecard.rubric_against_readers
    found = compare(pd.concat(sheet), rubric, STATS, 0).set_index(["reader", "measure"])
    assert found.loc[("r1", "overall"), ["value", "marked", "by_rubric"]].tolist() == [1, 5, 5]
    # seen 3/4; by chance .5 x .25 + .5 x .75 = .5: kappa .5
    assert found.loc[("r1", "laterality_error"), "value"] == pytest.approx(0.5)
    assert found.loc[("r2", "laterality_error"), "value"] == 1
    # half of them is not most: the third tick is r2's alone
    pooled = found.loc[(scorecard.MEAN, "laterality_error")]
    assert pooled["value"] == pytest.approx(0.5) and pooled["marked"] == 0.5
    assert found.loc[(scorecard.MEAN, "overall"), "marked"] == 6
    alone = compare(sheet[0], rubric, STATS, 0)
    assert set(alone["reader"]) == {"r1"} and compare(sheet[0][:0], rubric, STATS, 0).empty


def test_an_error_criterion_is_added_by_one_row(monkeypatch, tmp_path):
    """A made-up one, through the calls of notebooks 07 and 08."""
    made = {"gemma3_lora": lambda row: "LCX #11 shows 75% stenosis. Measure FFR."}
    plain = marks(made["gemma3_lora"])
    row = Criterion("verbosity", 5, lambda output, truth: len(output.stenoses) > 0)
    monkeypatch.setitem(CRITERIA, "verbosity_error", row)
    scored = marks(lora=made["gemma3_lora"])
    right = scored[scored["case_id"] == "case-0000"].set_index("model")
    assert right["overall"].to_dict() == {"gemma3_lora": 6.67, "gemma3_base": 0}  # 10 of 15 points
    assert plain["overall"][0] == 10 and "verbosity_error" not in plain
    assert right["verbosity_error"].to_dict() == {"gemma3_lora": 1, "gemma3_base": 1}
    summary = summarise_marks(scored, STATS, 0)
    shown = scorecard.table4(summary, NO_SKILL, NO_LOOKS)
    assert shown["verbosity_error"].tolist() == [8, 8]
    compared = against_base(scored, STATS, 0)
    figures = scorecard.flat_metrics(summary, NO_SKILL, NO_LOOKS, compared)
    assert figures["gemma3_lora.verbosity_error_rate"] == 1
    assert "gemma3_lora.verbosity_right_gain" in figures
    claims = compare_claims(**GIVEN | {"marks": {"ja": scored}}).set_index("claim")["here"]
    [vessels] = claims[claims.index.str.startswith("Vessel")]
    assert "verbosity 1.00" in vessels
    assert scorecard.rule_rates(scored).loc["verbosity_error", "gemma3_lora"] == 1
    blank, key = scorecard.blank_sheet(generations(pairs(), made), 0)
    assert "verbosity_error" in blank
    path = tmp_path / "scores.csv"
    fill(blank).assign(verbosity_error=1).to_csv(path, index=False)
    read = scorecard.score_by_sheet(read_sheet(path, key), scored)
    assert (read["verbosity_error"] == 1).all() and (read["numbering_error"] == 0).all()
    fill(blank).drop(columns="verbosity_error").to_csv(path, index=False)
    with pytest.raises(ValueError, match="no column .*verbosity_error"):
        read_sheet(path, key)


@pytest.mark.notebook
def test_the_notebook_with_a_readers_sheet_in_the_rubrics_place(study, tmp_path):
    shutil.copytree(study / "smoke", tmp_path / "smoke")
    rubrics = tmp_path / "smoke" / "07_physician_scores" / "en"
    text = (rubrics / "table4_scores.md").read_text(encoding="utf-8")
    assert "rubric (a program, no physician)" in text and "cardiologist" not in text
    columns = ["case_id", "model", "reader", "overall", *CRITERIA, "segment_match"]
    assert list(pd.read_csv(rubrics / "scores.csv").columns)[: len(columns)] == columns
    assert all((rubrics / f"figure6_overall_scores{s}").exists() for s in (".png", ".svg", ".csv"))
    sheet = pd.read_csv(rubrics / "blank_sheet.csv")
    assert sheet["reader"].isna().all() and not sheet["model"].str.contains("gemma").any()
    rng = np.random.default_rng(0)  # marks made up, to see that every table takes them
    each = [fill(sheet, f"reader {i}", rng.integers(0, 11, len(sheet))) for i in (1, 2)]
    both = pd.concat([part.assign(logical_error=rng.integers(0, 2, len(sheet))) for part in each])
    both.to_csv(tmp_path / "filled.csv", index=False)
    metrics = execute(
        "07_physician_scores", tmp_path, language="en", scores=str(tmp_path / "filled.csv")
    )
    assert metrics["reader"] == "reader 1, reader 2" and "rho.mean.rouge_l" in metrics
    [own] = set(rubrics.parent.glob("en_*filled_csv*"))  # the study's own run is left alone
    text = (own / "table4_scores.md").read_text(encoding="utf-8")
    assert "scored by reader 1, reader 2" in text and "rubric" not in text
    names = ("agreement", "rubric_against_readers", "metrics_against_readers")
    assert all(pd.read_csv(rubrics / f"{name}.csv").empty for name in names)
    agreed, trust, ranks = (pd.read_csv(own / f"{name}.csv") for name in names)
    assert set(trust["reader"]) == set(ranks["scorer"]) == {"reader 1", "reader 2", "mean"}
    assert set(ranks["metric"]) == {"rubric", "siglip2", "medclip", "conceptclip", *METRICS}
    found = agreed[agreed["measure"] == "logical_error"]["value"]
    assert len(found) == 3 and found.abs().max() < 0.5  # who ticks by chance does not agree
    figure = pd.read_csv(own / "figure6_overall_scores.csv").groupby(["model", "reader"])["share"]
    assert figure.sum().to_numpy() == pytest.approx(1) and figure.ngroups % 3 == 0


def texts(n_cases):
    rows = [(f"case-{i:04d}", m) for i in range(1, n_cases + 1) for m in MODELS]
    table = pd.DataFrame(rows, columns=["case_id", "model"])
    # The text tells no model's name, and the seconds would give the model away.
    return table.assign(output=[f"text {i}" for i in range(len(rows))], seconds=1.0, prompt="shots")


def filled(tmp_path, **changes):
    """Write a filled sheet of two rows; `changes` maps a column to its two cells."""
    row = {"case_id": ["case-0001", "case-0002"], "model": "A", "reader": "r1", "overall": "7.5"}
    path = tmp_path / "scores.csv"
    pd.DataFrame(row | dict.fromkeys(ON_SHEET, "0") | changes).to_csv(path, index=False)
    return path


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_every_text_is_on_the_sheet_once_and_the_key_finds_its_model(n_cases, seed):
    table = texts(n_cases)
    sheet, key = scorecard.blank_sheet(table, seed)
    joined = sheet.rename(columns={"model": "code"}).merge(key, on=["case_id", "code"])
    rows, wanted = (t[["case_id", "model", "output"]].to_numpy().tolist() for t in (joined, table))
    assert sorted(rows) == sorted(wanted)
    assert (sheet[["reader", "overall", *ON_SHEET]] == "").all(axis=None)


def test_the_sheet_is_blind_shuffled_and_repeatable():
    table = texts(40)
    sheet, key = scorecard.blank_sheet(table, 3)
    text = sheet.to_csv()
    assert not any(model in text for model in MODELS) and "seconds" not in sheet
    assert "shots" not in text  # a few-shot prompt would tell the untuned models
    assert set(sheet["model"].str[:2]) == {"A-", "B-", "C-"} and sheet["model"].nunique() == 3
    # One letter stands for every model somewhere: a reader cannot learn who A is.
    assert key.groupby("code")["model"].nunique().tolist() == [3, 3, 3]
    assert sheet["case_id"].drop_duplicates().tolist() != sorted(set(table["case_id"]))
    assert not sheet.equals(scorecard.blank_sheet(table, 4)[0])
    for same in (table, table.sample(frac=1, random_state=1)):
        pd.testing.assert_frame_equal(sheet, scorecard.blank_sheet(same, 3)[0])
    with pytest.raises(ValueError, match="gemma3_base has two texts for case-0001"):
        scorecard.blank_sheet(pd.concat([table, table[:1]]), 0)


@pytest.mark.parametrize("column, cells, match", [
    ("overall", ["7", "11"], r"scores\.csv: row 3: overall must be a number from 0 to 10"),
    ("overall", ["", ""], r"row 2: overall must be a number .*\(2 rows in all\)"),
    ("overall", ["7,5", "3"], r"row 2: overall must be"),
    ("overall", ["7", "nan"], r"row 3: overall must be"),
    ("numbering_error", ["0", "2"], r"row 3: numbering_error must be 0 \(no error\) or 1"),
    ("logical_error", ["yes", "0"], r"row 2: logical_error must be 0"),
    ("stenosis_error", ["0", "0.5"], r"row 3: stenosis_error must be 0"),
    ("case_id", ["", "case-0002"], r"row 2: case_id must name a case"),
    ("model", ["A", ""], r"row 3: model must be a model"),
    ("case_id", ["case-0001"] * 2, r"row 3: this reader scored this text twice"),
])  # fmt: skip
def test_names_file_row_and_rule(column, cells, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        read_sheet(filled(tmp_path, **{column: cells}))


def test_the_key_of_another_run_is_refused_and_many_keys_can_be_offered(tmp_path):
    a, b = "A-00ff00", "B-00ff00"
    key = pd.DataFrame({"case_id": ["case-0001"], "code": [a], "model": ["gemma3_lora"]})
    with pytest.raises(ValueError, match=f"row 3: model '{a}' of case-0002: the key has no such"):
        read_sheet(filled(tmp_path, model=[a, a]), key)
    path = filled(tmp_path, case_id=["case-0001"] * 2, model=[a, b])
    with pytest.raises(ValueError, match=rf"row 3: model '{b}' of case-0001: .* knows \['{a}'\]"):
        read_sheet(path, key)
    sheet, key = scorecard.blank_sheet(texts(2), 1)
    _, other = scorecard.blank_sheet(texts(2).assign(output="another text"), 1)
    fill(sheet, "r", range(6)).to_csv(path, index=False, encoding="utf-8-sig")  # as Excel does
    for wrong in (other, None):
        with pytest.raises(ValueError, match="use the key of this sheet"):
            read_sheet(path, wrong)
    read = read_sheet(path, pd.concat([other, key]))
    assert read["model"].tolist() == key["model"].tolist()
    assert read["overall"].tolist() == [0, 1, 2, 3, 4, 5]
    assert list(read.columns) == ["case_id", "model", "reader", "overall", *ON_SHEET]


def test_without_a_key_models_go_by_name_and_a_spreadsheets_decimals_are_marks(tmp_path):
    path = filled(tmp_path, numbering_error=["1.0", "0.0"])
    read = read_sheet(path)
    assert read["numbering_error"].equals(pd.Series([1, 0]))
    assert read["model"].tolist() == ["A", "A"]
    read.drop(columns="reader").to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"scores\.csv: row 1: no column \['reader'\]"):
        read_sheet(path)
    with pytest.raises(FileNotFoundError, match="none.csv is missing"):
        read_sheet(tmp_path / "none.csv")
