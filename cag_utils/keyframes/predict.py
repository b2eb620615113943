"""The key-frame network at work: stills and cines are found, read ahead of it, and predicted."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from cag_utils.cines.dicom import list_files, looks_like_dicom, path_within, public_words
from cag_utils.cines.guard import Guard
from cag_utils.cines.reasons import NotACine, Rejected
from cag_utils.cines.stills import (
    EXPECTED,
    Piece,
    Unreadable,
    cut_film,
    fit_picture,
    read_still,
    stack_squares,
)
from cag_utils.corpus.pairs import SIDES, choose_key_frames
from cag_utils.keyframes.labels import LATERALITY, QUALITY, SIX_CLASSES, decide
from cag_utils.keyframes.network import PREDICTOR_WEIGHTS, load_model, pick_device, probabilities
from cag_utils.tables import disarm, write_table

DEFAULT_MODEL = PREDICTOR_WEIGHTS
STILL_SUFFIXES = (".png", ".jpg", ".jpeg")
AHEAD = 128  # stills that reading may be ahead of the network, a choice: two batches
REJECTED_COLUMNS = ["file", "frame", "reason", "words"]
ANGLES = ["primary_angle_deg", "secondary_angle_deg"]
CINE_COLUMNS = ["file", "frames", "laterality", "key_frame", "quality", "confidence", *ANGLES]
RESULTS = ["laterality", "quality", "confidence", *(f"p_{name}" for name in SIX_CLASSES)]
FRAME_COLUMNS = ["file", "frame", *RESULTS]


def predict_frames(
    model_dir: Path, png_paths: Sequence[Path], batch_size: int = 64
) -> pd.DataFrame:
    """Say which side each still shows, how good it is, and how sure the network is.

    Args:
        png_paths: PNG or JPEG stills; only a few are in memory at a time.

    Returns:
        One row a still, in order: `p_<class>` for the six classes; `laterality` (LCA or RCA),
        the side with the larger sum of its three probabilities; `quality` (better, bad or
        other), the likeliest of that side; `confidence`, the probability of that pair.
    """
    none = describe(pd.DataFrame(columns=list(SIX_CLASSES), dtype=float))
    tables = list(predict_files(model_dir, png_paths, batch_size=batch_size))
    return pd.concat(tables, ignore_index=True)[none.columns] if tables else none


def describe(table: pd.DataFrame) -> pd.DataFrame:
    """Turn six probabilities, (n, 6) with columns SIX_CLASSES, into `predict_frames`' table."""
    side = decide(table, LATERALITY)
    own = table.where(pd.DataFrame({c: side == LATERALITY[c] for c in SIX_CLASSES}), -1.0)
    best = own.to_numpy().argmax(axis=1)
    out = table.add_prefix("p_")
    out["laterality"] = side
    out["quality"] = [SIX_CLASSES[i].split("_")[1] for i in best]
    out["confidence"] = own.to_numpy()[np.arange(len(own)), best]
    return out


def predict_files(
    model_dir: Path,
    paths: Iterable[Path],
    unreadable: list[Rejected] | None = None,
    batch_size: int = 64,
    device: str = "auto",
) -> Iterator[pd.DataFrame]:
    """Predict every frame of stills and cines, batch by batch; only a few are in memory.

    Args:
        unreadable: Gets the files that cannot be read, and the frames of cines of which others
            can. If None, the first such file or frame is an error; of what is merely passed over
            (reports, presentation states), none is.
        device: See `pick_device`.

    Yields:
        One row a frame, in order: `file` (Path), `frame` (from 0), `predict_frames`' columns, and
        the positioner's angles (degrees; missing where the header has none, and of stills).

    Raises:
        FileNotFoundError: The model is missing.
        ValueError: The model is broken or of another study; `Unreadable`: a file cannot be read.
    """
    place = pick_device(device)
    model, facts = load_model(model_dir, place)
    frames = _frames(paths, facts["image_px"], unreadable)
    while batch := list(islice(frames, batch_size)):
        files, numbers, squares, angles = zip(*batch, strict=True)
        pictures = torch.from_numpy(np.stack(squares)[:, None])
        found = probabilities(model, facts["model"], pictures, batch_size, place, facts)
        table = pd.DataFrame(np.concatenate(list(found)), columns=list(SIX_CLASSES))
        first = pd.DataFrame({"file": files, "frame": numbers})
        last = pd.DataFrame(np.stack(angles), columns=ANGLES)
        yield pd.concat([first, describe(table)[RESULTS], last], axis=1)


def _frames(
    paths: Iterable[Path], image_px: int, unreadable: list[Rejected] | None
) -> Iterator[tuple[Path, int, np.ndarray, np.ndarray]]:
    for piece in read_pieces(paths, image_px):
        for problem in piece.problems:
            if unreadable is not None:
                unreadable.append(problem)
            elif problem.reason != "passed over":
                raise Unreadable(piece.path, in_words(problem))
        files = [piece.path] * len(piece.frames)
        yield from zip(files, piece.frames, piece.squares, piece.angles_deg, strict=True)


def in_words(problem: Rejected) -> str:
    """Say what is wrong with a file, or with which of its frames."""
    where = "" if problem.frame is None else f"frame {problem.frame}: "
    return f"{where}{problem.reason}" + (f" ({problem.note})" if problem.note else "")


class Predicted(NamedTuple):
    """What became of what was found."""

    sides: Counter  # frames that show LCA, RCA
    n_files: int  # found, of any kind
    rejected: list[Rejected]  # files that cannot be read, and frames of others
    n_passed_over: int  # files that are neither stills nor cines
    cines: pd.DataFrame  # from `summarise_cines`, one row a cine


def write_predictions(
    place: Path,
    out: Path,
    model_dir: Path = DEFAULT_MODEL,
    device: str = "auto",
    has_progress: bool = True,
) -> Predicted:
    """Predict every picture below a folder into a CSV; what cannot be read costs itself alone.

    Beside it: `<out>_rejected.csv`, what cannot be read, and `<out>_cines.csv`, one row a cine.
    The rows so far stand in `<out>.part`, which stays if the run is broken off.

    Args:
        place: A folder or one file, see `find_pictures`.
        out: CSV to write: `file` (relative to the folder; `tables.rearm` undoes an
            apostrophe before `=`), then as `predict_files`.
        device: See `pick_device`.

    Raises:
        OSError: The model or `out` is missing or closed.
        ValueError: Nothing usable, a bad model, no such device.
    """
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder; --out needs the name of a CSV file")
    paths, closed, n_passed = find_pictures(place)
    top = place if place.is_dir() else place.parent
    out.parent.mkdir(parents=True, exist_ok=True)
    sides, cines, part = Counter(), [], out.with_name(f"{out.name}.part")
    bar = tqdm(paths, desc="files", unit="file", mininterval=1, disable=not has_progress)
    try:
        with part.open("w", encoding="utf-8", newline="") as file, bar:
            for table in whole_files(predict_files(model_dir, bar, closed, device=device)):
                cines.append(summarise_cines(table).round(6))
                for rows in (table, cines[-1]):
                    rows["file"] = [path_within(path, top) for path in rows["file"]]
                shown = table[FRAME_COLUMNS].assign(file=table["file"].map(disarm))
                shown.to_csv(file, index=False, header=not sides, float_format="%.6f")
                sides.update(table["laterality"])
    finally:
        if not sides:
            part.unlink(missing_ok=True)
    rejected = [row for row in closed if row.reason != "passed over"]
    if not sides:
        first = f"; the first: {rejected[0].path}: {in_words(rejected[0])}" if rejected else ""
        raise ValueError(f"none of {len(paths)} files can be read{first}")
    part.replace(out)
    cines = pd.concat(cines, ignore_index=True)
    write_table(cines, out.with_name(f"{out.stem}_cines.csv"))
    rows = [(path_within(r.path, top), r.frame, r.reason, public_words(r)) for r in rejected]
    table = pd.DataFrame(rows, columns=REJECTED_COLUMNS).astype({"frame": "Int64"})
    write_table(table, out.with_name(f"{out.stem}_rejected.csv"))
    n_passed += len(closed) - len(rejected)
    known = set(paths)
    n_files = len(paths) + n_passed + sum(r.path not in known for r in rejected)
    return Predicted(sides, n_files, rejected, n_passed, cines)


def whole_files(tables: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Cut batches of `predict_files` anew, so that no file's rows are in two of them."""
    held = None
    for table in tables:
        held = table if held is None else pd.concat([held, table], ignore_index=True)
        is_last = held["file"] == held["file"].iloc[-1]
        if not is_last.all():
            yield held[~is_last].reset_index(drop=True)
            held = held[is_last].reset_index(drop=True)
    if held is not None:
        yield held


def summarise_cines(table: pd.DataFrame) -> pd.DataFrame:
    """Say of each cine which side it shows, and which of its frames is the surest key frame.

    The side is the one whose `better` probabilities add up to more over the cine; the key frame is
    notebook 03's: of that side's frames the one likeliest `better`.

    Args:
        table: Rows of whole files, of `predict_files`; stills are left out.

    Returns:
        `CINE_COLUMNS`: file, frames (read), laterality, key_frame, its quality (if not `better`,
        look before you use it), its confidence (the probability of side and `better` together,
        0 to 1) and the positioner's angles there, in degrees.
    """
    films = table[~table["file"].map(_is_still)].rename(columns={"file": "video_id"})
    together = films.groupby("video_id")[["p_LCA_better", "p_RCA_better"]].transform("sum")
    is_left = together["p_LCA_better"] >= together["p_RCA_better"]
    films["laterality"] = is_left.map({True: "LCA", False: "RCA"})
    left, right = (films.filter(like=f"p_{side}_").to_numpy().argmax(1) for side in SIDES["en"])
    films["quality"] = np.array([*QUALITY.values()][:3])[np.where(is_left, left, right)]
    best = choose_key_frames(films, 1, 0.0)
    counts = films["video_id"].value_counts()
    best = best.assign(frames=best["video_id"].map(counts)).astype({"frames": int})
    return best.rename(columns={"video_id": "file", "frame": "key_frame"})[CINE_COLUMNS]


def find_pictures(place: Path) -> tuple[list[Path], list[Rejected], int]:
    """List the stills and cines below a folder, zips opened, or one file, in path order.

    Hidden files and folders, and what is neither PNG, JPEG nor DICOM, are passed over.

    Returns:
        The pictures; folders that cannot be entered, and links; how many files are passed over.

    Raises:
        FileNotFoundError: `place` is neither a folder nor a file.
        ValueError: There is nothing usable.
    """
    if place.is_file():
        if not _is_picture(place):
            raise Unreadable(place, "not a picture")
        return [place], [], 0
    if not place.is_dir():
        raise FileNotFoundError(f"{place}: no such folder or file; {EXPECTED}")
    files, closed = list_files(place)
    found = [p for p in files if not _is_hidden(p.relative_to(place)) and _is_picture(p)]
    if not found:
        words = "".join(f"; {r.path}: {in_words(r)}" for r in closed[:1])
        raise ValueError(f"{place}: no picture in this folder or below it{words}; {EXPECTED}")
    return found, closed, len(files) - len(found)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts) or path.name.upper() == "DICOMDIR"


def _is_picture(path: Path) -> bool:
    return _is_still(path) or looks_like_dicom(path)


def _is_still(path: Path) -> bool:
    return path.suffix.lower() in STILL_SUFFIXES


def read_pieces(paths: Iterable[Path], image_px: int, n_workers: int = 2) -> Iterator[Piece]:
    """Read files in order, ahead of whoever asks, so that decoding costs no wait.

    Cines are decoded in processes that may die, stills in threads. Memory holds a full frame a
    worker, and at most `AHEAD` squares of `image_px` pixels a side, or two pieces of each cine.
    """
    with Guard(n_workers) as guard:
        for is_still, group in groupby(paths, _is_still):
            if is_still:
                yield from _read_stills(group, image_px, n_workers)
                continue
            for path, answer in guard.run(partial(cut_film, image_px=image_px), group):
                yield _lost(path, answer, image_px) if isinstance(answer, NotACine) else answer


def _read_stills(paths: Iterable[Path], image_px: int, n_threads: int) -> Iterator[Piece]:
    waiting: deque[Future[Piece]] = deque()
    pool = ThreadPoolExecutor(n_threads)
    try:
        for path in paths:
            if len(waiting) == AHEAD:
                yield waiting.popleft().result()
            waiting.append(pool.submit(_read_still, path, image_px))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read_still(path: Path, image_px: int) -> Piece:
    try:
        square = fit_picture(read_still(path), image_px)
    except Unreadable as error:
        known = error.reason == "empty file"
        problem = NotACine("empty file") if known else NotACine("not a picture", error.reason)
        return _lost(path, problem, image_px)
    return Piece(path, [0], square[None], np.full((1, 2), np.nan), [])


def _lost(path: Path, problem: NotACine, image_px: int) -> Piece:
    none = stack_squares([], image_px)
    return Piece(path, [], none, np.empty((0, 2)), [Rejected.of(path, problem)])
