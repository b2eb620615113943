"""The phantom's clinic: who the patient is, what the request says, what is found, what is advised.

The plan follows a written teaching rule (`decide_plan`). It is a deterministic label for a study of
language models, not guidance for any patient.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from cag_utils.phantom.phrases import (
    FILLERS,
    HISTORIES,
    INDICATIONS,
    NO_HISTORY,
    NO_RISKS,
    OPENINGS,
    REQUESTS,
    RISK_FACTORS,
    TESTS,
)
from cag_utils.segments import LATERALITIES, check_lesion, laterality_of

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
SEXES = {"M": ("man", "男性"), "F": ("woman", "女性")}
ACUTE = ("stemi", "nstemi")
WORDS_LOW, WORDS_HIGH = 25, 60  # English words of a report
# The phantom's own round numbers for a patient sent to angiography in Japan; no register behind.
PREVALENCE = {
    "hypertension": 0.66,
    "diabetes": 0.36,
    "dyslipidemia": 0.58,
    "smoking": 0.2,
    "ex_smoking": 0.22,
    "family_history": 0.12,
    "ckd": 0.14,
    "hemodialysis": 0.05,
    "atrial_fibrillation": 0.08,
    "stroke": 0.07,
    "pad": 0.06,
    "obesity": 0.08,
}


@dataclass(frozen=True)
class Record:
    """What is known of a patient before the angiogram.

    Attributes:
        age: Years, 38 to 92.
        sex: M or F.
        risk_factors: Keys of `phrases.RISK_FACTORS`.
        indication: Key of `phrases.INDICATIONS`.
        history: Any of cabg, pci, mi.
        tests: Keys of `phrases.TESTS`, as ordered in the report.
        ef: Left ventricular ejection fraction, percent.
    """

    age: int
    sex: str
    risk_factors: tuple[str, ...]
    indication: str
    history: tuple[str, ...]
    tests: tuple[str, ...]
    ef: int

    @property
    def acute(self) -> bool:
        """Whether the patient comes with an acute myocardial infarction (STEMI or NSTEMI)."""
        return self.indication in ACUTE

    @property
    def complex_host(self) -> bool:
        """Whether bypass grafts or dialysis forbid a plan from the picture alone."""
        return "cabg" in self.history or "hemodialysis" in self.risk_factors


def draw_record(rng: np.random.Generator, lesions: Iterable[Mapping], sex: str) -> Record:
    """Draw a patient's history that fits, without giving away, the lesions of both sides.

    Args:
        rng: Generator.
        lesions: All lesions of the patient, `{segment, percent}`; may be empty.
        sex: M or F.

    Returns:
        The record. Acute only if something is at least 75 % narrowed; a positive stress test,
        prior disease and a low ejection fraction are likelier, never certain, with worse disease.

    Raises:
        ValueError: `sex` is neither M nor F, or a lesion is malformed.
    """
    if sex not in SEXES:
        raise ValueError(f"sex must be M or F, got {sex!r}")
    worst = max((check_lesion(x)["percent"] for x in lesions), default=0)
    age = int(np.clip(rng.normal(71 if sex == "F" else 67, 10), 38, 92))
    history = _draw_history(rng, worst)
    indication = _draw_indication(rng, worst, history)
    ef = 66 - 6 * (worst >= 90) - 10 * ("mi" in history) - 14 * (indication == "heart_failure")
    return Record(
        age=age,
        sex=sex,
        risk_factors=_draw_risks(rng),
        indication=indication,
        history=history,
        tests=_draw_tests(rng, worst, indication),
        ef=int(np.clip(rng.normal(ef, 6), 18, 78)),
    )


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
        raise ValueError(
            f"need LCA or RCA and a plan of {list(PLANS)}, got {laterality!r}, {plan!r}"
        )
    lesions = sorted((check_lesion(x) for x in lesions_of_side), key=lambda x: x["segment"])
    if strays := [x for x in lesions if laterality_of(x["segment"]) != laterality]:
        raise ValueError(f"an injection of the {laterality} does not show {strays}")
    none = (
        f"No significant stenosis in the {laterality}.",
        f"{laterality}に有意狭窄は認めません。",
    )
    pairs = [_lesion_sentence(**x) for x in lesions] or [none]
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


def _draw_history(rng: np.random.Generator, worst: int) -> tuple[str, ...]:
    sick = worst >= 75
    chances = {"cabg": 0.08 if sick else 0.01, "pci": 0.24 if sick else 0.1, "mi": 0.1}
    return tuple(key for key, p in chances.items() if rng.random() < p)


def _draw_indication(rng: np.random.Generator, worst: int, history: tuple[str, ...]) -> str:
    acute = {100: 0.35, 99: 0.35, 90: 0.25, 75: 0.05}.get(worst, 0.0)
    if rng.random() < acute:
        return "stemi" if rng.random() < 0.5 else "nstemi"
    weights = {
        "effort_angina": 0.34 if worst >= 75 else 0.16,
        "dyspnea": 0.16,
        "heart_failure": 0.1,
        "abnormal_ecg": 0.14,
        "atypical_pain": 0.08 if worst >= 75 else 0.26,
        "preoperative": 0.12,
        "follow_up": 0.3 if "pci" in history else 0.0,
    }
    p = np.array(list(weights.values()))
    return str(rng.choice(list(weights), p=p / p.sum()))


def _draw_risks(rng: np.random.Generator) -> tuple[str, ...]:
    drawn = [key for key, p in PREVALENCE.items() if rng.random() < p]
    exclude = {"ckd"} if "hemodialysis" in drawn else set()
    exclude |= {"ex_smoking"} if "smoking" in drawn else set()
    kept = [key for key in drawn if key not in exclude]
    # Dialysis decides the plan, so a long list must not crowd it out.
    return tuple(sorted(kept, key=lambda key: key != "hemodialysis")[:5])


def _draw_tests(rng: np.random.Generator, worst: int, indication: str) -> tuple[str, ...]:
    if indication in ACUTE:
        return ("troponin_raised", "echo")
    p = (0.6, 0.1, 0.3) if worst >= 75 else (0.2, 0.5, 0.3)
    stress = str(rng.choice(["stress_positive", "stress_negative", "stress_equivocal"], p=p))
    extra = [str(rng.choice(["renal", "lipids", "ct_calcium"]))] if rng.random() < 0.5 else []
    return (stress, "echo", *extra)


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
    brief = int(rng.random() < 0.4)
    names = [RISK_FACTORS[key][brief] for key in record.risk_factors] or [NO_RISKS]
    listed = [en for en, _ in names]
    joined = " and ".join(filter(None, [", ".join(listed[:-1]), listed[-1]]))
    risks = (", ".join(listed) if brief else joined, "、".join(ja for _, ja in names))
    en, ja = _pick(rng, OPENINGS)
    sex = SEXES[record.sex]
    english = en.format(age=record.age, sex=sex[0], risks=risks[0])
    return english[0].upper() + english[1:], ja.format(age=record.age, sex=sex[1], risks=risks[1])


def _pick(rng: np.random.Generator, options: tuple) -> tuple[str, str]:
    return options[int(rng.integers(len(options)))]


def _fill(pair: tuple[str, str], values: Mapping) -> tuple[str, str]:
    return pair[0].format(**values), pair[1].format(**values)
