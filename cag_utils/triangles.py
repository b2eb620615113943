"""Every model's triangles: embed each picture and text once, score each case, summarise.

An empty output says nothing that could be close to anything: it has no area, and its VLScore is 0,
so that silence never pays. A refusal is a text and is scored as one, as the paper's models were.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
from PIL import Image

from cag_utils.profiles import Stats, Vlscore
from cag_utils.report import MODEL_NAMES, estimate_cell
from cag_utils.stats import mean_interval
from cag_utils.vlscore import control_scores, score_cases, what_moves_it

EMBEDDER_NAMES = {"siglip2": "SigLIP2-so400m", "medclip": "MedCLIP", "conceptclip": "ConceptCLIP"}
NOT_RUN = "not run"
BLANK_PX, BLANK_LEVEL = 512, 128  # a picture without content: even grey


class Embeds(Protocol):
    """What is asked of an embedder; `embedders.Embedder` is one."""

    def images(self, pictures: Sequence) -> np.ndarray:
        """Map n pictures to (n, d) float64."""

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Map n texts to (n, d) float64."""

    def truncated(self, texts: Sequence[str]) -> np.ndarray:
        """Tell which of n texts lose their end."""


@dataclass(frozen=True)
class Space:
    """One embedder's vectors of everything a study scores, each computed once.

    Attributes:
        images: Case to (d,) vector of its picture.
        texts: Text to (d,) vector.
        truncated: Texts that lost their end.
        blank: (d,) vector of an even grey picture.
    """

    images: Mapping[str, np.ndarray]
    texts: Mapping[str, np.ndarray]
    truncated: frozenset[str]
    blank: np.ndarray

    def corners(self, cases: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return pictures, truths and outputs of non-empty cases: three (n, d) arrays."""
        image = np.stack([self.images[case] for case in cases["case_id"]])
        truth, output = (
            np.stack([self.texts[text] for text in cases[column]])
            for column in ("ground_truth", "output")
        )
        return image, truth, output


def join_cases(generations: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Give every generation its patient and picture.

    Args:
        generations: 05's table.
        pairs: 03's table.

    Returns:
        case_id, patient_id, png, model, output ("" where empty), ground_truth, empty (bool).

    Raises:
        ValueError: There is nothing to score, a case is not in `pairs`, or a truth is empty.
    """
    if generations.empty:
        raise ValueError("no generations to score: generations.csv is empty; run notebook 05")
    rows = pairs.drop_duplicates("case_id")[["case_id", "patient_id", "png"]]
    cases = generations.merge(rows, "left", "case_id", validate="many_to_one")
    if strays := sorted(set(cases.loc[cases["png"].isna(), "case_id"])):
        raise ValueError(f"{len(strays)} generated cases are not in pairs.csv, e.g. {strays[:3]}")
    if cases["ground_truth"].fillna("").str.strip().eq("").any():
        raise ValueError("a case has no ground truth to be scored against: mend pairs.csv")
    cases["output"] = cases["output"].fillna("").astype(str)
    cases["empty"] = (cases["status"] == "empty") | (cases["output"].str.strip() == "")
    return cases[["case_id", "patient_id", "png", "model", "output", "ground_truth", "empty"]]


def embed(embedder: Embeds, cases: pd.DataFrame, folder: Path) -> Space:
    """Embed every picture and every distinct text of a study.

    Args:
        embedder: A loaded one.
        cases: From `join_cases`.
        folder: What `png` is relative to.

    Returns:
        Its vectors. Models repeat themselves and each other, so this is far fewer than there are
        rows.
    """
    pictures = cases.drop_duplicates("case_id")
    files = [Image.open(folder / png) for png in pictures["png"]]
    said = cases.loc[~cases["empty"], "output"]
    texts = sorted({*said, *cases["ground_truth"]})
    cut = embedder.truncated(texts)
    blank = np.full((BLANK_PX, BLANK_PX), BLANK_LEVEL, np.uint8)
    return Space(
        images=dict(zip(pictures["case_id"], embedder.images(files), strict=True)),
        texts=dict(zip(texts, embedder.texts(texts), strict=True)),
        truncated=frozenset(text for text, lost in zip(texts, cut, strict=True) if lost),
        blank=embedder.images([blank])[0],
    )


def score_models(cases: pd.DataFrame, space: Space, name: str, settings: Vlscore) -> pd.DataFrame:
    """Score every case of every model in one embedder's space.

    Args:
        cases: From `join_cases`.
        space: From `embed`.
        name: The embedder's key.
        settings: Normalisation and C.

    Returns:
        case_id, patient_id, model, embedder, area (NaN for an empty output), vlscore (0 for one),
        truncated (whether output or truth lost its end), empty; in the order of `cases`.
    """
    rows = cases[["case_id", "patient_id", "model", "empty"]].assign(
        embedder=name,
        area=np.nan,
        vlscore=0.0,
        truncated=cases["output"].isin(space.truncated)
        | cases["ground_truth"].isin(space.truncated),
    )
    said = ~cases["empty"]
    if said.any():
        corners = space.corners(cases[said])
        found = score_cases(*corners, settings.normalise, settings.max_area)
        rows.loc[said, ["area", "vlscore"]] = found.to_numpy()
    columns = ["case_id", "patient_id", "model", "embedder", "area", "vlscore", "truncated"]
    return rows[[*columns, "empty"]]


def score_controls(cases: pd.DataFrame, space: Space, name: str, settings: Vlscore) -> pd.DataFrame:
    """Score each model's reports again beside wrong and blank pictures, and wrong reports.

    Args:
        cases: From `join_cases`.
        space: From `embed`.
        name: The embedder's key.
        settings: Normalisation and C.

    Returns:
        model, embedder, control, vlscore (mean over non-empty outputs). A model with fewer than two
        of those has no rows: there is nothing to exchange.
    """

    def score(image, truth, report):
        return score_cases(image, truth, report, settings.normalise, settings.max_area)

    rows = []
    for model, part in cases[~cases["empty"]].groupby("model", sort=False):
        if len(part) < 2:
            continue
        found = control_scores(*space.corners(part), space.blank, score)
        head = {"model": model, "embedder": name}
        rows += [
            head | {"control": control, "vlscore": scores["vlscore"].mean()}
            for control, scores in found.items()
        ]
    found = pd.DataFrame(rows, columns=["model", "embedder", "control", "vlscore"])
    return found.astype({"vlscore": float})


def side_correlations(cases: pd.DataFrame, space: Space) -> dict[str, float]:
    """Return what the area follows, over all non-empty outputs: see `vlscore.what_moves_it`.

    Args:
        cases: From `join_cases`.
        space: From `embed`.
    """
    said = cases[~cases["empty"]]
    if said.empty:
        return dict.fromkeys(("text_text", "image_truth", "image_report"), float("nan"))
    return what_moves_it(*space.corners(said))


def summarise(scores: pd.DataFrame, stats: Stats, seed: int) -> pd.DataFrame:
    """Return one row a model and embedder, in the order of `scores`.

    Args:
        scores: From `score_models`, embedders one below the other.
        stats: Resamples and level.
        seed: Of the resampling.

    Returns:
        model, embedder, cases, mean, low, high (interval by patient), sd (over cases, n - 1),
        area_mean (over non-empty outputs), empty and truncated (shares).
    """
    rows = []
    for (model, embedder), part in scores.groupby(["model", "embedder"], sort=False):
        mean = mean_interval(part, "patient_id", "vlscore", stats.n_resamples, seed, stats.level)
        rows.append(
            {"model": model, "embedder": embedder, "cases": len(part)}
            | {"mean": mean.value, "low": mean.low, "high": mean.high}
            | {"sd": part["vlscore"].std(), "area_mean": part["area"].mean()}
            | {"empty": part["empty"].mean(), "truncated": part["truncated"].mean()}
        )
    return pd.DataFrame(rows)


def table3(summary: pd.DataFrame, printed: pd.DataFrame, embedders: Iterable[str]) -> pd.DataFrame:
    """Lay a summary out as the paper's Table 3, with the paper's figures beside.

    Args:
        summary: From `summarise`.
        printed: `report.paper_table("table3_vlscore")`.
        embedders: Keys, in the order of the table.

    Returns:
        One row a model and embedder: every model of the study, `not run` where it has no rows, and
        a missing value where the paper has none.
    """
    ours = summary.set_index(["model", "embedder"])
    paper = printed.set_index(["model", "embedder"])
    rows = []
    for model, name in MODEL_NAMES.items():
        for embedder in embedders:
            key, shown = (model, embedder), EMBEDDER_NAMES[embedder]
            row = {"Model": name, "Embedder": shown, "VLScore (interval)": NOT_RUN}
            if key in ours.index:
                x = ours.loc[key]
                row["VLScore (interval)"] = estimate_cell(x["mean"], x["low"], x["high"])
                row |= {"SD": x["sd"], "Area T": x["area_mean"], "Empty": x["empty"]}
                row |= {"Truncated": x["truncated"], "Cases": int(x["cases"])}
            if (name, shown) in paper.index:
                row["Paper mean"], row["Paper SD"] = paper.loc[(name, shown), ["mean", "sd"]]
            rows.append(row)
    columns = ["Model", "Embedder", "Cases", "VLScore (interval)", "SD", "Area T", "Empty"]
    table = pd.DataFrame(rows, columns=[*columns, "Truncated", "Paper mean", "Paper SD"])
    return table.astype({"Cases": "Int64"})
