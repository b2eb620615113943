"""Phantom patients: a history that fits the lesions without giving them away."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from cag_utils.phantom.measurements import draw_details, draw_drugs
from cag_utils.segments import check_lesion

SEXES = {"M": ("man", "男性"), "F": ("woman", "女性")}
ACUTE = ("stemi", "nstemi")
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
# Choice: factors that are likelier, never certain, with a tight stenosis; women smoke less.
WITH_DISEASE = {"diabetes": 1.25, "dyslipidemia": 1.15, "ckd": 1.25, "pad": 1.5}
IN_WOMEN = {"smoking": 0.35, "ex_smoking": 0.35}
TIGHT = 75  # percent: the usual threshold of a significant stenosis in Japanese reports
YOUNGEST_WITH_GRAFTS = 50  # years; choice
CABG_SHARE = 0.08  # of patients with a tight stenosis and old enough; choice


@dataclass(frozen=True)
class Record:
    """What is known of a patient before the angiogram.

    Attributes:
        age: Years, 38 to 92.
        sex: M or F.
        risk_factors: Keys of `phrases.RISK_FACTORS`.
        indication: Key of `phrases.INDICATIONS`.
        history: Any of cabg, pci, mi.
        tests: Keys of `workup_phrases.TESTS`, most important first.
        ef: Left ventricular ejection fraction, percent.
        drugs: Keys of `workup_phrases.DRUGS`.
        details: Numbers and words that sentences quote, from `measurements.draw_details`.
    """

    age: int
    sex: str
    risk_factors: tuple[str, ...]
    indication: str
    history: tuple[str, ...]
    tests: tuple[str, ...]
    ef: int
    drugs: tuple[str, ...] = ()
    details: dict[str, int | float | str] = field(default_factory=dict)

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

    Only the worst grade counts: which segment, artery or side is diseased changes nothing, so the
    record cannot name it.

    Args:
        rng: Generator.
        lesions: All lesions of the patient, `{segment, percent}`; may be empty.
        sex: M or F.

    Returns:
        The record. Acute, and bypass grafts, only if something is at least 75 % narrowed; an old
        infarction only then or with a former PCI. A positive stress test, prior disease and a low
        ejection fraction are likelier, never certain, with worse disease.

    Raises:
        ValueError: `sex` is neither M nor F, or a lesion is malformed.
    """
    if sex not in SEXES:
        raise ValueError(f"sex must be M or F, got {sex!r}")
    worst = max((check_lesion(x)["percent"] for x in lesions), default=0)
    mean = (71 if sex == "F" else 67) + 2 * (worst >= TIGHT)
    age = int(np.clip(rng.normal(mean, 10), 38, 92))
    history = _draw_history(rng, worst, age)
    indication = _draw_indication(rng, worst, history)
    risks = _draw_risks(rng, worst, sex)
    drugs = draw_drugs(rng, risks, history)
    ef = 66 - 6 * (worst >= 90) - 10 * ("mi" in history) - 14 * (indication == "heart_failure")
    return Record(
        age=age,
        sex=sex,
        risk_factors=risks,
        indication=indication,
        history=history,
        tests=_draw_tests(rng, worst, indication, risks, history),
        ef=int(np.clip(rng.normal(ef, 6), 18, 78)),
        drugs=drugs,
        details=draw_details(rng, age, sex, worst, risks, history, indication),
    )


def _draw_history(rng: np.random.Generator, worst: int, age: int) -> tuple[str, ...]:
    tight = worst >= TIGHT
    grafts = tight and age >= YOUNGEST_WITH_GRAFTS and rng.random() < CABG_SHARE
    stent = rng.random() < (0.24 if tight else 0.1)
    # An infarction leaves a lesion or a stent behind.
    infarct = rng.random() < (0.14 if tight else 0.3 * stent)
    found = {"cabg": grafts, "pci": stent, "mi": infarct}
    return tuple(key for key, has in found.items() if has)


def _draw_indication(rng: np.random.Generator, worst: int, history: tuple[str, ...]) -> str:
    acute = {100: 0.35, 99: 0.35, 90: 0.25, 75: 0.05}.get(worst, 0.0)
    if rng.random() < acute:
        return "stemi" if rng.random() < 0.5 else "nstemi"
    weights = {
        "effort_angina": 0.34 if worst >= TIGHT else 0.16,
        "dyspnea": 0.16,
        "heart_failure": 0.1,
        "abnormal_ecg": 0.14,
        "atypical_pain": 0.08 if worst >= TIGHT else 0.26,
        "preoperative": 0.12,
        "arrhythmia": 0.06,
        "follow_up": 0.3 if "pci" in history else 0.0,
    }
    p = np.array(list(weights.values()))
    return str(rng.choice(list(weights), p=p / p.sum()))


def _draw_risks(rng: np.random.Generator, worst: int, sex: str) -> tuple[str, ...]:
    factors = WITH_DISEASE if worst >= TIGHT else {}
    factors = factors | (IN_WOMEN if sex == "F" else {})
    drawn = [k for k, p in PREVALENCE.items() if rng.random() < p * factors.get(k, 1.0)]
    exclude = {"ckd"} if "hemodialysis" in drawn else set()
    exclude |= {"ex_smoking"} if "smoking" in drawn else set()
    kept = [key for key in drawn if key not in exclude]
    # Dialysis decides the plan, so a long list must not crowd it out.
    return tuple(sorted(kept, key=lambda key: key != "hemodialysis")[:5])


def _draw_tests(
    rng: np.random.Generator,
    worst: int,
    indication: str,
    risks: tuple[str, ...],
    history: tuple[str, ...],
) -> tuple[str, ...]:
    extra = ["renal", "lipids", "hba1c", "blood_pressure"]
    if indication in ACUTE:
        return ("troponin_raised", "echo", str(rng.choice(extra)))
    p = (0.6, 0.1, 0.3) if worst >= TIGHT else (0.2, 0.5, 0.3)
    stress = str(rng.choice(["stress_positive", "stress_negative", "stress_equivocal"], p=p))
    if not {"pci", "cabg"} & set(history):  # metal makes a calcium score meaningless
        extra.append("ct_calcium")
    if "hemodialysis" not in risks:  # dialysis raises it whatever the heart does
        extra.append("bnp")
    if indication != "abnormal_ecg":  # the abnormality is told with the reason for the exam
        extra.append("ecg_af" if "atrial_fibrillation" in risks else "ecg_sinus")
    chosen = rng.choice(extra, size=int(rng.integers(1, 4)), replace=False)
    return (stress, "echo", *map(str, chosen))
