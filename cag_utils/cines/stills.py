"""Stills: the one way to read a picture file as 8-bit grey, what of it is open, what is flat."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from cag_utils.cines.dicom import angles_deg, open_film
from cag_utils.cines.reasons import NotACine, Rejected

PIECE = 32  # frames of a cine handed on in one go, a choice: bounds what is in memory
EXPECTED = "need a PNG or JPEG still, or a grey XA DICOM cine"
PATCH_PX = 32  # noise patches; choice: wide enough for 16 frequencies, small enough to be flat
FLATTEST = 0.15  # share of the patches that counts as flat; choice
UNCLIPPED = (12, 243)  # mean grey of a patch whose noise neither end of the scale cuts; choice
STEP_GREY, STEP_SHARE, STEP_REACH = 18.0, 0.72, 0.25  # what a shutter's edge is; choice
BLACK = 10  # grey of what no X-ray reached (corners of a round field); choice


class Unreadable(ValueError):
    """A file that should be a picture cannot be read; the message names file and expectation."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path}: {reason}; {EXPECTED}")
        self.reason = reason


def read_still(path: Path) -> np.ndarray:
    """Read a PNG or JPEG of any size, depth and colours as 8-bit grey, uint8 (H, W).

    16-bit levels are divided by the largest that the fewest bits holding them all can code, so that
    12-bit levels in a 16-bit file do not come out black: a choice, as files do not say how deep
    they are. Colour becomes luminance, transparency is left out.

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


def _is_whole(data: bytes) -> bool:
    """Whether a PNG or JPEG has its end: not every OpenCV minds if the rest is missing."""
    if data.startswith(b"\x89PNG"):
        return b"IEND" in data[-4096:]  # some writers add a few bytes behind it
    if data.startswith(b"\xff\xd8"):
        return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
    return False


def fit_picture(grey: np.ndarray, image_px: int) -> np.ndarray:
    """Squash a picture, (H, W) uint8, to a square; each pixel is the mean of what it covers."""
    return cv2.resize(grey, (image_px, image_px), interpolation=cv2.INTER_AREA)


class Piece(NamedTuple):
    """Frames of one file that follow one another, and those between them that are broken."""

    path: Path
    frames: list[int]  # from 0
    squares: np.ndarray  # (n, px, px) uint8, as a network takes them
    angles_deg: np.ndarray  # (n, 2) of the positioner, primary and secondary; NaN where unknown
    problems: list[Rejected]


def cut_film(path: Path, image_px: int) -> Iterator[Piece]:
    """Read a DICOM cine, or a single frame, as small squares, piece by piece.

    Raises:
        NotACine: It is none, or no frame of it decodes.
    """
    with open_film(path) as film:
        film.grey_scale()
        kinds = ("Primary", "Secondary")
        angles = np.column_stack([angles_deg(film.header, kind, film.n_told) for kind in kinds])
        for first in range(0, film.n_told, PIECE):
            frames, squares, problems = [], [], []
            for index, grey in film.frames(range(first, min(first + PIECE, film.n_told))):
                if isinstance(grey, NotACine):
                    problems.append(Rejected.of(path, grey, index))
                else:
                    frames.append(index)
                    squares.append(fit_picture(grey, image_px))
            yield Piece(path, frames, stack_squares(squares, image_px), angles[frames], problems)


def stack_squares(squares: list[np.ndarray], image_px: int) -> np.ndarray:
    """Stack pictures into (n, px, px) uint8, also none."""
    return np.stack(squares) if squares else np.empty((0, image_px, image_px), np.uint8)


def open_field(picture: np.ndarray) -> np.ndarray:
    """Find what the collimator leaves open: inside its straight edges, without black corners.

    Raises:
        ValueError: The picture is not (H, W) uint8 of at least 64 pixels a side.
    """
    if picture.ndim != 2 or picture.dtype != np.uint8 or min(picture.shape) < 2 * PATCH_PX:
        raise ValueError(
            f"a picture must be (H, W) uint8 of {2 * PATCH_PX} px or more a side, "
            f"got {picture.shape} {picture.dtype}"
        )
    field = np.zeros(picture.shape, bool)
    rows, columns = (
        (_opening(profile), _opening(profile[::-1]))
        for profile in map(_row_medians, (picture, np.ascontiguousarray(picture.T)))
    )
    field[rows[0] : picture.shape[0] - rows[1], columns[0] : picture.shape[1] - columns[1]] = True
    black = cv2.medianBlur(picture, 5) < BLACK
    _, parts = cv2.connectedComponents(black.astype(np.uint8))
    border = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
    return field & ~np.isin(parts, np.setdiff1d(border, 0))


def _row_medians(picture: np.ndarray) -> np.ndarray:
    """Median of each row, float64: a radix sort of bytes takes a third of `np.median`'s time."""
    ordered, n = np.sort(picture, axis=1, kind="stable"), picture.shape[1]
    return (ordered[:, (n - 1) // 2].astype(float) + ordered[:, n // 2]) / 2


def _opening(profile: np.ndarray) -> int:
    """Pixels behind the shutter at the profile's beginning: up to its strongest step, or none."""
    near = 4
    edges = np.arange(3, int(STEP_REACH * len(profile)))
    after = profile[np.minimum(edges + near, len(profile) - 1)]
    rise = after - profile[np.maximum(edges - near, 0)]
    edge = int(edges[np.argmax(rise)])
    behind, inside = np.median(profile[:edge]), np.median(profile[edge + near : edge + 60])
    return edge + near if rise.max() >= STEP_GREY and behind < STEP_SHARE * inside else 0


def flat_patches(picture: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Cut out the flattest patches and take their smooth trend (a quadratic) out.

    Args:
        picture: (H, W) grey levels, uint8 or float.
        field: (H, W) bool, from `open_field`.

    Returns:
        (n, 32, 32) float64 grey levels: the 15 % of all whole patches that vary least.

    Raises:
        ValueError: No patch fits into the open field.
    """
    step = PATCH_PX // 2
    view = np.lib.stride_tricks.sliding_window_view
    whole = view(field, (PATCH_PX, PATCH_PX))[::step, ::step].all(axis=(2, 3))
    patches = view(picture, (PATCH_PX, PATCH_PX))[::step, ::step][whole].reshape(-1, PATCH_PX**2)
    if picture.dtype == np.uint8:
        mean = patches.mean(axis=1)
        patches = patches[(mean > UNCLIPPED[0]) & (mean < UNCLIPPED[1])]
    if not len(patches):
        raise ValueError(f"no flat patch of {PATCH_PX} x {PATCH_PX} px fits into the open field")
    v, u = (w.ravel() for w in np.mgrid[-1 : 1 : PATCH_PX * 1j, -1 : 1 : PATCH_PX * 1j])
    basis, _ = np.linalg.qr(np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=1))
    patches = patches.astype(float)
    trend = patches @ basis
    left = np.einsum("ij,ij->i", patches, patches) - np.einsum("ij,ij->i", trend, trend)
    order = np.argsort(left)[: max(4, int(FLATTEST * len(left)))]
    flat = patches[order] - trend[order] @ basis.T
    return flat.reshape(-1, PATCH_PX, PATCH_PX)
