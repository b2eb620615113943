import pytest

from cag_utils.claims import FAILS, HOLDS, UNCLEAR, compare_claims

BACKBONES = ["paligemma2", "gemma3"]
CNN = {"laterality_f1": 0.97, "laterality_f1_low": 0.95, "laterality_f1_high": 0.98}
CNN |= {"six_class_f1": 0.7, "six_class_f1_low": 0.6, "six_class_f1_high": 0.8}


def vlscores(paligemma2, gemma3):
    figures = {"embedder.medclip": "MedCLIP", "embedder.conceptclip": "ConceptCLIP"}
    for name, mean in (("paligemma2", paligemma2), ("gemma3", gemma3)):
        for embedder in ("medclip", "conceptclip"):
            head = f"{name}_lora.{embedder}"
            figures |= {
                f"{head}.mean": mean,
                f"{head}.low": mean - 0.05,
                f"{head}.high": mean + 0.05,
            }
    return figures


def marks(gain, vessel=0.7):
    figures = {}
    for name in BACKBONES:
        head = f"{name}_lora"
        figures |= {
            f"{head}.overall_mean{e}": 6 + x for e, x in (("", 0), ("_low", -1), ("_high", 1))
        }
        figures |= {f"{head}.overall_gain": gain}
        figures |= {f"{head}.overall_gain_low": gain - 1, f"{head}.overall_gain_high": gain + 1}
        errors = {"laterality": 0.0, "vessel": vessel, "treatment": 0.2, "logical": 0.1}
        figures |= {f"{head}.{e}_error_rate": r for e, r in (errors | {"stenosis": 0.3}).items()}
    return figures


def verdicts(**change):
    given = {"cnn": CNN, "vlscores": vlscores(0.6, 0.4), "marks": {"ja": marks(2.0)}} | change
    return compare_claims(**given, backbones=BACKBONES).set_index("claim")["verdict"]


def test_what_the_paper_saw_is_recognised():
    got = verdicts()
    assert got["The CNN tells the side far better than all six classes"] == HOLDS
    assert got["PaliGemma2 w/LoRA has the highest VLScore by medclip"] == HOLDS
    assert got["Gemma3 w/LoRA (ja) scores higher than its untuned base"] == HOLDS
    assert got["Vessel numbering is the commonest error of tuned models (ja)"] == HOLDS
    assert got["Gemma3 w/LoRA (ja) has the highest overall score"] == UNCLEAR  # equal means


@pytest.mark.parametrize(
    "change, claim, want",
    [
        ({"marks": {"ja": marks(0.5)}}, "Gemma3 w/LoRA (ja) scores higher", UNCLEAR),
        ({"marks": {"ja": marks(-3.0)}}, "Gemma3 w/LoRA (ja) scores higher", FAILS),
        ({"marks": {"ja": marks(2.0, vessel=0.25)}}, "Vessel numbering", FAILS),
        ({"vlscores": vlscores(0.4, 0.6)}, "PaliGemma2 w/LoRA has the highest", FAILS),
        ({"vlscores": vlscores(0.5, 0.52)}, "PaliGemma2 w/LoRA has the highest", UNCLEAR),
        ({"vlscores": {}}, "PaliGemma2 w/LoRA has the highest", UNCLEAR),
        ({"marks": {"ja": {}}}, "Gemma3 w/LoRA (ja) has the highest", UNCLEAR),
        ({"cnn": CNN | {"laterality_f1_low": 0.7}}, "The CNN tells", UNCLEAR),
    ],
)
def test_what_it_did_not_see_or_cannot_tell_is_said(change, claim, want):
    got = verdicts(**change)
    assert set(got[got.index.str.startswith(claim)]) == {want}
