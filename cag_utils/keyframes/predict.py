"""The key-frame network at work: stills and cines are found, read ahead of it, and predicted."""

import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from cag_utils.cines.dicom import NotACine, iter_frames, path_within, read_header
from cag_utils.cines.stills import EXPECTED, Unreadable, fit_picture, read_still
from cag_utils.keyframes.labels import LATERALITY, SIX_CLASSES, decide
from cag_utils.keyframes.network import PREDICTOR_WEIGHTS, load_model, pick_device, probabilities

DEFAULT_MODEL = PREDICTOR_WEIGHTS
STILL_SUFFIXES = (".png", ".jpg", ".jpeg")
CINE_SUFFIXES = (".dcm", ".dicom", ".ima")  # a file with another name is told by its first bytes
PIECE = 32  # frames of a cine decoded in one go, a choice: bounds what is in memory
AHEAD = 128  # frames that reading may be ahead of the network, a choice: two batches
SINGLE_FRAME = "single frame, not a cine"  # the last check of `read_header` but pixels
RESULTS = ["laterality", "quality", "confidence", *(f"p_{name}" for name in SIX_CLASSES)]


def predict_frames(
    model_dir: Path, png_paths: Sequence[Path], batch_size: int = 64
) -> pd.DataFrame:
    """Say which side each still shows, how good it is, and how sure the network is.

    Args:
        model_dir: Folder of a trained network.
        png_paths: PNG or JPEG stills; only a few are in memory at a time.
        batch_size: Stills at a time.

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
    unreadable: dict[Path, str] | None = None,
    batch_size: int = 64,
) -> Iterator[pd.DataFrame]:
    """Predict every frame of stills and cines, batch by batch; only a few are in memory.

    Args:
        model_dir: Folder of a trained network.
        paths: Stills and cines.
        unreadable: Gets the files that cannot be read with the reason; of a cine that breaks off,
            the frames before are predicted. If None, the first such file is an error.
        batch_size: Frames at a time.

    Yields:
        One row a frame, in order: `file` (Path), `frame` (from 0), and `predict_frames`' columns.

    Raises:
        FileNotFoundError: The model is missing.
        ValueError: The model is broken or of another study; `Unreadable`: a file cannot be read.
    """
    device = pick_device()
    model, facts = load_model(model_dir, device)
    frames = _frames(paths, facts["image_px"], unreadable)
    while batch := list(islice(frames, batch_size)):
        files, numbers, squares = zip(*batch, strict=True)
        pictures = torch.from_numpy(np.stack(squares)[:, None])
        found = probabilities(model, facts["model"], pictures, batch_size, device, facts)
        table = pd.DataFrame(np.concatenate(list(found)), columns=list(SIX_CLASSES))
        first = pd.DataFrame({"file": files, "frame": numbers})
        yield pd.concat([first, describe(table)[RESULTS]], axis=1)


def _frames(
    paths: Iterable[Path], image_px: int, unreadable: dict[Path, str] | None
) -> Iterator[tuple[Path, int, np.ndarray]]:
    broken = None
    for piece in read_pieces(paths, image_px):
        if piece.path == broken:  # later pieces of a file that has broken off
            continue
        yield from ((piece.path, piece.first + i, x) for i, x in enumerate(piece.squares))
        if piece.problem is None:
            continue
        if unreadable is None:
            raise piece.problem
        broken = piece.path
        unreadable[broken] = str(piece.problem)


def write_predictions(
    place: Path, out: Path, model_dir: Path = DEFAULT_MODEL, skip_unreadable: bool = False
) -> tuple[Counter, dict[Path, str]]:
    """Predict every picture below a folder into a CSV, which appears only when it is whole.

    Args:
        place: A folder or one file, see `find_pictures`.
        out: CSV to write: `file` (relative to the folder), then as `predict_files`.
        model_dir: Folder of a trained network.
        skip_unreadable: Go on after a file that cannot be read.

    Returns:
        How many frames show LCA and RCA, and the files that cannot be read with their reason.

    Raises:
        OSError: A folder, the model or `out` is missing or closed.
        ValueError: Nothing usable, a bad model, or a file that cannot be read.
    """
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder; --out needs the name of a CSV file")
    paths = find_pictures(place)
    top = place if place.is_dir() else place.parent
    unreadable: dict[Path, str] = {}
    sides: Counter = Counter()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    try:
        with (
            partial.open("w", encoding="utf-8", newline="") as file,
            tqdm(paths, desc="files", unit="file", mininterval=1) as bar,
        ):
            notes = unreadable if skip_unreadable else None
            for table in predict_files(model_dir, bar, notes):
                table["file"] = [path_within(path, top) for path in table["file"]]
                table.to_csv(file, index=False, header=not sides, float_format="%.6f")
                sides.update(table["laterality"])
        if not sides:
            reason = next(iter(unreadable.values()))
            raise ValueError(f"none of {len(paths)} files can be read; the first: {reason}")
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return sides, unreadable


class Piece(NamedTuple):
    """Frames of one file that follow one another."""

    path: Path
    first: int  # index of the first frame, from 0
    squares: np.ndarray  # (n, px, px) uint8, as the network takes them
    problem: Unreadable | None  # why the file breaks off after these frames


def find_pictures(place: Path) -> list[Path]:
    """List the stills and cines below a folder, or one file, in path order, without decoding.

    Hidden files and folders, DICOMDIR, links to folders and files that are neither PNG, JPEG nor
    DICOM are left out.

    Raises:
        FileNotFoundError: `place` is neither a folder nor a file.
        OSError: A folder cannot be entered.
        ValueError: There is nothing usable.
    """
    if place.is_file():
        if place.suffix.lower() in STILL_SUFFIXES or _is_cine(place):
            return [place]
        raise Unreadable(place, "not a picture")
    if not place.is_dir():
        raise FileNotFoundError(f"{place}: no such folder or file; {EXPECTED}")
    found = [p for p in _visible_files(place) if p.suffix.lower() in STILL_SUFFIXES or _is_cine(p)]
    if not found:
        raise ValueError(f"{place}: no picture in this folder or below it; {EXPECTED}")
    return sorted(found)


def _is_cine(path: Path) -> bool:
    """Tell DICOM by its first bytes or its suffix; who cannot be opened is asked again later."""
    try:
        with path.open("rb") as file:
            starts = file.read(132)
    except OSError:
        return True
    return starts[128:] == b"DICM" or path.suffix.lower() in CINE_SUFFIXES


def read_pieces(paths: Iterable[Path], image_px: int, n_threads: int = 2) -> Iterator[Piece]:
    """Read files in order, some frames ahead of whoever asks, so that decoding costs no wait.

    A file that breaks yields what came before, then its problem. Memory holds a full frame a
    thread, and at most `AHEAD` squares of `image_px` pixels a side.
    """
    waiting: deque[tuple[int, Future[Piece]]] = deque()
    n_ahead = 0
    pool = ThreadPoolExecutor(n_threads)
    try:
        for path, frames in _jobs(paths):
            size = len(frames) if isinstance(frames, range) else 1
            while n_ahead + size > AHEAD:
                done, future = waiting.popleft()
                n_ahead -= done
                yield future.result()
            waiting.append((size, pool.submit(_read_piece, path, frames, image_px)))
            n_ahead += size
        while waiting:
            yield waiting.popleft()[1].result()
    finally:
        pool.shutdown(cancel_futures=True)


def _jobs(paths: Iterable[Path]) -> Iterator[tuple[Path, range | Unreadable | None]]:
    """Each still (None), each piece of a cine (its frames), each cine without a usable header."""
    for path in paths:
        if path.suffix.lower() in STILL_SUFFIXES:
            yield path, None
            continue
        try:
            n_frames = read_header(path).n_frames
        except NotACine as problem:
            if problem.reason != SINGLE_FRAME:
                yield path, Unreadable(path, problem.reason)
                continue
            n_frames = 1
        for first in range(0, n_frames, PIECE):
            yield path, range(first, min(first + PIECE, n_frames))


def _read_piece(path: Path, frames: range | Unreadable | None, image_px: int) -> Piece:
    squares: list[np.ndarray] = []
    problem = None
    try:
        if isinstance(frames, Unreadable):
            raise frames
        for grey in iter_frames(path, frames) if frames else [read_still(path)]:
            squares.append(fit_picture(grey, image_px))
    except Unreadable as error:
        problem = error
    except NotACine as error:
        problem = Unreadable(path, error.reason)
    stack = np.stack(squares) if squares else np.empty((0, image_px, image_px), np.uint8)
    return Piece(path, frames.start if isinstance(frames, range) else 0, stack, problem)


def _visible_files(folder: Path) -> Iterator[Path]:
    def stop(error: OSError) -> None:
        raise error

    for top, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(top) / name for name in names if not name.startswith("."))
        yield from (p for p in paths if p.is_file() and p.name.upper() != "DICOMDIR")
