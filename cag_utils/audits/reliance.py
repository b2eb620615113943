"""What tuned models owe to the picture and what to the report: asked otherwise, case by case."""

from pathlib import Path

import numpy as np
import pandas as pd

from cag_utils.profiles import Stats
from cag_utils.scores.floors import AT, BOUNDS, CEILING, ask_blank, floors_of, in_order
from cag_utils.scores.measures import by_case, estimate, skill
from cag_utils.tables import load_table, write_table

MEASURES = (
    "lesion_f1", "lesion_recall", "lesion_precision", "healthy_right", "plan_right",
    "laterality_accuracy", "overall",
)  # fmt: skip
COLUMNS = ("model", "asked", "measure", "cases", "true", "score", "drop", "low", "high")


def blank_pairs(pairs: Path, target: Path) -> Path:
    """Write a copy of the pairs in which every picture is the blank one: a corpus of texts.

    Args:
        pairs: Notebook 03's `pairs.csv`, two folders below `outputs/<profile>/`.
        target: The copy, which is returned, in a folder of a run of the same profile; the picture
            is put beside it.
    """
    table = load_table(pairs, dtype={"patient_id": str}, keep_default_na=False)
    [image] = set(ask_blank(table, "", target.parent)["image"])
    table["png"] = Path(image).relative_to(pairs.parents[2]).as_posix()
    write_table(table, target)
    return target


def measure_reliance(scores: pd.DataFrame, stats: Stats, seed: int) -> pd.DataFrame:
    """Compare each model, as the study asks it, with itself asked or made otherwise.

    Args:
        scores: The rubric's marks of one language: models, `<model>@<how>`, floors and the truth.
        stats: Resamples, level and the primary measure.

    Returns:
        `COLUMNS`, a row a model, an entry of `BOUNDS` and a measure of `MEASURES` or the `skill` of
        the primary one: both figures on the same cases, and `drop`, the true picture's and report's
        minus the other's, with its interval by exam.
    """
    marks, rows = by_case(scores), []

    def both(own: np.ndarray, other: np.ndarray, *bounds: np.ndarray) -> np.ndarray:
        own, other = (skill(x, *bounds) if bounds else x for x in (own, other))
        return np.concatenate([own, other, own - other], axis=-1)

    for name, model, asked in _asked_otherwise(marks):
        skilled = [stats.primary], [CEILING, *floors_of(model, marks)]
        for measures, bounds in ((MEASURES, []), skilled):
            those = [model, name, *bounds]
            found = np.reshape(estimate(marks, those, measures, both, stats, seed), (3, -1, 3))
            cases = len(set.intersection(*(set(marks[m].index) for m in those)))
            for measure, true, score, drop in zip(measures, *found, strict=True):
                measure = "skill" if bounds else measure
                rows.append((model, asked, measure, cases, true[0], score[0], *drop))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def count_answers(generations: pd.DataFrame) -> pd.DataFrame:
    """Count the different texts that each model writes, as the study asks it and otherwise.

    Args:
        generations: As notebook 05's, of one language: case_id, model, output.

    Returns:
        model, asked (empty: as the study does), cases, distinct (different texts), same (share of
        these cases with the very text that the true picture and report brought).
    """
    said = generations.pivot_table("output", "case_id", "model", aggfunc="first")
    others, rows = _asked_otherwise(said), []
    plain = [(model, model, "") for model in dict.fromkeys(model for _, model, _ in others)]
    for name, model, asked in plain + others:
        texts = said[name].dropna()
        same = float((texts == said.loc[texts.index, model]).mean())
        rows.append((model, asked, len(texts), texts.nunique(), same))
    return pd.DataFrame(rows, columns=["model", "asked", "cases", "distinct", "same"])


def _asked_otherwise(models: pd.Index | dict) -> list[tuple[str, str, str]]:
    """Models' names that hold a way of `BOUNDS`, with the model's own and the way's, in order."""
    own = in_order(m for m in models if AT not in m)
    all_of_them = [(f"{model}{AT}{asked}", model, asked) for model in own for asked in BOUNDS]
    return [x for x in all_of_them if x[0] in models]
