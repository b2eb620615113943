"""Phantom patients: a history that fits the lesions without giving them away."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from cag_utils.segments import check_lesion

SEXES = {"M": ("man", "男性"), "F": ("woman", "女性")}
ACUTE = ("stemi", "nstemi")
# The phantom's own round numbers for a patient sent to angiography in Japan; no register behind.
PREVALENCE = {
    "hypertension": 0.66, "diabetes": 0.36, "dyslipidemia": 0.58, "smoking": 0.2,
    "ex_smoking": 0.22, "family_history": 0.12, "ckd": 0.14, "hemodialysis": 0.05,
    "atrial_fibrillation": 0.08, "stroke": 0.07, "pad": 0.06, "obesity": 0.08,
}  # fmt: skip
# Choice: factors that are likelier, never certain, with a tight stenosis; women smoke less.
WITH_DISEASE = {"diabetes": 1.25, "dyslipidemia": 1.15, "ckd": 1.25, "pad": 1.5}
IN_WOMEN = {"smoking": 0.35, "ex_smoking": 0.35}
TIGHT = 75  # percent: the usual threshold of a significant stenosis in Japanese reports
YOUNGEST_WITH_GRAFTS = 50  # years; choice
CABG_SHARE = 0.08  # of patients with a tight stenosis and old enough; choice


@dataclass(frozen=True)
class Record:
    """What is known of a patient before the angiogram."""

    age: int  # years, 38 to 92
    sex: str  # M or F
    risk_factors: tuple[str, ...]  # keys of risk_factors in phrases.yaml
    indication: str  # key of indications in phrases.yaml
    history: tuple[str, ...]  # any of cabg, pci, mi
    tests: tuple[str, ...]  # keys of tests in phrases.yaml, most important first
    ef: int  # left ventricular ejection fraction, percent
    drugs: tuple[str, ...] = ()  # keys of drugs in phrases.yaml
    details: dict[str, int | float | str] = field(default_factory=dict)  # what sentences quote

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
    record cannot name it. Acute, and bypass grafts, only if something is at least 75 % narrowed; an
    old infarction only then or with a former PCI. A positive stress test, prior disease and a low
    ejection fraction are likelier, never certain, with worse disease.

    Args:
        lesions: All lesions of the patient, `{segment, percent}`; may be empty.

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
        "dyspnea": 0.16, "heart_failure": 0.1, "abnormal_ecg": 0.14,
        "atypical_pain": 0.08 if worst >= TIGHT else 0.26,
        "preoperative": 0.12, "arrhythmia": 0.06, "follow_up": 0.3 if "pci" in history else 0.0,
    }  # fmt: skip
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
    rng, worst: int, indication: str, risks: tuple[str, ...], history: tuple[str, ...]
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


STRESS_KINDS = ("treadmill", "spect", "echo")
SURGERIES = ("valve", "aneurysm", "gastric", "lung")
LDL_LIMIT = 140  # mg/dL: dyslipidemia from here on (Japan Atherosclerosis Society, 2022)
HBA1C_LIMIT = 6.5  # percent, NGSP: diabetes from here on (Japan Diabetes Society)
ONSET_LIMIT = 12  # hours: the usual window of primary PCI (see `findings`)


def draw_details(
    rng: np.random.Generator,
    age: int,
    sex: str,
    worst: int,
    risks: tuple[str, ...],
    history: tuple[str, ...],
    indication: str,
) -> dict[str, int | float | str]:
    """Draw the numbers and words that a patient's sentences quote.

    Args:
        worst: Highest grade of any lesion, percent; 0 if there is none.
        risks: Keys of `risk_factors` in phrases.yaml.
        history: Any of cabg, pci, mi.
        indication: Key of `indications` in phrases.yaml.

    Returns:
        hours, months (of symptoms); ccs, nyha (classes); ck (U/L), ldl (mg/dL), hba1c (percent),
        bnp (pg/mL), calcium (Agatston), creatinine (mg/dL), egfr (mL/min/1.73 m2), systolic,
        diastolic (mmHg); stress_kind, surgery; `<event>_months` since each event of the history.
    """
    creatinine, egfr = _draw_kidney(rng, age, sex, risks)
    failing = indication == "heart_failure"
    bnp = (200, 900) if failing else (40, 200) if indication == "dyspnea" else (8, 90)
    pressure = (132, 162) if "hypertension" in risks else (104, 130)
    ldl = 185 if "dyslipidemia" in risks else LDL_LIMIT  # treated or not
    hba1c = (HBA1C_LIMIT, 9.0) if "diabetes" in risks else (5.2, 6.2)
    calcium = 220 if worst >= 50 else 90  # its median: higher with disease, never telling by itself
    # nobody with recent heart failure is put on a treadmill
    stress = STRESS_KINDS[1:] if failing else STRESS_KINDS
    return {
        "hours": int(rng.integers(2, ONSET_LIMIT)),
        "months": int(rng.integers(2, 13)),
        "ccs": str(rng.choice(["I", "II", "III"])), "nyha": str(rng.choice(["II", "III"])),
        "ck": int(rng.integers(25, 320)) * 10,
        "ldl": int(rng.integers(68, ldl)),
        "hba1c": round(float(rng.uniform(*hba1c)), 1),
        "bnp": int(rng.integers(*bnp)),
        # below any year of our time
        "calcium": int(min(calcium * np.exp(rng.normal(0, 1.0)), 1800)),
        "creatinine": creatinine, "egfr": egfr,
        "systolic": int(rng.integers(*pressure)), "diastolic": int(rng.integers(62, 92)),
        "stress_kind": str(rng.choice(stress)), "surgery": str(rng.choice(SURGERIES)),
        **_draw_times(rng, age, history, indication),
    }  # fmt: skip


def draw_drugs(
    rng: np.random.Generator, risks: tuple[str, ...], history: tuple[str, ...]
) -> tuple[str, ...]:
    """Draw the drugs that go with a history: at most 4 keys of `drugs` in phrases.yaml, maybe none.

    Most, not all, patients take what is usual.
    """
    dialysed = "hemodialysis" in risks
    reasons = {
        "aspirin": bool(history),
        "clopidogrel": "pci" in history or "stroke" in risks,
        "statin": bool(history) or "dyslipidemia" in risks,
        "amlodipine": "hypertension" in risks,
        "bisoprolol": "mi" in history,
        "dpp4": "diabetes" in risks,
        "warfarin": "atrial_fibrillation" in risks and dialysed,  # most DOACs are ruled out there
        "apixaban": "atrial_fibrillation" in risks and not dialysed,
    }
    taken = [drug for drug, fits in reasons.items() if fits and rng.random() < 0.85]
    return tuple(taken[:4])


def estimated_gfr(creatinine: float, age: int, sex: str) -> float:
    """Return the estimated glomerular filtration rate, mL/min/1.73 m2.

    Args:
        creatinine: mg/dL, above 0.

    Raises:
        ValueError: Creatinine or age is not above 0.

    Source:
        Matsuo et al. 2009, the Japanese equation: 194 Cr^-1.094 age^-0.287, x 0.739 in women.
    """
    if creatinine <= 0 or age <= 0:
        raise ValueError(f"creatinine and age must be above 0, got {creatinine} and {age}")
    return 194 * creatinine**-1.094 * age**-0.287 * (0.739 if sex == "F" else 1.0)


def _draw_kidney(rng, age: int, sex: str, risks: tuple[str, ...]) -> tuple[float, int]:
    """Creatinine, mg/dL, and the eGFR that belongs to it."""
    if "hemodialysis" in risks:
        creatinine = round(float(rng.uniform(6, 11)), 1)
    else:
        target = rng.uniform(25, 54) if "ckd" in risks else rng.uniform(66, 95)
        creatinine = round(float((estimated_gfr(1.0, age, sex) / target) ** (1 / 1.094)), 2)
    return creatinine, round(estimated_gfr(creatinine, age, sex))


def _draw_times(rng, age: int, history: tuple[str, ...], indication: str) -> dict[str, int]:
    """Months since each event; an infarction was treated by the PCI, if there was one."""
    most = max(3, min(16, age - 37))  # years; choice: nobody is younger than about 37 at the event
    months = {f"{event}_months": int(rng.integers(2, most)) * 12 for event in history}
    if indication == "follow_up":
        months["pci_months"] = int(rng.integers(6, 13))  # the usual control after stenting
    if "mi" in history and "pci" in history:
        months["mi_months"] = months["pci_months"]
    return months
