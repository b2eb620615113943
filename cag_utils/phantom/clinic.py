"""The phantom's clinic in one place: patient, report, decision, and what is found and advised.

The plan follows a written teaching rule (`decisions`). It is a deterministic label for a study of
language models, not guidance for any patient.
"""

from collections.abc import Iterable, Mapping

from cag_utils.phantom.decisions import PLANS, decide_plan, decision_table
from cag_utils.phantom.hospital_notes import WORDS_HIGH, WORDS_LOW, write_report
from cag_utils.phantom.patients import Record, draw_record
from cag_utils.segments import LATERALITIES, check_lesion, laterality_of

__all__ = [
    "PLANS",
    "WORDS_HIGH",
    "WORDS_LOW",
    "Record",
    "decide_plan",
    "decision_table",
    "draw_record",
    "write_findings",
    "write_report",
]


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
