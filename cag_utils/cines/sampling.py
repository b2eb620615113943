"""From a folder of XA cines to the frames worth a look: the rules that pick them, PNG, tables."""

import hashlib
import hmac
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from scipy.signal import find_peaks
from tqdm import tqdm

from cag_utils.cines.dicom import (
    Cine,
    Film,
    angles_deg,
    file_bytes,
    frame_steps_ms,
    open_film,
    path_within,
    public_words,
    read_header,
    scan,
)
from cag_utils.cines.guard import SECONDS, Cluster, Guard
from cag_utils.cines.reasons import NotACine, Rejected
from cag_utils.cines.text import NO_TEXT, Extremes, TextRules, blacken, detector_file, refuse_text
from cag_utils.identity import pseudonym
from cag_utils.params import check_choice
from cag_utils.study import replacing

FRAME_COLUMNS = [
    "patient_id", "exam_id", "video_id", "frame", "n_frames", "frame_time_ms", "mean", "variance",
    "reason", "png", "primary_angle_deg", "secondary_angle_deg", "spacing_mm",
]  # fmt: skip
VIDEO_COLUMNS = [
    "patient_id", "exam_id", "video_id", "n_frames", "frame_time_ms",
    "primary_angle_deg", "secondary_angle_deg", "spacing_mm", "n_picks", "notes",
]  # fmt: skip
MEASURED = ("n_frames", "frame_time_ms", "primary_angle_deg", "secondary_angle_deg", "spacing_mm")
STATISTICS_COLUMNS = ["video_id", "frame", "mean", "variance", "time_ms"]
REJECTED_COLUMNS = ["file_id", "suffix", "bytes", "frame", "reason", "words"]
LINK_COLUMNS = [
    "file_id", "folder", "path", "patient_id", "exam_id", "video_id",
    "patient", "exam", "video", "frame", "reason", "note", "detail",
]  # fmt: skip
# What stands after a file name's last dot can be a date or a name: only these are printed.
KNOWN_SUFFIXES = {
    "", ".avi", ".bmp", ".csv", ".dcm", ".dicom", ".doc", ".docx", ".gif", ".gz", ".htm", ".html",
    ".ima", ".inf", ".ini", ".jpeg", ".jpg", ".json", ".log", ".md", ".mov", ".mp4", ".pdf",
    ".png", ".tar", ".tif", ".tiff", ".tsv", ".txt", ".xls", ".xlsx", ".xml", ".yaml", ".zip",
}  # fmt: skip
JOURNAL = "sampled.jsonl"
MEGAPIXELS_A_SECOND = 2.0  # a slow machine and the slowest codec; choice: a fifth of JPEG 2000 here
# Stored: packing X-ray noise saves a third at best and costs ten times as long, here and each time
# a picture is read.
PNG_SETTINGS = [
    cv2.IMWRITE_PNG_COMPRESSION, 0, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE,
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
    videos: pd.DataFrame  # one row a cine, also where `n_picks` is 0; `notes` say what was mended
    statistics: pd.DataFrame  # one row a frame of every cine; `time_ms` after the first
    rejected: pd.DataFrame  # one row a file that is no readable cine, or a `frame` of one that is
    links: pd.DataFrame  # what the pseudonyms stand for; must never be written below `outputs/`


def sample_folder(
    folder: Path,
    out: Path,
    key: bytes,
    min_gap: int = 5,
    n_workers: int = 1,
    rule: str = "extrema",
    text: TextRules = NO_TEXT,
    scheduler: str = "",
) -> Sampled:
    """Sample every cine below a folder; a broken one is rejected and the rest goes on.

    A run that was killed goes on where it was, by `Journal`.

    Args:
        folder: XA DICOM files in any layout.
        out: The run's folder; 8-bit grey pictures land in `out/frames/<video_id>/<frame>.png`,
            after those of another run are removed.
        min_gap: Least distance between picks, in frames.
        n_workers: Processes, see `Guard`; the result does not depend on it.
        rule: A name in `SAMPLING_RULES`.
        text: Cines with text in their pixels are rejected, but for what these rules say.
        scheduler: Of a Dask cluster, e.g. `tcp://host:8786`, in the place of processes here.

    Raises:
        NotADirectoryError: `folder` is not a folder.
        FileNotFoundError: The text detector is not installed.
        OSError: A picture cannot be written, or the scheduler does not answer.
        ValueError: The rule is unknown.
    """
    pick = SAMPLING_RULES[check_choice("sampling rule", rule, SAMPLING_RULES)]
    detector_file()  # before anything is removed
    pool = Cluster(scheduler) if scheduler else Guard(n_workers)
    with pool as guard, Journal(out, key, min_gap, rule, text) as journal:
        found, failures = scan(folder, guard)
        for old in text.pictures.glob("vi-*.png") if text.pictures else ():
            old.unlink()
        rejected = {failure.path: failure for failure in failures}
        work = partial(sample_cine, out=out, key=key, pick=pick, min_gap=min_gap, text=text)
        done = [one for cine in found if (one := journal.find(cine))]
        known = {one.cine.path for one in done}
        waiting = [cine for cine in found if cine.path not in known]
        _clear(out / "frames", {pseudonym("video", one.cine.video, key) for one in done})
        while waiting:  # a broken file must not hide a whole copy of it: next time, that one
            results = tqdm(
                guard.run(work, waiting, _seconds), total=len(waiting), desc="cines", mininterval=30
            )
            waiting = []
            for cine, outcome in results:
                if isinstance(outcome, NotACine):
                    rejected[cine.path] = Rejected.of(cine.path, outcome)
                    waiting += _next_copy(cine)
                else:
                    rejected.pop(cine.path, None)
                    done.append(journal.add(cine, outcome))
        done.sort(key=lambda one: one.cine.path)
        frames, statistics = (
            _concat((journal.read(one)[name] for one in done), columns)
            for name, columns in (("frames", FRAME_COLUMNS), ("statistics", STATISTICS_COLUMNS))
        )
    failures = [rejected[path] for path in rejected] + [row for o in done for row in o.broken]
    failures.sort(key=lambda row: (row.path, -1 if row.frame is None else row.frame))
    videos = [
        _facts(o.cine, key) | {"n_picks": o.n_picks, "notes": "; ".join(sorted(o.cine.notes))}
        for o in done
    ]
    return Sampled(
        frames=frames,
        videos=pd.DataFrame(videos, columns=VIDEO_COLUMNS),
        statistics=statistics,
        rejected=_rejected(failures, folder, key),
        links=_links([o.cine for o in done], failures, folder, key),
    )


class Done(NamedTuple):
    """A cine that is sampled, and where its tables lie in the journal."""

    cine: Cine
    place: int
    n_picks: int
    broken: list[Rejected]  # frames of it


class Journal(AbstractContextManager):
    """The tables of each cine that is done, a line each, on disk: memory holds their places alone.

    A run that was killed goes on with those whose file, settings and code (this room's) are what
    they were; cines with broken frames are read again, as what a decoder said of them is not
    written here. The lines hold what the tables do, and a keyed digest. Whoever has saved the
    tables removes the file.
    """

    def __init__(self, out: Path, key: bytes, *settings: object):
        """Open `out/JOURNAL`, and forget a last line that is not whole."""
        out.mkdir(parents=True, exist_ok=True)
        code = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
        self._out, self._key = out, key
        self._stamp = (hashlib.sha256(code).hexdigest(), *settings)
        self._places: dict[str, int] = {}
        self._file = (out / JOURNAL).open("a+b")
        self._file.seek(0)
        end = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            self._places[json.loads(line)["of"]] = end
            end += len(line)
        self._file.truncate(end)

    def __exit__(self, *_: object) -> None:
        """Close the file, which stays."""
        self._file.close()

    def _mark(self, cine: Cine) -> str:
        file = next(path for path in (cine.path, *cine.path.parents) if path.exists())  # or its zip
        facts = file.stat()
        ids = (str(cine.path), cine.patient, cine.exam, cine.video, cine.n_frames)
        text = repr((*ids, facts.st_size, facts.st_mtime_ns, *self._stamp))
        return hmac.new(self._key, text.encode("utf-8", "surrogateescape"), "sha256").hexdigest()

    def add(self, cine: Cine, outcome: "Outcome") -> Done:
        """Write a cine's tables; the file as it is now stands for them."""
        tables = {name: getattr(outcome, name).to_dict("list") for name in ("frames", "statistics")}
        line = {"of": "" if outcome.broken else self._mark(cine), **tables}
        place = self._file.seek(0, 2)
        notes = sorted(outcome.cine.notes)
        self._file.write(json.dumps(line | {"notes": notes}).encode() + b"\n")
        self._file.flush()
        return Done(outcome.cine, place, len(outcome.frames), outcome.broken)

    def find(self, cine: Cine) -> Done | None:
        """Return what an earlier run has done of a cine, if its pictures are there."""
        place = self._places.get(self._mark(cine))
        if place is None:
            return None
        line = self._line(place)
        pictures = line["frames"]["png"]
        if not all((self._out / png).is_file() for png in pictures):
            return None
        cine = replace(cine, notes=frozenset(line["notes"]))
        return Done(cine, place, len(pictures), [])

    def _line(self, place: int) -> dict:
        self._file.seek(place)
        return json.loads(self._file.readline())

    def read(self, done: Done) -> dict[str, pd.DataFrame]:
        """Return a cine's frames and statistics."""
        line = self._line(done.place)
        return {name: pd.DataFrame(line[name]) for name in ("frames", "statistics")}


def _clear(folder: Path, kept: set[str]) -> None:
    """Remove the pictures of an earlier run but for those that are taken over."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in kept:
            shutil.rmtree(path)


class Outcome(NamedTuple):
    """What became of one cine: `broken` are frames of it."""

    cine: Cine
    frames: pd.DataFrame
    statistics: pd.DataFrame
    broken: list[Rejected]


def _seconds(cine: Cine) -> float:
    """How long a cine may take."""
    return SECONDS + cine.n_frames * cine.rows * cine.columns / 1e6 / MEGAPIXELS_A_SECOND


def _next_copy(cine: Cine) -> list[Cine]:
    for i, path in enumerate(cine.copies):
        with suppress(NotACine):
            kept = {"video": cine.video, "patient": cine.patient, "copies": cine.copies[i + 1 :]}
            return [replace(read_header(path), **kept)]
    return []


def sample_cine(
    cine: Cine, out: Path, key: bytes, pick: Rule, min_gap: int, text: TextRules = NO_TEXT
) -> Iterator[Outcome]:
    """Measure a cine, pick frames and write them; one answer, as `Guard` takes it.

    Raises:
        NotACine: Fewer than two frames decode, nothing is seen on them, or text.
        OSError: A picture cannot be written.
    """
    facts = _facts(cine, key)
    with open_film(cine.path) as film:
        good: list[int] = []
        broken: list[Rejected] = []
        masked = (blacken(grey, text.masks) for grey in _good_frames(film, good, broken))
        extremes = Extremes()
        mean, variance = frame_statistics(extremes.of(masked))
        if len(good) < 2:
            raise NotACine(broken[0].reason, broken[0].note, broken[0].detail)
        refuse_text(film.header, extremes, facts["video_id"], text)
        picks = pick(mean, variance, min_gap)
        at = picks["frame"].to_numpy()
        picks["frame"] = wanted = np.array(good)[at]
        folder = out / "frames" / facts["video_id"]
        folder.mkdir(parents=True, exist_ok=True)
        for frame, picture in film.frames(wanted.tolist()):
            picture = blacken(picture, text.masks)
            done, data = cv2.imencode(".png", picture, PNG_SETTINGS)
            if not done:
                raise OSError(f"OpenCV cannot encode a frame of shape {picture.shape} as PNG")
            with replacing(folder / f"{frame:04d}.png") as part:  # OpenCV is silent on a full disk
                part.write_bytes(data.tobytes())
        facts["primary_angle_deg"], facts["secondary_angle_deg"] = (
            angles_deg(film.header, kind, film.n_frames)[wanted]
            for kind in ("Primary", "Secondary")
        )
        times = np.concatenate([[0.0], frame_steps_ms(film.header, film.n_frames).cumsum()])
        notes = film.notes | ({"frames are missing or broken"} if broken else set())
    rows = picks.assign(
        mean=mean[at],
        variance=variance[at],
        png=[f"frames/{facts['video_id']}/{frame:04d}.png" for frame in wanted],
        **facts,
    )
    curve = pd.DataFrame(
        {"frame": good, "mean": mean, "variance": variance, "time_ms": times[good]}
    )
    curve["video_id"] = facts["video_id"]
    cine = replace(cine, notes=cine.notes | notes)
    yield Outcome(cine, rows[FRAME_COLUMNS], curve[STATISTICS_COLUMNS], broken)


def _good_frames(film: Film, good: list[int], broken: list[Rejected]) -> Iterator[np.ndarray]:
    """Yield what decodes; note the indices of that, and what does not."""
    for index, grey in film.frames(range(film.n_told)):
        if isinstance(grey, NotACine):
            broken.append(Rejected.of(film.path, grey, index))
        else:
            good.append(index)
            yield grey


def _facts(cine: Cine, key: bytes) -> dict:
    kinds = ("patient", "exam", "video")
    ids = {f"{kind}_id": pseudonym(kind, getattr(cine, kind), key) for kind in kinds}
    return ids | {name: getattr(cine, name) for name in MEASURED}


def _rejected(failures: list[Rejected], folder: Path, key: bytes) -> pd.DataFrame:
    rows = []
    for row in failures:
        suffix = row.path.suffix.lower()
        shown = suffix if suffix in KNOWN_SUFFIXES else "other"
        file_id = pseudonym("file", path_within(row.path, folder), key)
        size = file_bytes(row.path)
        rows.append((file_id, shown, size, row.frame, row.reason, public_words(row)))
    table = pd.DataFrame(rows, columns=REJECTED_COLUMNS)
    return table.astype({"bytes": "Int64", "frame": "Int64"})


def _links(cines: list[Cine], failures: list[Rejected], folder: Path, key: bytes) -> pd.DataFrame:
    told = ("path", "patient", "exam", "video")
    rows = [_facts(cine, key) | {name: getattr(cine, name) for name in told} for cine in cines]
    rows += [failure._asdict() for failure in failures]
    table = pd.DataFrame(rows, columns=LINK_COLUMNS).sort_values("path", ignore_index=True)
    table["file_id"] = [pseudonym("file", path_within(path, folder), key) for path in table["path"]]
    table["folder"] = path_within(folder.resolve(), Path(folder.resolve().anchor))
    return table.assign(path=[path_within(path, folder) for path in table["path"]])


def _concat(tables: Iterator[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    """Stack many small tables, a hundred at a time: each weighs far more than its rows."""
    filled = (table for table in tables if len(table))
    parts = []
    while some := list(islice(filled, 100)):
        parts.append(pd.concat(some, ignore_index=True))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
