"""VLScore: the triangle between a picture, its true report and a generated one (Equations 1, 2).

The paper prints Equation 1 without a square root and a one half that a triangle's area needs; with
i, g and r the embeddings of image, ground truth and report, the area is

    T = 1/2 sqrt(|i-g|^2 |i-r|^2 - <i-g, i-r>^2)        VLScore = max(1 - T/C, 0)

C is "the theoretical maximum area", without a value or a normalisation. Both are parameters here,
and the raw area always stands beside the score.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

MAX_AREA_UNIT = 3 * 3**0.5 / 4  # an equilateral triangle on a great circle: unit vectors


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
    """Return the areas of n triangles, Equation 1.

    Anchored at the truth, the corner that lies next to the report: squares of the small side enter
    as they are, not as the difference of two large ones. In float32 the printed form lost a true
    area of 7e-5 altogether; here the sums are float64, and rounding below zero is clamped.

    Args:
        image: (n, d) embeddings of the pictures.
        truth: (n, d) of the true reports.
        report: (n, d) of the generated reports.

    Returns:
        (n,) float64, 0 or more.

    Raises:
        ValueError: The shapes differ, or a number is not finite.
    """
    i, g, r = (np.asarray(x, dtype=np.float64) for x in (image, truth, report))
    if not (i.shape == g.shape == r.shape and i.ndim == 2):
        raise ValueError(
            f"image, truth and report need one shape (n, d), got {i.shape}, {g.shape}, {r.shape}"
        )
    if not all(np.isfinite(x).all() for x in (i, g, r)):
        raise ValueError("an embedding holds NaN or infinity: leave the case out and count it")
    to_image, to_report = i - g, r - g
    squares = np.einsum("nd,nd->n", to_image, to_image) * np.einsum(
        "nd,nd->n", to_report, to_report
    )
    inner = np.einsum("nd,nd->n", to_image, to_report)
    return 0.5 * np.sqrt(np.maximum(squares - inner**2, 0.0))


def vlscore(area: np.ndarray, max_area: float = MAX_AREA_UNIT) -> np.ndarray:
    """Return Equation 2 for each area: 1 is a triangle without area, 0 one of `max_area` or more.

    Args:
        area: Any shape, 0 or more.
        max_area: C. For unit vectors the theoretical maximum is 1.299; if all cosines are at least
            0 it is 0.866. The original metric takes the largest area seen, per embedder.

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
    """Score n cases.

    Args:
        image: (n, d) embeddings of the pictures.
        truth: (n, d) of the true reports.
        report: (n, d) of the generated reports.
        normalise: Scale each embedding to length 1 first.
        max_area: C.

    Returns:
        `area` and `vlscore`, one row a case, in order.
    """
    if normalise:
        image, truth, report = to_unit(image), to_unit(truth), to_unit(report)
    area = triangle_area(image, truth, report)
    return pd.DataFrame({"area": area, "vlscore": vlscore(area, max_area)})


def control_scores(
    image: np.ndarray,
    truth: np.ndarray,
    report: np.ndarray,
    blank: np.ndarray,
    score: Callable[..., pd.DataFrame] = score_cases,
) -> dict[str, pd.DataFrame]:
    """Score the same reports beside pictures and reports that do not belong to them.

    A score that reads the picture must fall with the wrong picture; one that reads the report must
    fall with the wrong report. Cases are shifted by half their number, so each gets another one's.

    Args:
        image: (n, d), at least two cases.
        truth: (n, d).
        report: (n, d).
        blank: (d,) embedding of a picture without content.
        score: `score_cases` with the study's normalisation and C.

    Returns:
        Scores by control: as written, shuffled images, blank image, shuffled reports.

    Raises:
        ValueError: Fewer than two cases: nothing can be exchanged.
    """
    n = len(image)
    if n < 2:
        raise ValueError(f"controls exchange cases and need at least 2, got {n}")
    other = np.roll(np.arange(n), n // 2)
    return {
        "as written": score(image, truth, report),
        "shuffled images": score(np.asarray(image)[other], truth, report),
        "blank image": score(np.broadcast_to(blank, np.shape(image)), truth, report),
        "shuffled reports": score(image, truth, np.asarray(report)[other]),
    }


def what_moves_it(image: np.ndarray, truth: np.ndarray, report: np.ndarray) -> dict[str, float]:
    """Return Spearman's correlation of the area with the three sides' cosines.

    Args:
        image: (n, d).
        truth: (n, d).
        report: (n, d).

    Returns:
        `text_text` (truth with report), `image_truth` and `image_report`: -1 to 1, NaN where one of
        the two does not vary. Near -1 for text_text means: the score is a distance between texts.
    """
    i, g, r = to_unit(image), to_unit(truth), to_unit(report)
    area = triangle_area(i, g, r)
    pairs = {"text_text": (g, r), "image_truth": (i, g), "image_report": (i, r)}
    return {name: _spearman(area, (a * b).sum(1)) for name, (a, b) in pairs.items()}


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(spearmanr(a, b).statistic)
