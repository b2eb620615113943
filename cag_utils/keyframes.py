"""The key-frame and laterality network at work: load it, predict frames. Training: training.py."""

import argparse
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from cag_utils.labels import LATERALITY, SIX_CLASSES, decide
from cag_utils.network import (
    PREDICTOR_WEIGHTS,
    load_model,
    pick_device,
    probabilities,
    read_pictures,
    save_model,
)
from cag_utils.pictures import Unreadable, find_pictures, read_pieces

__all__ = [
    "describe", "load_model", "main", "predict_files", "predict_frames", "probabilities",
    "save_model", "write_predictions",
]  # fmt: skip
DEFAULT_MODEL = PREDICTOR_WEIGHTS
HELP = """\
Say of every still (PNG, JPEG) and every frame of every cine (XA DICOM, also without a suffix) in
a folder and below it whether it shows the left or the right coronary artery, and how good it is.

columns of the CSV:
  file, frame     the file, relative to FOLDER; the frame from 0, always 0 for a still
  laterality      LCA or RCA, the side with the larger sum of its three probabilities
  quality         better (a key frame), bad or other, the likeliest of that side
  confidence      the probability of that side and quality together
  p_LCA_better, p_LCA_bad, p_LCA_other, p_RCA_better, p_RCA_bad, p_RCA_other

Hidden files, DICOMDIR and files of other kinds are passed over. The CSV appears only when it is
whole; on an error the exit code is 2. The shipped network learnt from a digital phantom: look at
some frames before you trust it with yours. --model takes a folder that notebook 01 wrote. Research
use only, no medical device.

examples:
  python -m cag_utils.keyframes predict my_stills --out sides.csv
  python -m cag_utils.keyframes predict archive --out sides.csv --skip-unreadable
  python -m cag_utils.keyframes predict cine.dcm --out sides.csv --model my_model
"""
RESULTS = ["laterality", "quality", "confidence", *(f"p_{name}" for name in SIX_CLASSES)]


def predict_frames(
    model_dir: Path, png_paths: Sequence[Path], batch_size: int = 64
) -> pd.DataFrame:
    """Say which side each still shows, how good it is, and how sure the network is.

    Args:
        model_dir: Folder of a trained network.
        png_paths: PNG or JPEG stills; only one batch is in memory at a time.
        batch_size: Stills at a time.

    Returns:
        One row a still, in order: `p_<class>` for the six classes; `laterality` (LCA or RCA),
        the side with the larger sum of its three probabilities; `quality` (better, bad or
        other), the likeliest of that side; `confidence`, the probability of that pair.

    Raises:
        FileNotFoundError: The model is missing.
        ValueError: A still is missing or is no picture.
    """
    device = pick_device()
    model, facts = load_model(model_dir, device)
    rows = [np.empty((0, len(SIX_CLASSES)))]
    for i in range(0, len(png_paths), batch_size):
        pictures = read_pictures(png_paths[i : i + batch_size], facts["image_px"])
        rows += probabilities(model, facts["model"], pictures, batch_size, device, facts)
    return describe(pd.DataFrame(np.concatenate(rows), columns=list(SIX_CLASSES)))


def describe(table: pd.DataFrame) -> pd.DataFrame:
    """Add laterality, quality and confidence to six probabilities.

    Args:
        table: (n, 6), columns SIX_CLASSES.

    Returns:
        The table of `predict_frames`.
    """
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
        paths: Stills and cines, as `pictures.find_pictures` lists them.
        unreadable: Files that cannot be read are noted here with the reason, and the rest goes on;
            of a cine that breaks off, the frames before the break are predicted. If None, the
            first such file is an error.
        batch_size: Frames at a time.

    Yields:
        One row a frame, in order: `file` (Path), `frame` (from 0), and the columns of
        `predict_frames`.

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
        place: A folder or one file, see `pictures.find_pictures`.
        out: CSV to write: `file` (relative to the folder), then as `predict_files`. Its folder is
            made if need be.
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
                table["file"] = [_inside(path, top) for path in table["file"]]
                table.to_csv(file, index=False, header=not sides, float_format="%.6f")
                sides.update(table["laterality"])
        if not sides:
            reason = next(iter(unreadable.values()))
            raise ValueError(f"none of {len(paths)} files can be read; the first: {reason}")
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return sides, unreadable


def _inside(path: Path, top: Path) -> str:
    """A path below `top` as text; names that are not UTF-8 are legal on Linux."""
    return os.fsencode(path.relative_to(top).as_posix()).decode("utf-8", "backslashreplace")


def main(arguments: Sequence[str] | None = None) -> None:
    """Predict a folder or a file: `python -m cag_utils.keyframes predict FOLDER --out CSV`."""
    parser = argparse.ArgumentParser(prog="python -m cag_utils.keyframes", description=__doc__)
    commands = parser.add_subparsers(required=True)
    predict = commands.add_parser(
        "predict",
        help="side and quality of every still and every frame of every cine in a folder",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    predict.add_argument("folder", type=Path, metavar="FOLDER", help="or one file")
    predict.add_argument("--out", type=Path, required=True, metavar="CSV", help="to write")
    predict.add_argument(
        "--model", type=Path, default=DEFAULT_MODEL, metavar="FOLDER", help="default: the shipped"
    )
    predict.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="go on after a broken file, list it at the end",
    )
    chosen = parser.parse_args(arguments)
    start = time.monotonic()
    try:
        with warnings.catch_warnings():  # pydicom's quote the header
            warnings.simplefilter("ignore")
            sides, unreadable = write_predictions(
                chosen.folder, chosen.out, chosen.model, chosen.skip_unreadable
            )
    except (OSError, ValueError) as problem:
        hint = "; --skip-unreadable goes on without it" if isinstance(problem, Unreadable) else ""
        parser.exit(2, f"error: {problem}{hint}\n")
    for reason in unreadable.values():
        sys.stderr.write(f"skipped: {reason}\n")
    n, seconds = sides.total(), time.monotonic() - start
    sys.stdout.write(
        f"{n} pictures: {sides['LCA']} LCA, {sides['RCA']} RCA; {len(unreadable)} files skipped; "
        f"{seconds:.0f} s; {chosen.out}\n"
    )


if __name__ == "__main__":
    main()
