import numpy as np
import pandas as pd
import pytest

from cag_utils.paper.claims import FAILS, HOLDS, NUMBERING, UNCLEAR, compare_claims, headline_table
from cag_utils.profiles import Stats
from cag_utils.scores.rubric import CRITERIA
from cag_utils.study import read_json, under_root

BACKBONES = ["paligemma2", "gemma3"]
CNN = {"laterality_f1": 0.97, "six_class_f1": 0.7}


def gap(low, high):
    ends = {"": (low + high) / 2, "_low": low, "_high": high}
    return CNN | {f"laterality_minus_six_class_f1{end}": x for end, x in ends.items()}


def by_case(column, paligemma2, gemma3, noise=0.0):
    """Twenty exams of two cases; `noise` moves the second model's case by case, none on average."""
    rows = []
    for case in range(40):
        shift = noise * (-1) ** (case // 2)  # both cases of an exam move together
        for model, mean in (("paligemma2_lora", paligemma2), ("gemma3_lora", gemma3 + shift)):
            who = {"patient_id": f"p{case // 2}", "case_id": f"c{case}", "model": model}
            # easy and hard cases: the two models' own intervals overlap, their difference's do not
            rows.append(who | {column: mean + case % 5})
    return pd.DataFrame(rows)


def vlscores(paligemma2, gemma3, noise=0.0):
    table = by_case("vlscore", paligemma2, gemma3, noise)
    return pd.concat([table.assign(embedder=title) for title in ("MedCLIP", "ConceptCLIP")])


def marks(gemma3=6.0, numbering=1.0, other=0.0, noise=0.0):
    """Errors: `numbering` in each case, every `other` in that share of the exams."""
    table = by_case("overall", 6.0, gemma3, noise)
    wrong = (np.arange(len(table)) // 4 % 10) < 10 * other
    return table.assign(**dict.fromkeys(CRITERIA, wrong.astype(float)) | {NUMBERING: numbering})


def figures(key, low, high):
    ends = {"": (low + high) / 2, "_low": low, "_high": high}
    return {"ja": {f"{b}_lora.{key}{end}": x for b in BACKBONES for end, x in ends.items()}}


GIVEN = {"cnn": gap(0.2, 0.3), "vlscores": vlscores(0.6, 0.4), "marks": {"ja": marks()}}
GIVEN |= {"figures": figures("overall_gain", 1, 3)}
GIVEN |= {"backbones": BACKBONES, "stats": Stats(n_resamples=200, level=0.95), "seed": 0}


@pytest.mark.parametrize("change, claim, want", [
    ({}, "The CNN tells the side far better than all six classes", HOLDS),
    ({"cnn": gap(-0.1, 0.3)}, "The CNN tells", UNCLEAR),
    ({}, "PaliGemma2 w/LoRA has the highest VLScore by MedCLIP", HOLDS),
    ({"vlscores": vlscores(0.4, 0.6)}, "PaliGemma2 w/LoRA has the highest", FAILS),
    ({"vlscores": vlscores(0.5, 0.5)}, "PaliGemma2 w/LoRA has the highest", UNCLEAR),  # a tie
    ({"vlscores": vlscores(0.6, 0.5, 1)}, "PaliGemma2 w/LoRA has the highest", UNCLEAR),
    ({"vlscores": vlscores(0.6, 0.4)[:0]}, "PaliGemma2 w/LoRA has the highest", UNCLEAR),
    ({}, "Gemma3 w/LoRA (ja) scores higher than its untuned base", HOLDS),
    ({"figures": figures("overall_gain", -1, 2)}, "Gemma3 w/LoRA (ja) scores higher", UNCLEAR),
    ({"figures": figures("overall_gain", -3, -1)}, "Gemma3 w/LoRA (ja) scores higher", FAILS),
    ({}, "Gemma3 w/LoRA (ja) is above every floor", UNCLEAR),  # no floor was run
    ({"figures": figures("skill", 0.1, 0.3)}, "Gemma3 w/LoRA (ja) is above every floor", HOLDS),
    ({"figures": figures("skill", -0.1, 0.3)}, "Gemma3 w/LoRA (ja) is above", UNCLEAR),
    ({"figures": figures("lesion_f1_gain", 0.1, 0.3)}, "Gemma3 w/LoRA (ja) finds lesions", HOLDS),
    ({}, "Gemma3 w/LoRA has the highest overall score (ja)", UNCLEAR),  # a tie
    ({"marks": {"ja": marks(6.5)}}, "Gemma3 w/LoRA has the highest overall score (ja)", HOLDS),
    ({"marks": {"ja": marks(6.5, noise=2)}}, "Gemma3 w/LoRA has the highest overall", UNCLEAR),
    ({}, "Vessel numbering is the commonest error of tuned models (ja)", HOLDS),
    ({"marks": {"ja": marks(other=1)}}, "Vessel numbering", UNCLEAR),  # all errors always
    ({"marks": {"ja": marks(numbering=0, other=0.5)}}, "Vessel numbering", FAILS),
    ({"marks": {"ja": marks(numbering=np.nan)}}, "Vessel numbering", UNCLEAR),
])  # fmt: skip
def test_a_verdict_is_that_of_the_paired_interval(change, claim, want):
    got = compare_claims(**GIVEN | change).set_index("claim")["verdict"]
    assert set(got[got.index.str.startswith(claim)]) == {want}


def test_several_readers_are_averaged_and_japanese_figures_stay_in_japanese_rows():
    both = pd.concat([marks(7.0).assign(reader="a"), marks(5.0).assign(reader="b")])
    table = compare_claims(**GIVEN | {"marks": {"ja": both, "en": both}}).set_index("claim")
    row = table.loc["Gemma3 w/LoRA has the highest overall score (ja)"]
    assert row["paper"] == "7.20 against 6.58" and "Gemma3 w/LoRA 8.00" in row["here"]
    assert row["verdict"] == UNCLEAR  # + 1 and - 1
    english = table[table.index.str.endswith("(en)")]
    assert set(english["paper"]) == {"Japanese only"} and len(english) == 2


FIGURES = {f"cnn.{name}": 0.9 for name in ("laterality_f1", "three_class_f1", "six_class_f1")}
FIGURES |= {"cnn.laterality_f1_low": 0.85, "cnn.laterality_f1_high": 0.95}
FIGURES |= {f"scores.gemma3_lora.{la}.skill": 0.125 for la in ("en", "ja")}
FIGURES |= {"scores.gemma3_lora.en.skill_low": -0.1, "scores.gemma3_lora.en.skill_high": 0.25}
FIGURES |= {"scores.gemma3_lora.ja.lesion_f1": 0.5, "scores.gemma3_base.ja.skill": -0.5}
FIGURES |= {"floor.constant.en.lesion_f1": 0.2, "floor.truth.en.lesion_f1": 1.0}
FIGURES |= {"floor.gemma3_lora@blank.en.lesion_f1": 0.1, "floor.constant.en.overall": 6.4}
FIGURES |= {"parser.gold.ja.precision": 0.98, "parser.gold.ja.n": 210, "study.minutes": 11.25}
FIGURES |= {"study.peak_gb": 2.5}


def test_the_readmes_results_stand_beside_their_floors_and_what_is_missing_is_said():
    rows = headline_table(FIGURES).splitlines()
    assert rows[2:] == [
        "| CNN, F1: side, three classes, six classes | 0.900 (0.850 to 0.950); 0.900; 0.900 "
        "| 0.959; 0.925; 0.766 |",
        "| Gemma3 w/LoRA, en | skill 0.12 (-0.10 to 0.25), lesion F1 –, healthy right – | – |",
        "| Gemma3 w/LoRA, ja | skill 0.12, lesion F1 0.50, healthy right – "
        "| 7.20 of 10, one cardiologist |",
        "| lesion F1 of floors and ceilings | en constant 0.20, truth 1.00 | – |",
        "| parser, on the sentences it was mended with | ja precision 0.98 | – |",
        "| whole study, two cores | 11.2 min, 2.5 GB | – |",
    ]
    more = {"n_stills": 30.0, "laterality_macro_f1": 0.8, "n_right": 24}
    more |= {"accuracy_low": 0.614, "accuracy_high": 0.923}
    table = headline_table(FIGURES | {f"transfer.{k}": v for k, v in more.items()})
    assert "30 real stills | 24 right, exact interval of the share 0.61 to 0.92 | – |" in table
    # the reference run's results are twelve rows at most, and the README's
    table = headline_table(read_json(under_root("outputs/reference/metrics.json")))
    assert len(table.splitlines()) <= 2 + 12
    assert table in under_root("README.md").read_text(encoding="utf-8")
