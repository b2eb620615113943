"""The phantom's clinic: who the patient is, what the request says, what is found, what is advised.

The plan follows a written teaching rule (`decide_plan`). It is a deterministic label for a study of
language models, not guidance for any patient.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from cag_utils.phantom.patients import SEXES, Record, draw_record
from cag_utils.phantom.phrases import (
    FILLERS,
    HISTORIES,
    INDICATIONS,
    NO_HISTORY,
    OPENINGS,
    OPENINGS_WITHOUT_RISKS,
    REQUESTS,
    RISK_FACTORS,
    TESTS,
)
from cag_utils.segments import LATERALITIES, check_lesion, laterality_of

__all__ = ["PLANS", "Record", "decide_plan", "draw_record", "write_findings", "write_report"]

# plan key -> (English, Japanese). `context` is the paper's own sentence (Figure 3).
PLANS: dict[str, tuple[str, str]] = {
    "none": (
        "No revascularization is needed; continue risk factor control.",
        "血行再建は不要です。危険因子の管理を継続してください。",
    ),
    "medical": (
        "Optimal medical therapy and follow-up are recommended.",
        "至適薬物療法と経過観察を推奨します。",
    ),
    "functional": (
        "Measure FFR or iFR and consider PCI if ischemia is proven.",
        "FFRまたはiFRを測定し、虚血が証明されればPCIを検討してください。",
    ),
    "pci": (
        "PCI with a drug-eluting stent is recommended.",
        "薬剤溶出性ステントによるPCIを推奨します。",
    ),
    "heart_team": (
        "Discuss CABG or PCI in the heart team.",
        "ハートチームでCABGまたはPCIを検討してください。",
    ),
    "cto": (
        "Evaluate ischemia and viability before CTO-PCI.",
        "CTOに対するPCIの前に、虚血と心筋バイアビリティを評価してください。",
    ),
    "emergency_pci": ("Emergency PCI is recommended.", "緊急PCIを推奨します。"),
    "context": (
        "Consider treatment plan in context of other angiographic findings and comorbidities.",
        "他のアンギオ画像や、合併症を考慮して、治療方針を検討してください。",
    ),
}
WORDS_LOW, WORDS_HIGH = 25, 60  # English words of a report


def write_report(rng: np.random.Generator, record: Record) -> dict[str, str]:
    """Write the pre-procedure report: history and indication, no finding, no date, no name.

    Args:
        rng: Generator; picks wording and abbreviations, the same in both languages.
        record: The patient.

    Returns:
        `{"ja": ..., "en": ...}`, sentence by sentence the same; 25 to 60 English words.
    """
    values = _draw_values(rng, record)
    history = [HISTORIES[key] for key in record.history] or [NO_HISTORY]
    variants = [INDICATIONS[record.indication], *history, *(TESTS[key] for key in record.tests)]
    pairs = [_opening(rng, record)]
    pairs += [_fill(_pick(rng, options), values) for options in variants]
    pairs.append(_pick(rng, REQUESTS))
    fillers = [FILLERS[i] for i in rng.permutation(len(FILLERS))]
    while sum(len(en.split()) for en, _ in pairs) < WORDS_LOW:
        pairs.insert(-1, fillers.pop())
    return {"ja": "".join(ja for _, ja in pairs), "en": " ".join(en for en, _ in pairs)}


def decide_plan(record: Record, lesions_of_side: Iterable[Mapping]) -> str:
    """Return the plan key for one side: a simplified teaching rule, not guidance.

    First row that fits, from facts in the report and lesions in the picture:

    | if | plan |
    |---|---|
    | no lesion on this side | none |
    | every lesion <= 50 %, and the left main < 50 % | medical |
    | acute infarction and a lesion >= 90 % | emergency_pci |
    | bypass grafts or hemodialysis | context |
    | left main >= 50 %, or #6 >= 75 % together with the circumflex >= 75 % | heart_team |
    | a total occlusion (100 %) | cto |
    | a lesion of 90 or 99 % | pci |
    | else (75 %) | functional |

    Args:
        record: Supplies `acute` and `complex_host`.
        lesions_of_side: `{segment, percent}` of the side in the picture.

    Returns:
        A key of `PLANS`.

    Raises:
        ValueError: A lesion is malformed.
    """
    lesions = [check_lesion(x) for x in lesions_of_side]
    worst = max((x["percent"] for x in lesions), default=0)
    main = any(x["segment"] == 5 and x["percent"] >= 50 for x in lesions)
    rows = (
        (worst == 0, "none"),
        (worst <= 50 and not main, "medical"),
        (record.acute and worst >= 90, "emergency_pci"),
        (record.complex_host, "context"),
        (main or _proximal_lad_and_circumflex(lesions), "heart_team"),
        (worst == 100, "cto"),
        (worst >= 90, "pci"),
    )
    return next((plan for fits, plan in rows if fits), "functional")


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


def _proximal_lad_and_circumflex(lesions: list[dict]) -> bool:
    tight = {x["segment"] for x in lesions if x["percent"] >= 75}
    return 6 in tight and any(11 <= segment <= 15 for segment in tight)


def _draw_values(rng: np.random.Generator, record: Record) -> dict[str, object]:
    kidney = {"hemodialysis", "ckd"} & set(record.risk_factors)
    creatinine = {"hemodialysis": 8.2, "ckd": 1.6}[max(kidney)] if kidney else 0.8
    egfr = {"hemodialysis": 6, "ckd": 38}[max(kidney)] if kidney else 72
    return {
        "hours": int(rng.integers(2, 12)),
        "months": int(rng.integers(2, 13)),
        "years": int(rng.integers(2, 16)),
        "ccs": str(rng.choice(["I", "II", "III"])),
        "nyha": str(rng.choice(["II", "III"])),
        "ck": int(rng.integers(25, 320)) * 10,
        "ef": record.ef,
        "ldl": int(rng.integers(70, 180)),
        "calcium": int(rng.integers(10, 90)) * 10,
        "creatinine": round(creatinine * float(rng.uniform(0.85, 1.15)), 1),
        "egfr": round(egfr * float(rng.uniform(0.85, 1.15))),
    }


def _opening(rng: np.random.Generator, record: Record) -> tuple[str, str]:
    brief = int(rng.random() < 0.4)  # one style for the whole list, the same in both languages
    names = [RISK_FACTORS[key][brief] for key in record.risk_factors]
    english = ", ".join(en for en, _ in names)
    if not brief:
        english = " and ".join(english.rsplit(", ", 1))
    risks = (english, "、".join(ja for _, ja in names))
    pair = _pick(rng, OPENINGS if names else OPENINGS_WITHOUT_RISKS)
    en, ja = (
        text.format(age=record.age, sex=SEXES[record.sex][i], risks=risks[i])
        for i, text in enumerate(pair)
    )
    return en[0].upper() + en[1:], ja


def _pick(rng: np.random.Generator, options: tuple) -> tuple[str, str]:
    return options[int(rng.integers(len(options)))]


def _fill(pair: tuple[str, str], values: Mapping) -> tuple[str, str]:
    return pair[0].format(**values), pair[1].format(**values)
