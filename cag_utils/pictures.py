"""Stills and cines of any size, found below a folder and read ahead of the network."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from cag_utils.dicom import NotACine, iter_frames, read_header
from cag_utils.network import fit_picture

STILL_SUFFIXES = (".png", ".jpg", ".jpeg")
CINE_SUFFIXES = (".dcm", ".dicom", ".ima")  # a file with another name is told by its first bytes
EXPECTED = "need a PNG or JPEG still, or a grey XA DICOM cine"
PIECE = 32  # frames of a cine decoded in one go, a choice: bounds what is in memory
AHEAD = 128  # frames that reading may be ahead of the network, a choice: two batches
SINGLE_FRAME = "single frame, not a cine"  # `dicom.read_header` checks all but pixels before it


class Unreadable(ValueError):
    """A file that should be a picture cannot be read; the message names file and expectation."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path}: {reason}; {EXPECTED}")


class Piece(NamedTuple):
    """Frames of one file that follow one another.

    Attributes:
        path: The file.
        first: Index of the first frame, from 0.
        squares: (n, px, px) uint8, as the network takes them.
        problem: Why the file breaks off after these frames; None if it does not.
    """

    path: Path
    first: int
    squares: np.ndarray
    problem: Unreadable | None = None


def find_pictures(place: Path) -> list[Path]:
    """List the stills and cines below a folder.

    Args:
        place: A folder, searched to the bottom, or one file. Hidden files and folders, DICOMDIR
            and files that are neither PNG, JPEG nor DICOM are left out; a link to a folder is not
            followed.

    Returns:
        Files in path order, at least one. None has been decoded yet.

    Raises:
        FileNotFoundError: `place` is neither a folder nor a file.
        OSError: A folder cannot be entered.
        ValueError: There is nothing usable.
    """
    if place.is_file():
        if place.suffix.lower() in STILL_SUFFIXES or is_cine(place):
            return [place]
        raise Unreadable(place, "not a picture")
    if not place.is_dir():
        raise FileNotFoundError(f"{place}: no such folder or file; {EXPECTED}")
    found = [p for p in _visible_files(place) if p.suffix.lower() in STILL_SUFFIXES or is_cine(p)]
    if not found:
        raise ValueError(f"{place}: no picture in this folder or below it; {EXPECTED}")
    return sorted(found)


def is_cine(path: Path) -> bool:
    """Tell a DICOM file, by its first bytes or else by its suffix.

    A file that cannot be opened counts as one: nobody knows, and `count_frames` says why.
    """
    try:
        with path.open("rb") as file:
            starts = file.read(132)
    except OSError:
        return True
    return starts[128:] == b"DICM" or path.suffix.lower() in CINE_SUFFIXES


def read_still(path: Path) -> np.ndarray:
    """Read a PNG or JPEG as 8-bit grey.

    16-bit levels are divided by the largest that the fewest bits holding them all can code (8 to
    16), so that 12-bit levels in a 16-bit file do not come out black. That rule is a choice: such
    files do not say how deep they are. Colour becomes luminance, transparency is left out.

    Args:
        path: 8 or 16 bit; grey, RGB, RGBA or a palette; any size.

    Returns:
        uint8 (H, W).

    Raises:
        Unreadable: It is missing, empty, cut short or no picture.
    """
    try:
        data = np.fromfile(path, np.uint8)  # cv2.imread takes no non-ASCII path on Windows
    except OSError as error:
        raise Unreadable(path, error.strerror or "cannot be opened") from error
    if not len(data):
        raise Unreadable(path, "empty file")
    if not _is_whole(data.tobytes()):
        raise Unreadable(path, "not a picture, or cut short")
    try:
        grey = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:  # such as more pixels than OpenCV takes
        raise Unreadable(path, f"does not decode ({error.err})") from error
    if grey is None:
        raise Unreadable(path, "broken picture")
    if grey.dtype == np.uint16:
        bits = max(8, int(grey.max()).bit_length())
        grey = np.round(grey * (255 / (2**bits - 1))).astype(np.uint8)
    return grey


def count_frames(path: Path) -> int:
    """Return a cine's number of frames, 1 for a single-frame XA image; reads only the header.

    Raises:
        Unreadable: It is no grey XA image, or not readable; says which.
    """
    try:
        return read_header(path).n_frames
    except NotACine as problem:
        if problem.reason == SINGLE_FRAME:
            return 1
        raise Unreadable(path, problem.reason) from problem


def read_pieces(paths: Iterable[Path], image_px: int, n_threads: int = 2) -> Iterator[Piece]:
    """Read files in order, some frames ahead of whoever asks, so that decoding costs no wait.

    Memory holds a full frame a thread, and at most `AHEAD` squares.

    Args:
        paths: Stills and cines.
        image_px: Side of the squares, pixels.
        n_threads: Decoding threads; the result does not depend on it.

    Yields:
        The frames, file after file. A file that breaks yields what came before, then its problem.
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
            n_frames = count_frames(path)
        except Unreadable as problem:
            yield path, problem
            continue
        for first in range(0, n_frames, PIECE):
            yield path, range(first, min(first + PIECE, n_frames))


def _read_piece(path: Path, frames: range | Unreadable | None, image_px: int) -> Piece:
    squares: list[np.ndarray] = []
    first, problem = 0, None
    try:
        if isinstance(frames, Unreadable):
            raise frames
        if frames is None:
            squares.append(fit_picture(read_still(path), image_px))
        else:
            first = frames.start
            for grey in iter_frames(path, frames):
                squares.append(fit_picture(grey, image_px))
    except Unreadable as error:
        problem = error
    except NotACine as error:
        problem = Unreadable(path, error.reason)
    stack = np.stack(squares) if squares else np.empty((0, image_px, image_px), np.uint8)
    return Piece(path, first, stack, problem)


def _visible_files(folder: Path) -> Iterator[Path]:
    def stop(error: OSError) -> None:
        raise error

    for top, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(top) / name for name in names if not name.startswith("."))
        yield from (p for p in paths if p.is_file() and p.name.upper() != "DICOMDIR")


def _is_whole(data: bytes) -> bool:
    """Whether a PNG or JPEG has its end: not every OpenCV minds if the rest is missing."""
    if data.startswith(b"\x89PNG"):
        return b"IEND" in data[-4096:]  # some writers add a few bytes behind it
    if data.startswith(b"\xff\xd8"):
        return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
    return False
