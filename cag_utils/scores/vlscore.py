"""VLScore: the triangle between a picture, its true report and a generated one (Equations 1, 2).

The paper prints Equation 1 without a square root and a one half that a triangle's area needs; with
i, g and r the embeddings of image, ground truth and report, the area is

    T = 1/2 sqrt(|i-g|^2 |i-r|^2 - <i-g, i-r>^2)        VLScore = max(1 - T/C, 0)

C is "the theoretical maximum area", without a value or a normalisation. Both are parameters here,
and the raw area always stands beside the score.

An empty output says nothing that could be close to anything: it has no area, and its VLScore is 0,
so that silence never pays. A refusal is a text and is scored as one, as the paper's models were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image
from scipy.stats import spearmanr

from cag_utils.profiles import Stats, Vlscore
from cag_utils.report import MODEL_NAMES, estimate_cell
from cag_utils.scores.floors import in_order, name_of
from cag_utils.scores.scorecard import cases_of
from cag_utils.stats import mean_interval

if TYPE_CHECKING:  # it brings torch, which the arithmetic here can do without
    from cag_utils.scores.embedders import Embedder

MAX_AREA_UNIT = 3 * 3**0.5 / 4  # an equilateral triangle on a great circle: unit vectors
BLANK = np.full((512, 512), 128, np.uint8)  # a picture without content: even grey


def to_unit(vectors: np.ndarray) -> np.ndarray:
    """Scale (n, d) vectors to length 1, float64.

    Raises:
        ValueError: A vector is zero and has no direction.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if (length == 0).any():
        raise ValueError(f"{int((length == 0).sum())} vectors are zero and have no direction")
    return vectors / length


def triangle_area(image: np.ndarray, truth: np.ndarray, report: np.ndarray) -> np.ndarray:
    """Return the areas of n triangles, Equation 1, as (n,) float64, 0 or more.

    Anchored at the truth, the corner that lies next to the report: squares of the small side enter
    as they are, not as the difference of two large ones. In float32 the printed form lost a true
    area of 7e-5 altogether; here the sums are float64, and rounding below zero is clamped.

    Args:
        image: (n, d) embeddings of the pictures.
        truth: (n, d) of the true reports.
        report: (n, d) of the generated reports.

    Raises:
        ValueError: The shapes differ, or a number is not finite.
    """
    i, g, r = (np.asarray(x, dtype=np.float64) for x in (image, truth, report))
    if not (i.shape == g.shape == r.shape and i.ndim == 2):
        shapes = f"{i.shape}, {g.shape}, {r.shape}"
        raise ValueError(f"image, truth and report need one shape (n, d), got {shapes}")
    if not all(np.isfinite(x).all() for x in (i, g, r)):
        raise ValueError("an embedding holds NaN or infinity: leave the case out and count it")
    a, b = i - g, r - g
    aa, bb, ab = (np.einsum("nd,nd->n", x, y) for x, y in ((a, a), (b, b), (a, b)))
    return 0.5 * np.sqrt(np.maximum(aa * bb - ab**2, 0.0))


def vlscore(area: np.ndarray, max_area: float = MAX_AREA_UNIT) -> np.ndarray:
    """Return Equation 2 for each area: 1 is a triangle without area, 0 one of `max_area` or more.

    Args:
        area: Any shape, 0 or more.
        max_area: C. For unit vectors the theoretical maximum is 1.299, or 0.866 if no cosine is
            below 0. The original metric takes the largest area seen, per embedder.

    Raises:
        ValueError: `max_area` is not positive, or an area is negative.

    Source:
        Dawidowicz, Hirsch and Tal, NeurIPS 2024; CAG-VLM section 4.1, Equation 2.
    """
    area = np.asarray(area, dtype=np.float64)
    if max_area <= 0:
        raise ValueError(f"max_area (C) must be positive, got {max_area}")
    if (area < 0).any():
        raise ValueError(f"an area cannot be negative, got {area.min()}")
    return np.maximum(1 - area / max_area, 0.0)


def score_cases(
    image: np.ndarray,
    truth: np.ndarray,
    report: np.ndarray,
    normalise: bool = True,
    max_area: float = MAX_AREA_UNIT,
) -> pd.DataFrame:
    """Return `area` and `vlscore` of n cases, in order, from the corners of `triangle_area`.

    Each embedding is scaled to length 1 first if `normalise`; `max_area` is C.
    """
    if normalise:
        image, truth, report = to_unit(image), to_unit(truth), to_unit(report)
    area = triangle_area(image, truth, report)
    return pd.DataFrame({"area": area, "vlscore": vlscore(area, max_area)})


@dataclass(frozen=True)
class Space:
    """One embedder's vectors of everything a study scores, each computed once."""

    images: Mapping[str, np.ndarray]  # case to (d,) vector of its picture
    texts: Mapping[str, np.ndarray]  # text to (d,) vector
    truncated: frozenset[str]  # texts that lost their end
    blank: np.ndarray  # (d,) vector of an even grey picture

    def corners(self, cases: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return pictures, truths and outputs of non-empty cases: three (n, d) arrays."""
        image = np.stack([self.images[case] for case in cases["case_id"]])
        truth, output = (
            np.stack([self.texts[text] for text in cases[column]])
            for column in ("ground_truth", "output")
        )
        return image, truth, output


def join_cases(generations: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Give every generation of 05's table its patient and picture, from 03's.

    Returns:
        case_id, patient_id, png, model, output ("" where empty), ground_truth, empty (bool).

    Raises:
        ValueError: As `cases_of`, or a truth is empty.
    """
    rows = cases_of(generations, pairs)[["patient_id", "png"]].reset_index()
    cases = generations.merge(rows, "left", "case_id", validate="many_to_one")
    if cases["ground_truth"].fillna("").str.strip().eq("").any():
        raise ValueError("a case has no ground truth to be scored against: mend pairs.csv")
    cases["output"] = cases["output"].fillna("").astype(str)
    cases["empty"] = (cases["status"] == "empty") | (cases["output"].str.strip() == "")
    return cases[["case_id", "patient_id", "png", "model", "output", "ground_truth", "empty"]]


def embed(embedder: Embedder, cases: pd.DataFrame, folder: Path) -> Space:
    """Embed every picture and every distinct text: models repeat themselves and each other.

    `cases` come from `join_cases`, and their `png` is relative to `folder`.
    """
    pictures = cases.drop_duplicates("case_id")
    files = [Image.open(folder / png) for png in pictures["png"]]
    said = cases.loc[~cases["empty"], "output"]
    texts = sorted({*said, *cases["ground_truth"]})
    cut = embedder.truncated(texts)
    return Space(
        images=dict(zip(pictures["case_id"], embedder.images(files), strict=True)),
        texts=dict(zip(texts, embedder.texts(texts), strict=True)),
        truncated=frozenset(text for text, lost in zip(texts, cut, strict=True) if lost),
        blank=embedder.images([BLANK])[0],
    )


def score_models(cases: pd.DataFrame, space: Space, name: str, settings: Vlscore) -> pd.DataFrame:
    """Score every case of every model in one embedder's space.

    Args:
        cases: From `join_cases`.
        space: From `embed`.
        name: The embedder's key.

    Returns:
        case_id, patient_id, model, embedder, area (NaN for an empty output), vlscore (0 for one),
        truncated (whether output or truth lost its end), empty; in the order of `cases`.
    """
    rows = cases[["case_id", "patient_id", "model"]].assign(embedder=name, area=np.nan, vlscore=0.0)
    said = ~cases["empty"]
    if said.any():
        corners = space.corners(cases[said])
        found = score_cases(*corners, settings.normalise, settings.max_area)
        rows.loc[said, ["area", "vlscore"]] = found.to_numpy()
    cut = cases[["output", "ground_truth"]].isin(space.truncated).any(axis=1)
    return rows.assign(truncated=cut, empty=cases["empty"])


def score_controls(cases: pd.DataFrame, space: Space, name: str, settings: Vlscore) -> pd.DataFrame:
    """Score each model's reports again beside wrong and blank pictures, and wrong reports.

    A score that reads the picture must fall with the wrong picture; one that reads the report must
    fall with the wrong report. Cases are shifted by half their number, so each gets another one's.
    The arguments are those of `score_models`.

    Returns:
        model, embedder, control, vlscore (mean over non-empty outputs). A model with fewer than two
        of those has no rows: there is nothing to exchange.
    """
    rows = []
    for model, part in cases[~cases["empty"]].groupby("model", sort=False):
        if len(part) < 2:
            continue
        image, truth, report = space.corners(part)
        other = np.roll(np.arange(len(part)), len(part) // 2)
        controls = {
            "as written": (image, truth, report),
            "shuffled images": (image[other], truth, report),
            "blank image": (np.broadcast_to(space.blank, image.shape), truth, report),
            "shuffled reports": (image, truth, report[other]),
        }
        for control, corners in controls.items():
            found = score_cases(*corners, settings.normalise, settings.max_area)
            rows.append((model, name, control, found["vlscore"].mean()))
    table = pd.DataFrame(rows, columns=["model", "embedder", "control", "vlscore"])
    return table.astype({"vlscore": float})


def side_correlations(cases: pd.DataFrame, space: Space) -> dict[str, float]:
    """Return Spearman's correlation of the area with the cosines of the triangle's three sides.

    Empty outputs are left out of `cases` (from `join_cases`).

    Returns:
        `text_text` (truth with report), `image_truth` and `image_report`: -1 to 1, NaN where one of
        the two does not vary. Near -1 for text_text means: the score is a distance between texts.
    """
    found = dict.fromkeys(("text_text", "image_truth", "image_report"), float("nan"))
    said = cases[~cases["empty"]]
    if len(said) < 3:
        return found
    i, g, r = map(to_unit, space.corners(said))
    area = triangle_area(i, g, r)
    for name, (a, b) in zip(found, ((g, r), (i, g), (i, r)), strict=True):
        cosine = (a * b).sum(1)
        if np.ptp(area) and np.ptp(cosine):
            found[name] = float(spearmanr(area, cosine).statistic)
    return found


def summarise_vlscores(scores: pd.DataFrame, stats: Stats, seed: int) -> pd.DataFrame:
    """Return one row a model and embedder, in the order of `scores` (from `score_models`).

    Returns:
        model, embedder, cases, mean, low, high (interval by patient), sd (over cases, n - 1),
        area_mean (over non-empty outputs), empty and truncated (shares).
    """
    rows = []
    for (model, embedder), part in scores.groupby(["model", "embedder"], sort=False):
        mean = mean_interval(part, "patient_id", "vlscore", *stats.draws(seed))
        rows.append(
            {"model": model, "embedder": embedder, "cases": len(part)}
            | {"mean": mean.value, "low": mean.low, "high": mean.high}
            | {"sd": part["vlscore"].std(), "area_mean": part["area"].mean()}
            | {"empty": part["empty"].mean(), "truncated": part["truncated"].mean()}
        )
    return pd.DataFrame(rows)


def table3(summary: pd.DataFrame, printed: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """Lay a summary out as the paper's Table 3, with the paper's figures beside.

    Every model of the study has a row an embedder: `not run`, or a missing value of the paper's;
    floors and ceilings follow.

    Args:
        summary: From `summarise_vlscores`.
        printed: `report.paper_table("table3_vlscore")`.
        titles: Embedder to its name in the table and in the paper's, in the order of the table.
    """
    ours = summary.set_index(["model", "embedder"])
    paper = printed.set_index(["model", "embedder"])
    rows = []
    for model in in_order([*MODEL_NAMES, *summary["model"]]):
        for embedder, shown in titles.items():
            key, name = (model, embedder), name_of(model)
            row = {"Model": name, "Embedder": shown, "VLScore (interval)": "not run"}
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
