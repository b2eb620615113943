"""What was measured before the angiogram, and the drugs taken: numbers that fit the patient.

Ranges are choices unless a source stands beside them. Nothing here depends on where a lesion is.
"""

import numpy as np

STRESS_KINDS = ("treadmill", "spect", "echo")
SURGERIES = ("valve", "aneurysm", "gastric", "lung")
LDL_LIMIT = 140  # mg/dL: dyslipidemia from here on (Japan Atherosclerosis Society, 2022)
HBA1C_LIMIT = 6.5  # percent, NGSP: diabetes from here on (Japan Diabetes Society)
ONSET_LIMIT = 12  # hours: the usual window of primary PCI (see `decisions`)


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
        rng: Generator.
        age: Years.
        sex: M or F.
        worst: Highest grade of any lesion, percent; 0 if there is none.
        risks: Keys of `phrases.RISK_FACTORS`.
        history: Any of cabg, pci, mi.
        indication: Key of `phrases.INDICATIONS`.

    Returns:
        hours, months (of symptoms); ccs, nyha (classes); ck (U/L), ldl (mg/dL), hba1c (percent),
        bnp (pg/mL), calcium (Agatston), creatinine (mg/dL), egfr (mL/min/1.73 m2), systolic,
        diastolic (mmHg); stress_kind, surgery; `<event>_months` since each event of the history.
    """
    creatinine, egfr = _draw_kidney(rng, age, sex, risks)
    failing = indication == "heart_failure"
    bnp = (200, 900) if failing else (40, 200) if indication == "dyspnea" else (8, 90)
    pressure = (132, 162) if "hypertension" in risks else (104, 130)
    return {
        "hours": int(rng.integers(2, ONSET_LIMIT)),
        "months": int(rng.integers(2, 13)),
        "ccs": str(rng.choice(["I", "II", "III"])),
        "nyha": str(rng.choice(["II", "III"])),
        "ck": int(rng.integers(25, 320)) * 10,
        "ldl": _draw_ldl(rng, risks),
        "hba1c": _draw_hba1c(rng, risks),
        "bnp": int(rng.integers(*bnp)),
        "calcium": _draw_calcium(rng, worst),
        "creatinine": creatinine,
        "egfr": egfr,
        "systolic": int(rng.integers(*pressure)),
        "diastolic": int(rng.integers(62, 92)),
        "stress_kind": _draw_stress_kind(rng, indication),
        "surgery": str(rng.choice(SURGERIES)),
        **_draw_times(rng, age, history, indication),
    }


def draw_drugs(
    rng: np.random.Generator, risks: tuple[str, ...], history: tuple[str, ...]
) -> tuple[str, ...]:
    """Draw the drugs that go with a history; most, not all, patients take what is usual.

    Args:
        rng: Generator.
        risks: Keys of `phrases.RISK_FACTORS`.
        history: Any of cabg, pci, mi.

    Returns:
        Keys of `workup_phrases.DRUGS`, at most 4; empty if none is taken.
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
        age: Years.
        sex: M or F.

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


def _draw_ldl(rng, risks: tuple[str, ...]) -> int:
    """Treated or not, with dyslipidemia; below the limit without."""
    high = 185 if "dyslipidemia" in risks else LDL_LIMIT
    return int(rng.integers(68, high))


def _draw_hba1c(rng, risks: tuple[str, ...]) -> float:
    if "diabetes" in risks:
        return round(float(rng.uniform(HBA1C_LIMIT, 9.0)), 1)
    return round(float(rng.uniform(5.2, 6.2)), 1)


def _draw_calcium(rng, worst: int) -> int:
    """Agatston score: higher with disease on average, and never telling by itself."""
    median = 220 if worst >= 50 else 90
    return int(min(median * np.exp(rng.normal(0, 1.0)), 1800))  # below any year of our time


def _draw_stress_kind(rng, indication: str) -> str:
    # Nobody with recent heart failure is put on a treadmill.
    kinds = STRESS_KINDS[1:] if indication == "heart_failure" else STRESS_KINDS
    return str(rng.choice(kinds))


def _draw_times(rng, age: int, history: tuple[str, ...], indication: str) -> dict[str, int]:
    """Months since each event; an infarction was treated by the PCI, if there was one."""
    most = max(3, min(16, age - 37))  # years; choice: nobody is younger than about 37 at the event
    months = {f"{event}_months": int(rng.integers(2, most)) * 12 for event in history}
    if indication == "follow_up":
        months["pci_months"] = int(rng.integers(6, 13))  # the usual control after stenting
    if "mi" in history and "pci" in history:
        months["mi_months"] = months["pci_months"]
    return months
