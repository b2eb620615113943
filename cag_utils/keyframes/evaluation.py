"""How right a key-frame network is: F1s by class and group, calibration, the key frame a cine."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import joblib
import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from cag_utils.cines.dicom import name_view
from cag_utils.cines.stills import fit_picture, flat_patches, open_field, read_still
from cag_utils.corpus.pairs import choose_key_frames
from cag_utils.identity import study_id
from cag_utils.keyframes.labels import LATERALITY, MERGES, SIX_CLASSES, decide, merge_probabilities
from cag_utils.profiles import Stats
from cag_utils.stats import UNDEFINED, Estimate, cluster_bootstrap, mean_interval

WORK_PX = 256  # darkening is measured on this square, so that it does not depend on the matrix
SMOOTH_PX = 1.0  # Gaussian against noise; choice
DISK_PX = 13  # wider than any vessel (5 % of the picture), narrower than the heart; choice
DARKEST = 98  # percentile: vessels cover a few percent of a picture; choice
N_BINS = 15  # as Guo et al.
LEAST_P = 1e-12  # a probability of 0 has no logarithm
GROUP_COLUMNS = ["by", "group", "f1_name", "f1", "low", "high", "frames", "patients"]
BORDER_PX = 17  # of the open field that is left out: the disk must not reach the shutter


def gather_answers(predictions: pd.DataFrame, frames: pd.DataFrame) -> pd.DataFrame:
    """Put a network's answers beside what notebook 00 knows of each frame.

    Args:
        predictions: Notebook 01's `predictions_test.csv`.

    Returns:
        The rows of `predictions`, in order, with the columns of `frames` and: the decided class for
        each of `MERGES`, predicted and confidence (of the six), view (of `dicom.name_view`,
        unknown where the header had no angle).

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
    angles = joined[["primary_angle_deg", "secondary_angle_deg"]].to_numpy(float)
    joined["view"] = ["unknown" if np.isnan(pair).any() else name_view(*pair) for pair in angles]
    return joined


def score_classes(answers: pd.DataFrame, name: str, stats: Stats, seed: int) -> pd.DataFrame:
    """Score each class and the weighted mean, with a bootstrap over patients.

    Args:
        answers: patient_id, label (one of the six) and the column `name`, the decided class.
        name: One of `MERGES`.

    Returns:
        One row a class and a last one "weighted": class, precision, recall, f1, low, high, n (true
        frames). All are NaN without a true frame, precision also for a class never said.

    Raises:
        ValueError: As `stats.cluster_bootstrap`, or a label or an answer is unknown.
    """
    classes, cells = confusions(answers, name)
    rows = cluster_bootstrap(answers["patient_id"], cells, class_f1s, *stats.draws(seed))
    table, total = pd.DataFrame(rows).set_axis(["f1", "low", "high"], axis=1), cells.sum(0)
    hit, n_true, n_said = np.diag(total), total.sum(1), total.sum(0)
    seen = np.where(n_true > 0, 1.0, np.nan)
    with np.errstate(invalid="ignore"):
        table.insert(0, "precision", [*(hit / n_said * seen), np.nan])
        table.insert(1, "recall", [*(hit / n_true), np.nan])
    table.insert(0, "class", [*classes, "weighted"])
    return table.assign(n=[*n_true.astype(int), int(n_true.sum())])


def score_sides(predictions: pd.DataFrame, stats: Stats, seed: int) -> dict[str, Estimate]:
    """Score the side as other studies do, with a bootstrap over patients.

    Args:
        predictions: patient_id, label and the six `p_<class>`, one row a frame.

    Returns:
        `laterality_macro_f1`, the plain mean of both sides' F1, and `laterality_auc`, of the summed
        probability of the left classes; each in [0, 1], NaN where only one side is there.
    """
    probabilities = predictions[[f"p_{c}" for c in SIX_CLASSES]].set_axis(SIX_CLASSES, axis=1)
    left = predictions["label"].map(LATERALITY).to_numpy() == "LCA"
    said = decide(probabilities, LATERALITY) == "LCA"
    p_left = merge_probabilities(probabilities, LATERALITY)["LCA"].to_numpy()
    whose, names = pd.factorize(predictions["patient_id"])
    cells = np.zeros((len(left), 2, 2))
    cells[np.arange(len(left)), left.astype(int), said.astype(int)] = 1
    first = np.zeros((len(left), len(names)))  # sums are how often each patient was drawn
    first[np.unique(whose, return_index=True)[1], np.arange(len(names))] = 1

    def auc(drawn: np.ndarray) -> float:
        weights = drawn[whose]
        if len(set(left[weights > 0])) < 2:
            return float("nan")
        return float(roc_auc_score(left, p_left, sample_weight=weights))

    figures = {
        "laterality_macro_f1": (cells, lambda sums: class_f1s(sums)[..., :2].mean(-1)),
        "laterality_auc": (first, lambda sums: np.apply_along_axis(auc, -1, sums)),
    }
    return {
        name: cluster_bootstrap(predictions["patient_id"], *asked, *stats.draws(seed))[0]
        for name, asked in figures.items()
    }


def f1_difference(
    answers: pd.DataFrame, first: str, second: str, stats: Stats, seed: int
) -> Estimate:
    """Estimate the weighted F1 of `first` - that of `second` (of `MERGES`) on the same frames.

    The other arguments, and the errors, are those of `score_classes`.
    """
    one, other = (confusions(answers, name)[1] for name in (first, second))
    cells = np.concatenate([x.reshape(len(answers), -1) for x in (one, other)], 1)
    n = one[0].size

    def difference(sums: np.ndarray) -> np.ndarray:
        parts = (sums[..., :n], one.shape[1:]), (sums[..., n:], other.shape[1:])
        f1s = [class_f1s(x.reshape(*x.shape[:-1], *shape))[..., -1] for x, shape in parts]
        return f1s[0] - f1s[1]

    return cluster_bootstrap(answers["patient_id"], cells, difference, *stats.draws(seed))[0]


def confusions(answers: pd.DataFrame, name: str) -> tuple[list[str], np.ndarray]:
    """Return the k classes of one of `MERGES` and each frame's own (k, k) confusion."""
    classes = list(dict.fromkeys(MERGES[name].values()))
    number = {label: i for i, label in enumerate(classes)}
    true, said = answers["label"].map(MERGES[name]).map(number), answers[name].map(number)
    if true.isna().any() or said.isna().any():
        raise ValueError(f"labels and answers must be among {sorted(MERGES[name])} and {classes}")
    cells = np.zeros((len(answers), len(classes), len(classes)))
    cells[np.arange(len(answers)), true.to_numpy(int), said.to_numpy(int)] = 1
    return classes, cells


def class_f1s(confusion: np.ndarray) -> np.ndarray:
    """Compute the F1 of each class and, last, their mean weighted by true counts, as scikit-learn.

    Args:
        confusion: (..., k, k) counts, row the true class, column the decided one.

    Returns:
        (..., k + 1) in [0, 1]; NaN for a class without a true frame, the mean without any frame.
    """
    true, said = confusion.sum(-1), confusion.sum(-2)
    hit = np.diagonal(confusion, axis1=-2, axis2=-1)
    with np.errstate(invalid="ignore"):
        f1 = np.where(true > 0, 2 * hit / (true + said), np.nan)
        mean = np.nansum(f1 * true, -1) / true.sum(-1)
    return np.concatenate([f1, mean[..., None]], -1)


def score_groups(
    answers: pd.DataFrame, columns: Sequence[str], stats: Stats, seed: int
) -> pd.DataFrame:
    """Score the groups that each of some columns makes, as `score_classes` does.

    Args:
        answers: As there, with the columns; a missing value belongs to no group.
        columns: Columns to group by; categories keep their order.

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
    return pd.DataFrame(rows, columns=GROUP_COLUMNS)


def cut_thirds(values: pd.Series) -> pd.Series:
    """Cut numbers into thirds of about equal size, ordered categories such as `1: 3.1 to 4.5`.

    Missing values stay missing; where many are equal there are fewer than three categories.
    """
    cut = pd.qcut(values, 3, duplicates="drop").cat.remove_unused_categories()
    ends = [(own.min(), own.max()) for _, own in values.groupby(cut, observed=True)]
    names = [f"{k}: {low:.2g} to {high:.2g}" for k, (low, high) in enumerate(ends, 1)]
    return cut.cat.rename_categories(names)


def measure_stills(paths: Sequence[Path]) -> pd.DataFrame:
    """Measure noise and darkening of stills from the pictures alone.

    Noise is the median standard deviation of the flattest patches of the open field; darkening the
    98th percentile of the black-hat (closing less picture) with a disk of 5 % of the picture. A
    catheter or a wire darkens too: it is what a reader sees as contrast, no measure of iodine.

    Args:
        paths: 8-bit grey stills, at least 64 px a side.

    Returns:
        One row a still: noise (grey levels, standard deviation) and darkening (grey levels, 0 to
        255); both NaN for a still without an open field to speak of.

    Raises:
        Unreadable: A still is missing or is no picture.

    Source:
        Black-hat: Serra, Image Analysis and Mathematical Morphology, 1982.
    """
    jobs = (joblib.delayed(_measure)(path) for path in paths)
    rows = joblib.Parallel(n_jobs=2, prefer="threads")(jobs)
    return pd.DataFrame(rows, columns=["noise", "darkening"])


def _measure(path: Path) -> tuple[float, float]:
    picture = read_still(path)
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


class Reliability(NamedTuple):
    """How often a network is right at each confidence.

    `bins` has one row a bin that holds frames: from_confidence, to_confidence, n, confidence
    (mean), right (share), low, high (its interval).
    """

    bins: pd.DataFrame
    ece: Estimate  # expected calibration error, 0 to 1


def reliability(
    confidence: Sequence[float],
    right: Sequence[bool],
    patients: Sequence[str],
    stats: Stats,
    seed: int,
    n_bins: int = N_BINS,
) -> Reliability:
    """Compare confidence with the share of right answers.

    ECE is top-label and of equal width (a bin's upper edge belongs to it). Chance alone makes it
    larger than 0, and a bootstrap adds chance: it leans upwards.

    Args:
        confidence: (n,) probability of the answer given, 0 to 1.
        right: (n,) whether it was right.
        patients: (n,) whose frame; patients are resampled, not frames.

    Raises:
        ValueError: There are no frames, lengths differ, or a confidence lies outside 0 to 1.

    Source:
        Naeini et al., AAAI 2015; Guo et al., ICML 2017, equation 3.
    """
    p, hit = np.asarray(confidence, float), np.asarray(right, float)
    if not len(p) or not len(p) == len(hit) == len(patients):
        raise ValueError(f"{len(p)} confidences, {len(hit)} answers, {len(patients)} patients")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("a confidence must lie between 0 and 1; logits are none")
    where = np.clip(np.ceil(p * n_bins).astype(int) - 1, 0, n_bins - 1)
    values = np.zeros((len(p), 3, n_bins))
    values[np.arange(len(p)), :, where] = np.column_stack([np.ones_like(p), p, hit])
    gaps, *means = cluster_bootstrap(patients, values, _ece_and_means, *stats.draws(seed))
    sure, shares = means[:n_bins], means[n_bins:]
    n = values[:, 0].sum(0).astype(int)
    rows = [
        (i / n_bins, (i + 1) / n_bins, n[i], sure[i].value, *shares[i]) for i in np.flatnonzero(n)
    ]
    columns = ["from_confidence", "to_confidence", "n", "confidence", "right", "low", "high"]
    return Reliability(pd.DataFrame(rows, columns=columns), gaps)


def _ece_and_means(sums: np.ndarray) -> np.ndarray:
    """From (..., 3, bins) frames, confidence, right: ECE, mean confidences, shares right."""
    n, said, right = np.moveaxis(sums, -2, 0)
    ece = np.abs(said - right).sum(-1) / n.sum(-1)
    return np.concatenate([ece[..., None], said / n, right / n], -1)


def read_temperature(predictions_val: Path) -> float | None:
    """Fit a temperature on notebook 01's validation predictions; None if there are none."""
    table = pd.read_csv(predictions_val) if predictions_val.exists() else pd.DataFrame()
    if table.empty:
        return None
    truth = table["label"].map(SIX_CLASSES.index).to_numpy()
    return fit_temperature(table[[f"p_{c}" for c in SIX_CLASSES]].to_numpy(), truth)


def fit_temperature(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Find the temperature, 0.05 to 20, that makes the true classes likeliest.

    Args:
        probabilities: (n, k) of the validation frames, rows adding up to 1.
        truth: (n,) int, the true class's column.

    Raises:
        ValueError: There are no frames, or lengths differ.

    Source:
        Guo et al., ICML 2017, section 4.2.
    """
    if not len(probabilities) or len(probabilities) != len(truth):
        raise ValueError(f"{len(probabilities)} predictions, {len(truth)} labels; need n = n > 0")
    rows = np.arange(len(truth))

    def loss(log_temperature: float) -> float:
        warmed = apply_temperature(probabilities, np.exp(log_temperature))
        return -np.log(np.maximum(warmed[rows, truth], LEAST_P)).mean()

    return float(np.exp(minimize_scalar(loss, bounds=np.log([0.05, 20]), method="bounded").x))


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Divide the logarithms of (n, k) probabilities by a temperature and normalise the rows again.

    Raises:
        ValueError: The temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"a temperature must be above 0, got {temperature}")
    logs = np.log(np.maximum(np.asarray(probabilities, float), LEAST_P)) / temperature
    return softmax(logs, axis=1)


def read_filling(truth_frames: Path, key: bytes) -> pd.DataFrame:
    """Read how well the vessels of each frame in the phantom's `truth_frames.csv` are filled.

    Returns:
        video_id (made with the pseudonyms' key), frame, contrast and filling: the opacified share
        of the tree times its contrast, this study's own measure of a phantom's best frame.
    """
    truth = pd.read_csv(truth_frames, dtype={"video": str})
    names = {video: study_id("video", video, key) for video in set(truth["video"])}
    truth["video_id"] = truth["video"].map(names)
    truth["filling"] = truth["opacified"] * truth["contrast"]
    return truth[["video_id", "frame", "contrast", "filling"]]


def pick_firsts(seen: pd.DataFrame, min_confidence: float) -> pd.DataFrame:
    """Pick each cine's surest key frame by notebook 03's rule, and compare with the labels.

    Args:
        seen: One row a sampled, labelled frame: patient_id, video_id, frame, label, frame_time_ms,
            the columns of `predict.describe` and, for the phantom, `filling`.
        min_confidence: See `pairs.choose_key_frames`.

    Returns:
        One row a cine: patient_id, video_id, frame_time_ms, n_sampled, n_better, picked (frame),
        label (of the picked), confidence, is_better (picked one labelled `better`), nearest (the
        nearest `better` frame among the sampled), best (of the `better` ones the best filled, the
        first of equals), and their distances from the picked one, frames_to_nearest and
        frames_to_best. NaN where there is nothing to tell.
    """
    chosen = choose_key_frames(seen, 1, min_confidence).set_index("video_id")
    rows = []
    for video, own in seen.groupby("video_id"):
        better = own[own["label"].str.endswith("_better")]
        row = {"patient_id": own["patient_id"].iloc[0], "video_id": video}
        row |= {"frame_time_ms": own["frame_time_ms"].iloc[0], "n_sampled": len(own)}
        picked = chosen.loc[video] if video in chosen.index else None
        rows.append(row | {"n_better": len(better)} | _compare(picked, better))
    return pd.DataFrame(rows)


def _compare(picked: pd.Series | None, better: pd.DataFrame) -> dict[str, object]:
    """A cine's pick beside its better frames."""
    best = nearest = float("nan")
    if "filling" in better and better["filling"].notna().any():
        best = float(better.sort_values("frame").set_index("frame")["filling"].idxmax())
    if picked is None:
        names = ("picked", "confidence", "nearest", "frames_to_nearest", "frames_to_best")
        row = dict.fromkeys(names, float("nan")) | {"label": None, "is_better": False}
        return {"best": best} | row
    frame, others = float(picked["frame"]), better["frame"].to_numpy(float)
    if len(others):
        nearest = others[np.abs(others - frame).argmin()]
    return {
        "best": best,
        "picked": frame,
        "label": picked["label"],
        "confidence": float(picked["confidence"]),
        "is_better": picked["label"].endswith("_better"),
        "nearest": nearest,
        "frames_to_nearest": abs(frame - nearest),
        "frames_to_best": abs(frame - best),
    }


def summarise_picks(picks: pd.DataFrame, stats: Stats, seed: int) -> pd.DataFrame:
    """Turn the picks into shares with intervals by patient.

    Args:
        picks: Of `pick_firsts`.

    Returns:
        One row a share: name, share, low, high, cines (it is a share of; NaN of none), chance: the
        same for a frame drawn evenly from each cine's sampled ones, NaN where that has no sense.
    """
    has_pick, has_better = picks["picked"].notna(), picks["n_better"] > 0
    table = picks.assign(
        none=~has_pick,
        near=picks["frames_to_nearest"] <= 5,
        near_best=picks["frames_to_best"] <= 5,
        chance=picks["n_better"] / picks["n_sampled"],
    )
    shares = {
        "pick is better, of cines with a pick": (has_pick, "is_better"),
        "pick is better, of those with a better frame": (has_pick & has_better, "is_better"),
        "pick within 5 frames of a better one": (has_pick & has_better, "near"),
        "pick within 5 frames of the best": (has_pick & picks["best"].notna(), "near_best"),
        "no pick, of cines without a better frame": (~has_better, "none"),
        "no pick, of cines with a better frame": (has_better, "none"),
    }
    rows = []
    for name, (of, column) in shares.items():
        own, asked = table[of], ("patient_id", column, *stats.draws(seed))
        estimate = mean_interval(own, *asked) if len(own) else UNDEFINED
        chance = own["chance"].mean() if column == "is_better" else float("nan")
        rows.append((name, *estimate, len(own), chance))
    return pd.DataFrame(rows, columns=["name", "share", "low", "high", "cines", "chance"])


def measure_distances(picks: pd.DataFrame) -> pd.DataFrame:
    """Tabulate how far the picks of `pick_firsts` are from the nearest and best `better` frame.

    Returns:
        One row each for nearest and best (the latter only if a best one is known): to, cines,
        median_frames, p90_frames, median_s, p90_s. Seconds are NaN where no header has a time.
    """
    rows = []
    for to in ("nearest", "best"):
        own = picks.dropna(subset=f"frames_to_{to}")
        if own.empty and to == "best":
            continue
        frames = own[f"frames_to_{to}"]
        seconds = frames * own["frame_time_ms"] / 1000
        numbers = [x.quantile(q) for x in (frames, seconds) for q in (0.5, 0.9)]
        rows.append((to, len(own), *numbers))
    columns = ["to", "cines", "median_frames", "p90_frames", "median_s", "p90_s"]
    return pd.DataFrame(rows, columns=columns)
