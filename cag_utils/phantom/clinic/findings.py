"""What is found in the picture, and what is advised after it: the phantom's decision table.

A simplified teaching rule and a deterministic label for a study of language models: never guidance
for a patient. It sees one side of one patient; which lesion is the culprit, SYNTAX score, bleeding
risk and the patient's wish are out of its sight.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import pandas as pd

from cag_utils.phantom.clinic.patients import Record
from cag_utils.segments import LATERALITIES, check_lesion, laterality_of

# Stands wherever the table is printed.
TEACHING_NOTE = (
    "Teaching rule of the phantom: guideline statements as commonly summarised, "
    "not a treatment recommendation."
)
# plan key -> (English, Japanese). `context` is the paper's own sentence (Figure 3).
PLANS: dict[str, tuple[str, str]] = {
    "none": ("No revascularization is needed; continue risk factor control.",
             "血行再建は不要です。危険因子の管理を継続してください。"),
    "medical": ("Optimal medical therapy and follow-up are recommended.",
                "至適薬物療法と経過観察を推奨します。"),
    "functional": ("Measure FFR or iFR and consider PCI if ischemia is proven.",
                   "FFRまたはiFRを測定し、虚血が証明されればPCIを検討してください。"),
    "pci": ("PCI with a drug-eluting stent is recommended.",
            "薬剤溶出性ステントによるPCIを推奨します。"),
    "heart_team": ("Discuss CABG or PCI in the heart team.",
                   "ハートチームでCABGまたはPCIを検討してください。"),
    "cto": ("Evaluate ischemia and viability before CTO-PCI.",
            "CTOに対するPCIの前に、虚血と心筋バイアビリティを評価してください。"),
    "emergency_pci": ("Emergency PCI is recommended.", "緊急PCIを推奨します。"),
    "context": (
        "Consider treatment plan in context of other angiographic findings and comorbidities.",
        "他のアンギオ画像や、合併症を考慮して、治療方針を検討してください。"),
}  # fmt: skip


class Decision(NamedTuple):
    """One row of the table."""

    plan: str  # key of PLANS
    condition: str  # the condition in words
    guideline: str  # guideline, year and class of recommendation, as commonly summarised
    # the condition as code: the record, and the checked lesions of one side
    fits: Callable[[Record, list[dict]], bool]


# Tried from the top. The grades are the phantom's seven steps: 75 stands for 51 to 75 %, 90 for 76
# to 90 %, so "intermediate" is 75 here and 90 counts as tight.
DECISIONS: tuple[Decision, ...] = (
    Decision("none", "no lesion on this side",
        "ESC 2021 cardiovascular prevention: treat risk factors (class I)",
        lambda record, lesions: not lesions),
    Decision("medical", "every lesion <= 50 %, and the left main < 50 %",
        "ACC/AHA/SCAI 2021 revascularization: no revascularization to improve survival below 70 % "
        "outside the left main or with FFR > 0.80 (class 3: harm)",
        lambda record, lesions: _worst(lesions) <= 50 and not _left_main(lesions)),
    Decision("emergency_pci", "acute infarction (STEMI or NSTEMI) and a lesion >= 90 %",
        "ESC 2023 acute coronary syndromes: primary PCI for STEMI within 12 h (class I); immediate "
        "invasive strategy for NSTEMI at very high risk (class I)",
        lambda record, lesions: record.acute and _worst(lesions) >= 90),
    Decision("context", "bypass grafts or hemodialysis",
        "ACC/AHA/SCAI 2021 revascularization: heart team where the best strategy is unclear "
        "(class 1)",
        lambda record, lesions: record.complex_host),
    Decision("heart_team", "left main >= 50 %, or #6 >= 75 % together with the circumflex >= 75 %",
        "ESC/EACTS 2018 myocardial revascularization: CABG for the left main and for two vessels "
        "with the proximal LAD (class I); PCI by SYNTAX score (class I to III)",
        lambda record, lesions: _left_main(lesions) or _proximal_lad_and_circumflex(lesions)),
    Decision("cto", "a total occlusion (100 %)",
        "ESC/EACTS 2018 myocardial revascularization: PCI of a CTO for angina despite therapy or a "
        "large ischemic area (class IIa)",
        lambda record, lesions: _worst(lesions) == 100),
    Decision("pci", "a lesion of 90 or 99 %",
        "ESC/EACTS 2018 myocardial revascularization: no proof of ischemia asked for above 90 %; "
        "drug-eluting stent for any PCI (class I)",
        lambda record, lesions: _worst(lesions) >= 90),
    Decision("functional", "else: a lesion of 75 %",
        "ESC/EACTS 2018 myocardial revascularization: FFR or iFR for intermediate lesions without "
        "proof of ischemia (class I)",
        lambda record, lesions: True),
)  # fmt: skip


def decide_plan(record: Record, lesions_of_side: Iterable[Mapping]) -> str:
    """Return the key of `PLANS` for one side: the first row of `DECISIONS` that fits.

    A simplified teaching rule from facts in the report and lesions in the picture, not guidance.

    Args:
        record: Supplies `acute` and `complex_host`.
        lesions_of_side: `{segment, percent}` of the side in the picture.

    Raises:
        ValueError: A lesion is malformed.

    Source:
        `DECISIONS` holds each row's guideline statement, as commonly summarised.
    """
    lesions = [check_lesion(x) for x in lesions_of_side]
    return next(row.plan for row in DECISIONS if row.fits(record, lesions))


def decision_table() -> pd.DataFrame:
    """Return the decision table for printing: `if`, `plan`, `guideline`, `note`, in their order.

    The note marks it as a teaching rule in every row, so that no copy loses it.
    """
    rows = [(row.condition, row.plan, row.guideline, TEACHING_NOTE) for row in DECISIONS]
    return pd.DataFrame(rows, columns=["if", "plan", "guideline", "note"])


def _worst(lesions: list[dict]) -> int:
    return max((x["percent"] for x in lesions), default=0)


def _left_main(lesions: list[dict]) -> bool:
    return any(x["segment"] == 5 and x["percent"] >= 50 for x in lesions)


def _proximal_lad_and_circumflex(lesions: list[dict]) -> bool:
    tight = {x["segment"] for x in lesions if x["percent"] >= 75}
    return 6 in tight and any(11 <= segment <= 15 for segment in tight)


def write_findings(
    lesions_of_side: Iterable[Mapping], laterality: str, plan: str
) -> dict[str, str]:
    """Write findings and advice in the paper's format (Figure 3), in both languages.

    Args:
        lesions_of_side: `{segment, percent}`; one sentence each, by AHA number.
        laterality: LCA or RCA, the side in the picture.
        plan: A key of `PLANS`.

    Returns:
        `{"ja": ..., "en": ...}`, e.g. "LCX #11 shows 75% stenosis. Measure FFR ...".

    Raises:
        ValueError: Unknown laterality or plan, or a lesion that is malformed or of the other side.
    """
    if laterality not in LATERALITIES or plan not in PLANS:
        known = f"LCA or RCA and a plan of {list(PLANS)}"
        raise ValueError(f"findings need {known}, got {laterality!r} and {plan!r}")
    lesions = sorted((check_lesion(x) for x in lesions_of_side), key=lambda x: x["segment"])
    if strays := [x for x in lesions if laterality_of(x["segment"]) != laterality]:
        raise ValueError(f"an injection of the {laterality} does not show {strays}")
    pairs = [_lesion_sentence(**x) for x in lesions] or [
        (f"No significant stenosis in the {laterality}.", f"{laterality}に有意狭窄は認めません。")
    ]
    pairs.append(PLANS[plan])
    return {"ja": "".join(ja for _, ja in pairs), "en": " ".join(en for en, _ in pairs)}


def _lesion_sentence(segment: int, percent: int, artery: str) -> tuple[str, str]:
    closed = percent == 100
    en = f"{artery} #{segment} shows {percent}% stenosis" + " (total occlusion)" * closed
    name = "LMT" if artery == "LM" else artery  # Japanese notes write LMT for the left main
    return f"{en}.", f"{name} #{segment}に{percent}%の狭窄{'（完全閉塞）' * closed}が確認できます。"
