"""F1s with intervals by class and by group of frames: view, contrast, noise."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import joblib
import numpy as np
import pandas as pd

from cag_utils.labels import MERGES, SIX_CLASSES, decide
from cag_utils.networks import fit_picture
from cag_utils.phantom.captions import name_view
from cag_utils.phantom.realism import flat_patches, open_field
from cag_utils.profiles import Stats
from cag_utils.stats import Estimate

WORK_PX = 256  # darkening is measured on this square, so that it does not depend on the matrix
SMOOTH_PX = 1.0  # Gaussian against noise; choice
DISK_PX = 13  # wider than any vessel (5 % of the picture), narrower than the heart; choice
DARKEST = 98  # percentile: vessels cover a few percent of a picture; choice
BORDER_PX = 17  # of the open field that is left out: the disk must not reach the shutter


def gather_answers(predictions: pd.DataFrame, frames: pd.DataFrame) -> pd.DataFrame:
    """Put a network's answers beside what notebook 00 knows of each frame.

    Args:
        predictions: Notebook 01's `predictions_test.csv`: patient_id, video_id, frame, label and
            `p_<class>`.
        frames: Notebook 00's `frames.csv`.

    Returns:
        The rows of `predictions`, in order, with the columns of `frames` and: the decided class for
        each of `MERGES`, predicted and confidence (of the six), view.

    Raises:
        ValueError: A predicted frame is not in `frames`.
    """
    probabilities = predictions[[f"p_{c}" for c in SIX_CLASSES]].set_axis(SIX_CLASSES, axis=1)
    answers = predictions[["patient_id", "video_id", "frame", "label"]].copy()
    for name, merge in MERGES.items():
        answers[name] = decide(probabilities, merge)
    answers["predicted"] = answers["six_class_f1"]
    answers["confidence"] = probabilities.max(axis=1)
    facts = frames.drop(columns=["patient_id", "exam_id"], errors="ignore")
    joined = answers.merge(facts, on=["video_id", "frame"], how="left", validate="one_to_one")
    if lost := int(joined["png"].isna().sum()):
        raise ValueError(f"{lost} predicted frames are not in frames.csv: rerun notebook 01")
    joined["view"] = name_views(joined["primary_angle_deg"], joined["secondary_angle_deg"])
    return joined


def draw_weights(patients: Sequence[str], n_resamples: int, seed: int) -> tuple:
    """Draw patients with replacement, as counts: sums over resamples become a matrix product.

    Args:
        patients: (n,) patient of each row.
        n_resamples: Bootstrap samples.
        seed: Of the resampling; the same draws as `stats.bootstrap_interval`'s.

    Returns:
        (n,) int number of each row's patient, and (n_resamples, patients) int, how often each
        patient was drawn.

    Raises:
        ValueError: There is no row, or a row has no patient.
    """
    codes, names = pd.factorize(np.asarray(patients, dtype=object), sort=True)
    if not len(codes) or (codes < 0).any():
        raise ValueError(f"each of the {len(codes)} rows needs a patient, and there must be rows")
    drawn = np.random.default_rng(seed).integers(len(names), size=(n_resamples, len(names)))
    weights = np.zeros((n_resamples, len(names)), int)
    np.add.at(weights, (np.arange(n_resamples)[:, None], drawn), 1)
    return codes, weights


def bracket(value: float, samples: np.ndarray, level: float) -> Estimate:
    """Return a value with its percentile interval, all NaN where the value is undefined.

    Args:
        value: The statistic of all rows.
        samples: (n,) the statistic of each bootstrap sample; undefined ones are left out.
        level: Confidence level, between 0 and 1.

    Returns:
        The interval is widened to hold the value, as `stats.bootstrap_interval` does.
    """
    defined = samples[np.isfinite(samples)]
    if not np.isfinite(value) or not len(defined):
        return Estimate(*[float("nan")] * 3)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(value), min(float(value), float(low)), max(float(value), float(high)))


def score_classes(answers: pd.DataFrame, name: str, stats: Stats, seed: int) -> pd.DataFrame:
    """Score each class and the weighted mean, with a bootstrap over patients.

    Args:
        answers: patient_id, label (one of the six) and the column `name`, the decided class.
        name: One of `MERGES`.
        stats: Number of resamples and level.
        seed: Of the resampling.

    Returns:
        One row a class and a last one "weighted": class, precision, recall, f1, low, high, n (true
        frames). All are NaN for a class without a true frame, precision also for one that was
        never said.

    Raises:
        ValueError: As `draw_weights`, or a label or an answer is unknown.
    """
    classes = list(dict.fromkeys(MERGES[name].values()))
    number = {label: i for i, label in enumerate(classes)}
    true, said = answers["label"].map(MERGES[name]).map(number), answers[name].map(number)
    if true.isna().any() or said.isna().any():
        raise ValueError(f"labels and answers must be among {sorted(MERGES[name])} and {classes}")
    codes, weights = draw_weights(answers["patient_id"], stats.n_resamples, seed)
    k = len(classes)
    counts = np.zeros((codes.max() + 1, k, k))
    np.add.at(counts, (codes, true.to_numpy(int), said.to_numpy(int)), 1)
    total = counts.sum(0)
    value, samples = _f1s(total), _f1s(np.tensordot(weights, counts, 1))
    rows = [bracket(value[i], samples[:, i], stats.level) for i in range(k + 1)]
    table = pd.DataFrame(rows, columns=["f1", "low", "high"])
    hit, n_true, n_said = np.diag(total), total.sum(1), total.sum(0)
    seen = np.where(n_true > 0, 1.0, np.nan)
    with np.errstate(invalid="ignore"):
        table.insert(0, "precision", [*(hit / n_said * seen), np.nan])
        table.insert(1, "recall", [*(hit / n_true), np.nan])
    table.insert(0, "class", [*classes, "weighted"])
    return table.assign(n=[*n_true.astype(int), int(n_true.sum())])


def _f1s(confusion: np.ndarray) -> np.ndarray:
    """F1 of each class and, last, weighted: (..., k, k) to (..., k + 1); NaN without a frame."""
    true, said = confusion.sum(-1), confusion.sum(-2)
    hit = np.diagonal(confusion, axis1=-2, axis2=-1)
    with np.errstate(invalid="ignore"):
        f1 = np.where(true > 0, 2 * hit / (true + said), np.nan)
        mean = np.nansum(f1 * true, -1) / true.sum(-1)
    return np.concatenate([f1, mean[..., None]], -1)


def score_groups(
    answers: pd.DataFrame, columns: Sequence[str], stats: Stats, seed: int
) -> pd.DataFrame:
    """Score the groups that some columns make, each column by itself.

    Args:
        answers: As for `score_classes`, with `six_class_f1`, `laterality_f1` and the columns; a
            missing value belongs to no group. Categories keep their order.
        columns: Columns to group by.
        stats: Number of resamples and level.
        seed: Of the resampling.

    Returns:
        One row a group and F1: by, group, f1_name, f1, low, high, frames, patients.
    """
    rows = []
    for column in columns:
        for group, own in answers.groupby(column, observed=True):
            sizes = {"frames": len(own), "patients": own["patient_id"].nunique()}
            for name in ("six_class_f1", "laterality_f1"):
                last = score_classes(own, name, stats, seed).iloc[-1]
                scores = {"f1_name": name} | last[["f1", "low", "high"]].to_dict()
                rows.append({"by": column, "group": str(group)} | scores | sizes)
    columns_out = ["by", "group", "f1_name", "f1", "low", "high", "frames", "patients"]
    return pd.DataFrame(rows, columns=columns_out)


def cut_thirds(values: pd.Series) -> pd.Series:
    """Cut numbers into thirds of about equal size, named by their range.

    Args:
        values: Numbers; missing ones stay missing.

    Returns:
        Ordered categories such as `1: 3.1 to 4.5`; fewer than three where many values are equal.
    """
    cut = pd.qcut(values, 3, duplicates="drop").cat.remove_unused_categories()
    ends = [(own.min(), own.max()) for _, own in values.groupby(cut, observed=True)]
    names = [f"{k}: {low:.2g} to {high:.2g}" for k, (low, high) in enumerate(ends, 1)]
    return cut.cat.rename_categories(names)


def name_views(primary_deg: pd.Series, secondary_deg: pd.Series) -> pd.Series:
    """Name each frame's projection by its positioner angles.

    Args:
        primary_deg: DICOM PositionerPrimaryAngle, degrees, positive towards LAO.
        secondary_deg: DICOM PositionerSecondaryAngle, degrees, positive cranial.

    Returns:
        E.g. `LAO cranial`, `AP caudal`, `RAO`; within 10 degrees counts as none. "unknown" where
        the header had no angle.
    """
    known = primary_deg.notna() & secondary_deg.notna()
    angles = zip(primary_deg, secondary_deg, known, strict=True)
    names = [name_view(a, b) if fine else "unknown" for a, b, fine in angles]
    return pd.Series(names, index=primary_deg.index)


def measure_stills(paths: Sequence[Path], n_workers: int = 2) -> pd.DataFrame:
    """Measure noise and darkening of stills from the pictures alone.

    Noise is the median standard deviation of the flattest patches of the open field. Darkening
    says how much darker than beside it the darkest narrow structures are: the 98th percentile of
    the black-hat (closing less picture) with a disk of 5 % of the picture. A catheter, a wire or
    a clip counts too: it is what a reader sees as contrast, not a measure of iodine.

    Args:
        paths: 8-bit grey stills, at least 64 px a side.
        n_workers: Threads; the result does not depend on it.

    Returns:
        One row a still: noise (grey levels, standard deviation) and darkening (grey levels, 0 to
        255); both NaN for a still without an open field to speak of.

    Raises:
        ValueError: A still is missing or is no picture.

    Source:
        Black-hat: Serra, Image Analysis and Mathematical Morphology, 1982. Noise as in appendix
        A1 (`phantom.realism.flat_patches`).
    """
    jobs = (joblib.delayed(_measure)(path) for path in paths)
    rows = joblib.Parallel(n_jobs=n_workers, prefer="threads")(jobs)
    return pd.DataFrame(rows, columns=["noise", "darkening"])


def _measure(path: Path) -> tuple[float, float]:
    found = Path(path).is_file()  # cv2.imread does not take non-ASCII paths on Windows
    picture = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_GRAYSCALE) if found else None
    if picture is None:
        raise ValueError(f"{path} is {'no picture' if found else 'missing'}; need an 8-bit still")
    field = open_field(picture)
    inner = cv2.resize(field.astype(np.uint8), (WORK_PX, WORK_PX), interpolation=cv2.INTER_NEAREST)
    inner = cv2.erode(np.pad(inner, 1), np.ones((2 * BORDER_PX + 1,) * 2))[1:-1, 1:-1] > 0
    try:
        noise = float(np.median(flat_patches(picture, field).std(axis=(1, 2))))
    except ValueError:  # no flat patch: all shutter, or clipped to black and white
        return np.nan, np.nan
    if not inner.any():
        return noise, np.nan
    smooth = cv2.GaussianBlur(fit_picture(picture, WORK_PX), (0, 0), SMOOTH_PX).astype(np.float32)
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (DISK_PX, DISK_PX))
    hat = cv2.morphologyEx(smooth, cv2.MORPH_BLACKHAT, disk)
    return noise, float(np.percentile(hat[inner], DARKEST))
