"""The paper's claims, each tested against this study's own figures."""

from collections.abc import Mapping

import pandas as pd

from cag_utils.report import MODEL_NAMES, estimate_cell

ERRORS = ("laterality", "vessel", "treatment", "logical", "stenosis")
HOLDS, FAILS, UNCLEAR = "seen here too", "not seen here", "unclear"


def compare_claims(
    cnn: Mapping[str, float],
    vlscores: Mapping[str, float],
    marks: Mapping[str, Mapping[str, float]],
    backbones: list[str],
) -> pd.DataFrame:
    """Test the paper's claims on one study's metrics.

    Args:
        cnn: Metrics of notebook 02.
        vlscores: Metrics of notebook 06, English.
        marks: Language to metrics of notebook 07.
        backbones: Fine-tuned backbones.

    Returns:
        One row a claim: claim, paper, here, verdict (seen here too, not seen here, unclear).

    Source:
        Nakamura et al., CAG-VLM, sections 4.2 to 5.1, Tables 3 and 4.
    """
    rows = [
        _laterality_is_easier(cnn),
        *(_tuning_helps(marks[la], backbone, la) for la in marks for backbone in backbones),
        *(_highest_vlscore(vlscores, backbones, name) for name in ("medclip", "conceptclip")),
        *(_highest_mark(marks[la], backbones, la) for la in marks),
        *(_vessels_are_hardest(marks[la], backbones, la) for la in marks),
    ]
    return pd.DataFrame(rows, columns=["claim", "paper", "here", "verdict"])


def _laterality_is_easier(cnn: Mapping[str, float]) -> tuple[str, str, str, str]:
    side, six = _interval(cnn, "laterality_f1"), _interval(cnn, "six_class_f1")
    verdict = HOLDS if side[1] > six[2] else FAILS if side[2] < six[1] else UNCLEAR
    here = f"{estimate_cell(*side)} against {estimate_cell(*six)}"
    claim = "The CNN tells the side far better than all six classes"
    return claim, "0.959 against 0.766", here, verdict


def _tuning_helps(marks: Mapping, backbone: str, language: str) -> tuple[str, str, str, str]:
    name = MODEL_NAMES[f"{backbone}_lora"]
    claim = f"{name} ({language}) scores higher than its untuned base"
    stem = f"{backbone}_lora.overall_gain"
    paper = "said, without a figure"
    if marks.get(stem) is None:
        return claim, paper, "base not run", UNCLEAR
    gain = _interval(marks, stem)
    verdict = HOLDS if gain[1] > 0 else FAILS if gain[2] < 0 else UNCLEAR
    return claim, paper, estimate_cell(*gain, digits=2) + " points", verdict


def _highest_vlscore(scores: Mapping, backbones: list[str], embedder: str) -> tuple:
    claim = f"PaliGemma2 w/LoRA has the highest VLScore by {embedder}"
    paper = {"medclip": "0.3834 against 0.3680", "conceptclip": "0.5823 against 0.5442"}[embedder]
    means = {b: scores.get(f"{b}_lora.{embedder}.mean") for b in backbones}
    intervals = {
        b: (scores[f"{b}_lora.{embedder}.low"], scores[f"{b}_lora.{embedder}.high"])
        for b, mean in means.items()
        if mean is not None
    }
    return claim, paper, *_ranking(means, intervals, "paligemma2", 3)


def _highest_mark(marks: Mapping, backbones: list[str], language: str) -> tuple:
    claim = f"Gemma3 w/LoRA ({language}) has the highest overall score"
    means = {b: marks.get(f"{b}_lora.overall_mean") for b in backbones}
    intervals = {
        b: (marks[f"{b}_lora.overall_mean_low"], marks[f"{b}_lora.overall_mean_high"])
        for b, mean in means.items()
        if mean is not None
    }
    return claim, "7.20 against 6.70 and 6.58", *_ranking(means, intervals, "gemma3", 2)


def _ranking(means: Mapping, intervals: Mapping, winner: str, digits: int) -> tuple[str, str]:
    """The means in words, and whether the winner's interval is clear of all others'."""
    here = ", ".join(f"{b} {m:.{digits}f}" for b, m in means.items() if m is not None)
    if winner not in intervals or len(intervals) < 2:
        return here or "not run", UNCLEAR
    others = [interval for backbone, interval in intervals.items() if backbone != winner]
    if all(intervals[winner][0] > high for _, high in others):
        return here, HOLDS
    return here, FAILS if any(low > intervals[winner][1] for low, _ in others) else UNCLEAR


def _vessels_are_hardest(marks: Mapping, backbones: list[str], language: str) -> tuple:
    claim = f"Vessel numbering is the commonest error of tuned models ({language})"
    rates = {e: [marks.get(f"{b}_lora.{e}_error_rate") for b in backbones] for e in ERRORS}
    known = {e: [r for r in found if r is not None] for e, found in rates.items()}
    means = {e: sum(found) / len(found) for e, found in known.items() if found}
    if "vessel" not in means:
        return claim, "about 70 % of cases", "not judged", UNCLEAR
    here = ", ".join(f"{e} {rate:.0%}" for e, rate in means.items())
    verdict = HOLDS if max(means, key=means.get) == "vessel" else FAILS
    return claim, "about 70 % of cases", here, verdict


def _interval(figures: Mapping[str, float], name: str) -> tuple[float, float, float]:
    return figures[name], figures[f"{name}_low"], figures[f"{name}_high"]
