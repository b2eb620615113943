"""From a folder of XA cines to the frames worth a look, as PNG files and tables."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import joblib
import pandas as pd
from tqdm import tqdm

from cag_utils.deident import pseudonym
from cag_utils.dicom import Cine, NotACine, iter_frames, scan
from cag_utils.sampling import frame_statistics, pick_frames

FRAME_COLUMNS = [
    "patient_id", "exam_id", "video_id", "frame", "n_frames", "frame_time_ms", "mean", "variance",
    "reason", "png", "primary_angle_deg", "secondary_angle_deg", "spacing_mm",
]  # fmt: skip
REJECTED_COLUMNS = ["file_id", "suffix", "bytes", "reason"]


class Sampled(NamedTuple):
    """What a folder held; every file is in `videos` or in `rejected`.

    Attributes:
        frames: One row a pick, `FRAME_COLUMNS`; `png` is relative to the run's folder.
        videos: One row a cine: ids, header facts, `n_picks` (0 for a cine where nothing happens).
        statistics: `video_id`, `frame`, `mean`, `variance` of every frame of every cine.
        rejected: One row a file that is no readable cine, with its reason.
        links: What the pseudonyms stand for; must never be written below `outputs/`.
    """

    frames: pd.DataFrame
    videos: pd.DataFrame
    statistics: pd.DataFrame
    rejected: pd.DataFrame
    links: pd.DataFrame


def sample_folder(
    folder: Path, out: Path, key: bytes, min_gap: int = 5, n_workers: int = 1
) -> Sampled:
    """Sample every cine below a folder; a broken one is rejected and the rest goes on.

    Args:
        folder: XA DICOM files in any layout.
        out: The run's folder; pictures land in `out/frames/<video_id>/<frame>.png`.
        key: Secret of the pseudonyms.
        min_gap: Least distance between picks, in frames.
        n_workers: Processes; the result does not depend on it.

    Returns:
        The tables, in path order.

    Raises:
        NotADirectoryError: `folder` is not a folder.
    """
    cines, failures = scan(folder)
    jobs = (joblib.delayed(sample_cine)(cine, out, key, min_gap) for cine in cines)
    results = joblib.Parallel(n_jobs=n_workers, return_as="generator")(jobs)
    frames, statistics, videos = [], [], []
    for cine, result in zip(cines, _progress(results, len(cines)), strict=True):
        if isinstance(result, str):
            failures.append((cine.path, result))
            continue
        picks, curve = result
        frames.append(picks)
        statistics.append(curve)
        videos.append(_facts(cine, key) | {"n_picks": len(picks)})
    return Sampled(
        frames=_concat(frames, FRAME_COLUMNS),
        videos=pd.DataFrame(videos),
        statistics=_concat(statistics, ["video_id", "frame", "mean", "variance"]),
        rejected=_rejected(failures, folder, key),
        links=_links(cines, failures, folder, key),
    )


def sample_cine(
    cine: Cine, out: Path, key: bytes, min_gap: int
) -> tuple[pd.DataFrame, pd.DataFrame] | str:
    """Pick one cine's frames and write them as 8-bit grey PNG.

    The cine is decoded twice, once for the statistics and once for the picks, so that only one
    frame is ever in memory.

    Returns:
        The picks (`FRAME_COLUMNS`) and each frame's statistics, or the reason why the file's
        pixels cannot be used.
    """
    facts = _facts(cine, key)
    try:
        mean, variance = frame_statistics(iter_frames(cine.path))
        picks = pick_frames(mean, variance, min_gap)
        folder = out / "frames" / facts["video_id"]
        folder.mkdir(parents=True, exist_ok=True)
        names = [f"{frame:04d}.png" for frame in picks["frame"]]
        for name, frame in zip(names, iter_frames(cine.path, picks["frame"].tolist()), strict=True):
            cv2.imwrite(str(folder / name), frame, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    except NotACine as reason:
        return str(reason)
    rows = picks.assign(
        mean=mean[picks["frame"]],
        variance=variance[picks["frame"]],
        png=[f"frames/{facts['video_id']}/{name}" for name in names],
        **facts,
    )
    curve = pd.DataFrame({"video_id": facts["video_id"], "mean": mean, "variance": variance})
    return rows[FRAME_COLUMNS], curve.rename_axis("frame").reset_index()


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


def _rejected(failures: list[tuple[Path, str]], folder: Path, key: bytes) -> pd.DataFrame:
    rows = [
        {
            "file_id": _file_id(path, folder, key),
            "suffix": path.suffix.lower()[:8],
            "bytes": path.lstat().st_size,
            "reason": reason,
        }
        for path, reason in sorted(failures)
    ]
    return pd.DataFrame(rows, columns=REJECTED_COLUMNS)


def _links(
    cines: list[Cine], failures: list[tuple[Path, str]], folder: Path, key: bytes
) -> pd.DataFrame:
    video_of = {cine.path: cine for cine in cines}
    rows = []
    for path in sorted({*video_of, *(path for path, _ in failures)}):
        row = {"file_id": _file_id(path, folder, key), "path": str(path.relative_to(folder))}
        if cine := video_of.get(path):
            facts = _facts(cine, key)
            row |= {name: facts[name] for name in ("patient_id", "exam_id", "video_id")}
            row |= {"patient": cine.patient, "exam": cine.exam, "video": cine.video}
        rows.append(row)
    return pd.DataFrame(rows)


def _file_id(path: Path, folder: Path, key: bytes) -> str:
    return pseudonym("file", path.relative_to(folder).as_posix(), key)


def _concat(tables: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    filled = [table for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=columns)


def _progress(results: Iterator, total: int) -> Iterator:
    return tqdm(results, total=total, desc="cines", mininterval=30)
