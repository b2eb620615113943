"""From a folder of XA cines to the frames worth a look: the rules that pick them, PNG, tables."""

import shutil
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import joblib
import numpy as np
import pandas as pd
from scipy.signal import find_peaks
from tqdm import tqdm

from cag_utils.cines.dicom import (
    Cine,
    NotACine,
    Rejected,
    iter_frames,
    path_within,
    read_header,
    scan,
)
from cag_utils.identity import pseudonym
from cag_utils.params import check_choice

FRAME_COLUMNS = [
    "patient_id", "exam_id", "video_id", "frame", "n_frames", "frame_time_ms", "mean", "variance",
    "reason", "png", "primary_angle_deg", "secondary_angle_deg", "spacing_mm",
]  # fmt: skip
VIDEO_COLUMNS = [
    "patient_id", "exam_id", "video_id", "n_frames", "frame_time_ms",
    "primary_angle_deg", "secondary_angle_deg", "spacing_mm", "n_picks",
]  # fmt: skip
MEASURED = ("n_frames", "frame_time_ms", "primary_angle_deg", "secondary_angle_deg", "spacing_mm")
STATISTICS_COLUMNS = ["video_id", "frame", "mean", "variance"]
REJECTED_COLUMNS = ["file_id", "suffix", "bytes", "reason"]
LINK_COLUMNS = [
    "file_id", "folder", "path", "patient_id", "exam_id", "video_id",
    "patient", "exam", "video", "reason", "detail",
]  # fmt: skip
# What stands after a file name's last dot can be a date or a name: only these are printed.
KNOWN_SUFFIXES = {
    "", ".avi", ".bmp", ".csv", ".dcm", ".dicom", ".doc", ".docx", ".gif", ".gz", ".htm", ".html",
    ".ima", ".inf", ".ini", ".jpeg", ".jpg", ".json", ".log", ".md", ".mov", ".mp4", ".pdf",
    ".png", ".tar", ".tif", ".tiff", ".tsv", ".txt", ".xls", ".xlsx", ".xml", ".yaml", ".zip",
}  # fmt: skip
# Of one cine that is held decoded, so that its picks need no second decoding; longer ones get it.
KEEP_BYTES = 64 * 2**20
# Of X-ray noise, on this study's frames a third of the time of level 1 alone, at the same size.
PNG_SETTINGS = [
    cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY,
    cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP,
]  # fmt: skip


def frame_statistics(frames: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return each (H, W) frame's mean and population variance, two float64 (T,) of grey levels."""
    pairs = [cv2.meanStdDev(frame) for frame in frames]
    table = np.array([(mean[0, 0], sd[0, 0] ** 2) for mean, sd in pairs]).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def local_extrema(curve: np.ndarray) -> pd.DataFrame:
    """Find the local maxima and minima of a curve.

    A frame is a maximum if the curve falls on both sides of it; the first and last have one side
    only. A plateau counts once, at its middle frame (of two middle frames the earlier).

    Returns:
        One row an extremum, by frame: `frame`, `kind` (max or min), `prominence` (how far the
        curve must fall, or rise, before it can pass the extremum, in units of the curve's SD).

    Raises:
        ValueError: The curve is not one-dimensional and finite.
    """
    curve = np.asarray(curve, dtype=np.float64)
    if curve.ndim != 1 or not np.isfinite(curve).all():
        raise ValueError(f"a curve is (T,) and finite, got shape {curve.shape} with NaN or inf")
    spread = (curve.std() if curve.size else 0.0) or 1.0  # a flat curve has no extremum
    found = []
    for kind, signed in (("max", curve), ("min", -curve)):
        frames, facts = find_peaks(signed, prominence=0)
        heights = facts["prominences"] / spread
        found.append(pd.DataFrame({"frame": frames, "kind": kind, "prominence": heights}))
    return pd.concat(found).sort_values("frame", ignore_index=True)


def pick_extrema(mean: np.ndarray, variance: np.ndarray, min_gap: int = 5) -> pd.DataFrame:
    """Pick a cine's frames: extrema of either curve, at least `min_gap` frames apart.

    The most prominent is taken first, then the next that is far enough from all taken, and so on;
    among equals the earlier frame. The fullest frame of an injection is thus never lost to a
    flicker just before it. (A ripple's maximum and minimum are equally prominent, so a film played
    backwards need not have the same picks.)

    Args:
        mean: (T,) mean intensity of each frame.
        variance: (T,) variance of each frame.
        min_gap: Least distance between two picks, in frames, at least 1.

    Returns:
        One row a pick, in time order: `frame`, `reason` (e.g. `mean_min`, or several joined by
        `+`), `prominence`. Empty if nothing happened: both curves are monotone or constant.

    Raises:
        ValueError: The curves differ in length, or `min_gap` is below 1.

    Source:
        Nakamura et al., CAG-VLM, section 3.1; the order and the plateau rule are the study's own.
    """
    if len(mean) != len(variance):
        raise ValueError(f"mean has {len(mean)} frames, variance {len(variance)}: same cine?")
    if min_gap < 1:
        raise ValueError(f"min_gap must be at least 1 frame, got {min_gap}")
    reasons: dict[int, list[str]] = {}
    prominence: dict[int, float] = {}
    for name, curve in (("mean", mean), ("variance", variance)):
        for frame, kind, height in local_extrema(curve).itertuples(index=False):
            reasons.setdefault(frame, []).append(f"{name}_{kind}")
            prominence[frame] = max(height, prominence.get(frame, 0.0))
    taken: list[int] = []
    for frame in sorted(prominence, key=lambda f: (-round(prominence[f], 9), f)):
        if all(abs(frame - other) >= min_gap for other in taken):
            taken.append(frame)
    rows = [(frame, "+".join(reasons[frame]), prominence[frame]) for frame in sorted(taken)]
    table = pd.DataFrame(rows, columns=["frame", "reason", "prominence"])
    return table.astype({"frame": np.int64, "prominence": float})


# A rule maps a cine's curves, (T,) mean and (T,) variance of each frame, and the least gap between
# picks (frames, at least 1) to one row a pick, in time order: frame, reason. Profiles name one.
Rule = Callable[[np.ndarray, np.ndarray, int], pd.DataFrame]
SAMPLING_RULES: dict[str, Rule] = {"extrema": pick_extrema}


class Sampled(NamedTuple):
    """What a folder held, tables in path order; every file is in `videos` or in `rejected`."""

    frames: pd.DataFrame  # one row a pick; `png` is relative to the run's folder
    videos: pd.DataFrame  # one row a cine, also where `n_picks` is 0
    statistics: pd.DataFrame  # one row a frame of every cine
    rejected: pd.DataFrame  # one row a file that is no readable cine, with its reason
    links: pd.DataFrame  # what the pseudonyms stand for; must never be written below `outputs/`


def sample_folder(
    folder: Path, out: Path, key: bytes, min_gap: int = 5, n_workers: int = 1, rule: str = "extrema"
) -> Sampled:
    """Sample every cine below a folder; a broken one is rejected and the rest goes on.

    Args:
        folder: XA DICOM files in any layout.
        out: The run's folder; 8-bit grey pictures land in `out/frames/<video_id>/<frame>.png`,
            after those of an earlier run are removed.
        key: Secret of the pseudonyms.
        min_gap: Least distance between picks, in frames.
        n_workers: Processes; the result does not depend on it.
        rule: A name in `SAMPLING_RULES`.

    Raises:
        NotADirectoryError: `folder` is not a folder.
        OSError: A picture cannot be written.
        ValueError: The rule is unknown.
    """
    pick = SAMPLING_RULES[check_choice("sampling rule", rule, SAMPLING_RULES)]
    found, failures = scan(folder)
    shutil.rmtree(out / "frames", ignore_errors=True)
    rejected = {failure.path: failure for failure in failures}
    jobs = (joblib.delayed(_sample_cine)(cine, out, key, pick, min_gap) for cine in found)
    results = joblib.Parallel(n_jobs=n_workers, return_as="generator")(jobs)
    done: list[_Outcome] = []
    for outcome in tqdm(results, total=len(found), desc="cines", mininterval=30):
        rejected |= {failure.path: failure for failure in outcome.broken}
        if outcome.cine:
            rejected.pop(outcome.cine.path, None)  # a copy that stands in is no duplicate now
            done.append(outcome)
    done.sort(key=lambda outcome: outcome.cine.path)
    failures = [rejected[path] for path in sorted(rejected)]
    videos = [_facts(o.cine, key) | {"n_picks": len(o.frames)} for o in done]
    return Sampled(
        frames=_concat([o.frames for o in done], FRAME_COLUMNS),
        videos=pd.DataFrame(videos, columns=VIDEO_COLUMNS),
        statistics=_concat([o.statistics for o in done], STATISTICS_COLUMNS),
        rejected=_rejected(failures, folder, key),
        links=_links([o.cine for o in done], failures, folder, key),
    )


class _Outcome(NamedTuple):
    """What became of one cine: `cine` is None if no copy of it decodes; `broken` are those."""

    cine: Cine | None
    frames: pd.DataFrame
    statistics: pd.DataFrame
    broken: list[Rejected]


def _sample_cine(cine: Cine, out: Path, key: bytes, pick: Rule, min_gap: int) -> _Outcome:
    """Sample a cine, or a further file of the same instance: a broken one must not hide a whole."""
    broken: list[Rejected] = []
    for path in (cine.path, *cine.copies):
        try:
            used = cine if path == cine.path else read_header(path)
            with warnings.catch_warnings(action="ignore"):  # they quote the header
                frames, statistics = _sample(used, out, key, pick, min_gap)
            return _Outcome(used, frames, statistics, broken)
        except NotACine as problem:
            broken.append(Rejected(path, problem.reason, problem.detail))
    return _Outcome(None, pd.DataFrame(), pd.DataFrame(), broken)


def _sample(
    cine: Cine, out: Path, key: bytes, pick: Rule, min_gap: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure a cine, pick frames and write them; a long one is decoded twice, not held."""
    facts = _facts(cine, key)
    n_bytes = cine.n_frames * cine.rows * cine.columns
    held = list(iter_frames(cine.path)) if n_bytes <= KEEP_BYTES else []
    mean, variance = frame_statistics(held or iter_frames(cine.path))
    picks = pick(mean, variance, min_gap)
    wanted = picks["frame"].tolist()
    pictures = [held[i] for i in wanted] if held else iter_frames(cine.path, wanted)
    folder = out / "frames" / facts["video_id"]
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{frame:04d}.png" for frame in wanted]
    for name, frame in zip(names, pictures, strict=True):
        done, data = cv2.imencode(".png", frame, PNG_SETTINGS)
        if not done:
            raise OSError(f"OpenCV cannot encode a frame of shape {frame.shape} as PNG")
        (folder / name).write_bytes(data.tobytes())  # OpenCV would keep silent about a full disk
    rows = picks.assign(
        mean=mean[wanted],
        variance=variance[wanted],
        png=[f"frames/{facts['video_id']}/{name}" for name in names],
        **facts,
    )
    curve = pd.DataFrame({"video_id": facts["video_id"], "mean": mean, "variance": variance})
    curve = curve.rename_axis("frame").reset_index()
    return rows[FRAME_COLUMNS], curve[STATISTICS_COLUMNS]


def _facts(cine: Cine, key: bytes) -> dict:
    kinds = ("patient", "exam", "video")
    ids = {f"{kind}_id": pseudonym(kind, getattr(cine, kind), key) for kind in kinds}
    return ids | {name: getattr(cine, name) for name in MEASURED}


def _rejected(failures: list[Rejected], folder: Path, key: bytes) -> pd.DataFrame:
    rows = [
        {
            "file_id": pseudonym("file", path_within(path, folder), key),
            "suffix": path.suffix.lower() if path.suffix.lower() in KNOWN_SUFFIXES else "other",
            "bytes": _size(path),
            "reason": reason,
        }
        for path, reason, _ in failures
    ]
    return pd.DataFrame(rows, columns=REJECTED_COLUMNS).astype({"bytes": "Int64"})


def _size(path: Path) -> int | None:
    """Bytes of a file, a link's own; None if it is gone or closed."""
    try:
        return path.lstat().st_size
    except OSError:
        return None


def _links(cines: list[Cine], failures: list[Rejected], folder: Path, key: bytes) -> pd.DataFrame:
    told = ("path", "patient", "exam", "video")
    rows = [_facts(cine, key) | {name: getattr(cine, name) for name in told} for cine in cines]
    rows += [failure._asdict() for failure in failures]
    table = pd.DataFrame(rows, columns=LINK_COLUMNS).sort_values("path", ignore_index=True)
    table["file_id"] = [pseudonym("file", path_within(path, folder), key) for path in table["path"]]
    table["folder"] = str(folder.resolve())
    return table.assign(path=[path_within(path, folder) for path in table["path"]])


def _concat(tables: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    filled = [table for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=columns)
