"""Real angiograms to hold the phantom against: found and read in place, never copied."""

import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from cag_utils.dicom import iter_frames
from cag_utils.study import root, under_root


@dataclass(frozen=True)
class RealPictures:
    """What a folder of real angiograms holds.

    Attributes:
        stills: PNG files, by name.
        cines: DICOM files, by name.
        labels: `labels.csv`, one row a file and frame range; no rows if it is not there.
    """

    stills: list[Path]
    cines: list[Path]
    labels: pd.DataFrame


def list_real(folder: str = "") -> RealPictures:
    """List a folder of real pictures.

    Args:
        folder: The folder; empty for `$CAG_REAL_DATA`, else `../shared/real` beside the repository.

    Returns:
        Its stills, cines and labels; all empty where no folder was named and none is there.

    Raises:
        FileNotFoundError: A folder was named and is not there.
    """
    default = os.environ.get("CAG_REAL_DATA") or root().parent / "shared" / "real"
    place = under_root(folder or default)
    if folder and not place.is_dir():
        raise FileNotFoundError(f"{place} is no folder: name one that holds real pictures, or none")
    table = place / "labels.csv"
    columns = ["file", "frames", "laterality", "contrast"]
    labels = pd.read_csv(table, dtype=str) if table.exists() else pd.DataFrame(columns=columns)
    return RealPictures(sorted(place.glob("*.png")), sorted(place.glob("*.dcm")), labels)


def read_stills(paths: list[Path]) -> list[np.ndarray]:
    """Read stills as grey pictures.

    Args:
        paths: PNG files.

    Returns:
        (H, W) uint8 each.

    Raises:
        ValueError: A file is no picture.
    """
    found = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths]
    bad = [path.name for path, picture in zip(paths, found, strict=True) if picture is None]
    if bad:
        raise ValueError(f"no pictures: {', '.join(bad)}")
    return found


def read_cine(path: Path) -> np.ndarray:
    """Read a cine as (t, H, W) uint8 frames, the way every notebook reads one.

    Raises:
        NotACine: The file holds none.
    """
    return np.stack(list(iter_frames(path)))


def frame_states(labels: pd.DataFrame, file: str, n_frames: int) -> pd.Series:
    """Spread a cine's labelled ranges over its frames.

    Args:
        labels: Rows of `labels.csv`; `frames` is `first-last`, both included.
        file: The cine's file name.
        n_frames: How many frames it has.

    Returns:
        (n_frames,) contrast state of each frame, empty between the ranges.

    Raises:
        ValueError: The file has no row.
    """
    rows = labels[labels["file"] == file]
    if rows.empty:
        raise ValueError(f"labels.csv has no row for {file}")
    states = pd.Series("", pd.RangeIndex(n_frames, name="frame"))
    for row in rows.itertuples():
        first, last = map(int, row.frames.split("-"))
        states.loc[first:last] = row.contrast  # .loc includes its end
    return states
