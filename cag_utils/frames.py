"""From a folder of XA cines to the frames worth a look, as PNG files and tables."""

import os
import shutil
import warnings
from pathlib import Path
from typing import NamedTuple

import cv2
import joblib
import numpy as np
import pandas as pd
from tqdm import tqdm

from cag_utils.dicom import Cine, NotACine, Rejected, iter_frames, read_header, scan
from cag_utils.identity import pseudonym
from cag_utils.sampling import frame_statistics, pick_frames

FRAME_COLUMNS = [
    "patient_id", "exam_id", "video_id", "frame", "n_frames", "frame_time_ms", "mean", "variance",
    "reason", "png", "primary_angle_deg", "secondary_angle_deg", "spacing_mm",
]  # fmt: skip
VIDEO_COLUMNS = [
    "patient_id", "exam_id", "video_id", "n_frames", "frame_time_ms",
    "primary_angle_deg", "secondary_angle_deg", "spacing_mm", "n_picks",
]  # fmt: skip
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


class Sampled(NamedTuple):
    """What a folder held; every file is in `videos` or in `rejected`.

    Attributes:
        frames: One row a pick, `FRAME_COLUMNS`; `png` is relative to the run's folder.
        videos: One row a cine, `VIDEO_COLUMNS`; `n_picks` is 0 for a cine where nothing happens.
        statistics: `video_id`, `frame`, `mean`, `variance` of every frame of every cine.
        rejected: One row a file that is no readable cine, with its reason.
        links: What the pseudonyms stand for; must never be written below `outputs/`.
    """

    frames: pd.DataFrame
    videos: pd.DataFrame
    statistics: pd.DataFrame
    rejected: pd.DataFrame
    links: pd.DataFrame


class Outcome(NamedTuple):
    """What became of one cine: `cine` is None if no copy of it decodes; `broken` are those."""

    cine: Cine | None
    frames: pd.DataFrame
    statistics: pd.DataFrame
    broken: list[Rejected]


def sample_folder(
    folder: Path, out: Path, key: bytes, min_gap: int = 5, n_workers: int = 1
) -> Sampled:
    """Sample every cine below a folder; a broken one is rejected and the rest goes on.

    Args:
        folder: XA DICOM files in any layout.
        out: The run's folder; pictures land in `out/frames/<video_id>/<frame>.png`, after those
            of an earlier run are removed.
        key: Secret of the pseudonyms.
        min_gap: Least distance between picks, in frames.
        n_workers: Processes; the result does not depend on it.

    Returns:
        The tables, in path order.

    Raises:
        NotADirectoryError: `folder` is not a folder.
        OSError: A picture cannot be written.
    """
    found, failures = scan(folder)
    shutil.rmtree(out / "frames", ignore_errors=True)
    rejected = {failure.path: failure for failure in failures}
    jobs = (joblib.delayed(sample_cine)(cine, out, key, min_gap) for cine in found)
    results = joblib.Parallel(n_jobs=n_workers, return_as="generator")(jobs)
    done: list[Outcome] = []
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


def sample_cine(cine: Cine, out: Path, key: bytes, min_gap: int) -> Outcome:
    """Pick one cine's frames and write them as 8-bit grey PNG.

    If its pixels are broken, further files of the same SOP instance are tried: an interrupted
    copy must not hide a whole one.
    """
    broken: list[Rejected] = []
    for path in (cine.path, *cine.copies):
        try:
            used = cine if path == cine.path else read_header(path)
            with warnings.catch_warnings():  # they quote the header, and notebooks keep them
                warnings.simplefilter("ignore")
                frames, statistics = _sample(used, out, key, min_gap)
            return Outcome(used, frames, statistics, broken)
        except NotACine as problem:
            broken.append(Rejected(path, problem.reason, problem.detail))
    return Outcome(None, pd.DataFrame(), pd.DataFrame(), broken)


def _sample(cine: Cine, out: Path, key: bytes, min_gap: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Decode a cine twice, for the statistics and for the picks: one frame in memory at a time."""
    facts = _facts(cine, key)
    mean, variance = frame_statistics(iter_frames(cine.path))
    picks = pick_frames(mean, variance, min_gap)
    folder = out / "frames" / facts["video_id"]
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{frame:04d}.png" for frame in picks["frame"]]
    for name, frame in zip(names, iter_frames(cine.path, picks["frame"].tolist()), strict=True):
        _write_png(folder / name, frame)
    rows = picks.assign(
        mean=mean[picks["frame"]],
        variance=variance[picks["frame"]],
        png=[f"frames/{facts['video_id']}/{name}" for name in names],
        **facts,
    )
    curve = pd.DataFrame({"video_id": facts["video_id"], "mean": mean, "variance": variance})
    curve = curve.rename_axis("frame").reset_index()
    return rows[FRAME_COLUMNS], curve[STATISTICS_COLUMNS]


def _write_png(path: Path, frame: np.ndarray) -> None:
    """Write a grey PNG; OpenCV itself would keep silent about a full disk."""
    done, data = cv2.imencode(".png", frame, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not done:
        raise OSError(f"OpenCV cannot encode a frame of shape {frame.shape} as PNG")
    path.write_bytes(data.tobytes())


def _facts(cine: Cine, key: bytes) -> dict:
    return {
        "patient_id": pseudonym("patient", cine.patient, key),
        "exam_id": pseudonym("exam", cine.exam, key),
        "video_id": pseudonym("video", cine.video, key),
        "n_frames": cine.n_frames,
        "frame_time_ms": cine.frame_time_ms,
        "primary_angle_deg": cine.primary_angle_deg,
        "secondary_angle_deg": cine.secondary_angle_deg,
        "spacing_mm": cine.spacing_mm,
    }


def _rejected(failures: list[Rejected], folder: Path, key: bytes) -> pd.DataFrame:
    rows = [
        {
            "file_id": _file_id(path, folder, key),
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
    rows = []
    for cine in cines:
        facts = _facts(cine, key)
        row = {name: facts[name] for name in ("patient_id", "exam_id", "video_id")}
        row |= {"patient": cine.patient, "exam": cine.exam, "video": cine.video}
        rows.append({"path": cine.path} | row)
    rows += [{"path": path, "reason": reason, "detail": text} for path, reason, text in failures]
    table = pd.DataFrame(rows, columns=LINK_COLUMNS).sort_values("path", ignore_index=True)
    table["file_id"] = [_file_id(path, folder, key) for path in table["path"]]
    table["folder"] = str(folder.resolve())
    return table.assign(path=[_inside(path, folder) for path in table["path"]])


def _file_id(path: Path, folder: Path, key: bytes) -> str:
    return pseudonym("file", _inside(path, folder), key)


def _inside(path: Path, folder: Path) -> str:
    """A path within the archive as text; names that are not UTF-8 are legal on Linux."""
    name = os.fsencode(path.relative_to(folder).as_posix())
    return name.decode("utf-8", "backslashreplace")


def _concat(tables: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    filled = [table for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=columns)
