import pytest

from cag_utils.paper.claims import FAILS, HOLDS, UNCLEAR, compare_claims, headline_table
from cag_utils.study import read_json, under_root

BACKBONES = ["paligemma2", "gemma3"]
CNN = {"laterality_f1": 0.97, "laterality_f1_low": 0.95, "laterality_f1_high": 0.98}
CNN |= {"six_class_f1": 0.7, "six_class_f1_low": 0.6, "six_class_f1_high": 0.8}


def vlscores(paligemma2, gemma3):
    figures = {"embedder.medclip": "MedCLIP", "embedder.conceptclip": "ConceptCLIP"}
    for name, mean in (("paligemma2", paligemma2), ("gemma3", gemma3)):
        for embedder in ("medclip", "conceptclip"):
            for end, x in (("mean", mean), ("low", mean - 0.05), ("high", mean + 0.05)):
                figures[f"{name}_lora.{embedder}.{end}"] = x
    return figures


def marks(gain, vessel=0.7):
    figures = {}
    for head in (f"{name}_lora" for name in BACKBONES):
        for end, x in (("", 0), ("_low", -1), ("_high", 1)):
            figures |= {f"{head}.overall_mean{end}": 6 + x, f"{head}.overall_gain{end}": gain + x}
        errors = {"laterality": 0.0, "vessel": vessel, "treatment": 0.2, "logical": 0.1}
        figures |= {f"{head}.{e}_error_rate": r for e, r in (errors | {"stenosis": 0.3}).items()}
    return figures


def verdicts(**change):
    given = {"cnn": CNN, "vlscores": vlscores(0.6, 0.4), "marks": {"ja": marks(2.0)}} | change
    return compare_claims(**given, backbones=BACKBONES).set_index("claim")["verdict"]


@pytest.mark.parametrize("change, claim, want", [
    ({}, "The CNN tells the side far better than all six classes", HOLDS),
    ({}, "PaliGemma2 w/LoRA has the highest VLScore by medclip", HOLDS),
    ({}, "Gemma3 w/LoRA (ja) scores higher than its untuned base", HOLDS),
    ({}, "Vessel numbering is the commonest error of tuned models (ja)", HOLDS),
    ({}, "Gemma3 w/LoRA (ja) has the highest overall score", UNCLEAR),  # equal means
    ({"marks": {"ja": marks(0.5)}}, "Gemma3 w/LoRA (ja) scores higher", UNCLEAR),
    ({"marks": {"ja": marks(-3.0)}}, "Gemma3 w/LoRA (ja) scores higher", FAILS),
    ({"marks": {"ja": marks(2.0, vessel=0.25)}}, "Vessel numbering", FAILS),
    ({"vlscores": vlscores(0.4, 0.6)}, "PaliGemma2 w/LoRA has the highest", FAILS),
    ({"vlscores": vlscores(0.5, 0.52)}, "PaliGemma2 w/LoRA has the highest", UNCLEAR),
    ({"vlscores": {}}, "PaliGemma2 w/LoRA has the highest", UNCLEAR),
    ({"marks": {"ja": {}}}, "Gemma3 w/LoRA (ja) has the highest", UNCLEAR),
    ({"cnn": CNN | {"laterality_f1_low": 0.7}}, "The CNN tells", UNCLEAR),
])  # fmt: skip
def test_what_the_paper_saw_is_recognised_and_what_it_did_not_see_said(change, claim, want):
    got = verdicts(**change)
    assert set(got[got.index.str.startswith(claim)]) == {want}


FIGURES = {f"cnn.{name}": 0.9 for name in ("laterality_f1", "three_class_f1", "six_class_f1")}
FIGURES |= {"cnn.laterality_f1_low": 0.85, "cnn.laterality_f1_high": 0.95}
FIGURES |= {f"finetune.gemma3.{la}.overall_mean": mean for la, mean in (("en", 6.5), ("ja", 7))}
FIGURES |= {f"finetune.gemma3.{la}.lesions_named": 0.5 for la in ("en", "ja")}
FIGURES |= {"finetune.gemma3.en.base_overall_mean": 2.25, "study.minutes": 11.25}
FIGURES |= {"vlscore.gemma3.medclip.mean": 0.5, "vlscore.gemma3.siglip2.mean": 0.75}
FIGURES |= {"vlscore.gemma3.siglip2.sd": 0.01, "vlscore.gemma3_base.siglip2.mean": 0.1}
FIGURES |= {"study.peak_gb": 2.5}


def test_the_readmes_results_stand_beside_the_papers_and_what_is_missing_is_said():
    rows = headline_table(FIGURES).splitlines()
    assert rows[2:] == [
        "| CNN: side, F1 | 0.900 (0.850 to 0.950) | 0.959 |",
        "| CNN: three classes, weighted F1 | 0.900 | 0.925 |",
        "| CNN: six classes, weighted F1 | 0.900 | 0.766 |",
        "| Gemma3 w/LoRA: rubric, 0 to 10 | en 6.50, untuned 2.25; ja 7.00, untuned not run "
        "| 7.20 (ja, one cardiologist) |",
        "| Gemma3 w/LoRA: lesions whose segment is named | en 0.50, untuned not run; "
        "ja 0.50, untuned not run | – |",
        "| VLScore, tuned, en, three embedders | 0.50 to 0.75 | 0.28 to 0.52 (an unknown C) |",
        "| whole study, two cores | 11.2 min, 2.5 GB | – |",
    ]
    more = {"n_stills": 30.0, "laterality_macro_f1": 0.8, "n_right": 24}
    more |= {"accuracy_low": 0.614, "accuracy_high": 0.923}
    table = headline_table(FIGURES | {f"transfer.{k}": v for k, v in more.items()})
    assert "30 real stills | 24 right, exact interval of the share 0.61 to 0.92 | – |" in table
    # the reference run's results are twelve rows, and the README's
    table = headline_table(read_json(under_root("outputs/reference/metrics.json")))
    assert len(table.splitlines()) == 2 + 12
    assert table in under_root("README.md").read_text(encoding="utf-8")
