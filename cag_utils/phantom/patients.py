"""Phantom patients: a history that fits the lesions without giving them away."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

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
