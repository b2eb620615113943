"""Side and quality of every still and every frame of every cine in a folder, as a command."""

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from cag_utils.cines.stills import Unreadable
from cag_utils.keyframes.predict import DEFAULT_MODEL, in_words, write_predictions

HELP = """\
Say of every still (PNG, JPEG) and every frame of every cine (XA DICOM, also without a suffix) in
a folder and below it whether it shows the left or the right coronary artery, and how good it is.

columns of the CSV:
  file, frame     the file, relative to FOLDER; the frame from 0, always 0 for a still
  laterality      LCA or RCA, the side with the larger sum of its three probabilities
  quality         better (a key frame), bad or other, the likeliest of that side
  confidence      the probability of that side and quality together
  p_LCA_better, p_LCA_bad, p_LCA_other, p_RCA_better, p_RCA_bad, p_RCA_other

Files in a zip are read; hidden files, DICOMDIR, reports and files of other kinds are passed over
and counted. The CSV appears only when it is whole, with NAME_rejected.csv (file, frame, reason)
beside it; on an error the exit code is 2. The shipped network learnt from a digital phantom: look
at some frames before you trust it with yours. --model takes a folder that notebook 01 wrote.
Research use only, no medical device.

examples:
  python -m cag_utils.keyframes predict my_stills --out sides.csv
  python -m cag_utils.keyframes predict archive --out sides.csv --skip-unreadable
  python -m cag_utils.keyframes predict cine.dcm --out sides.csv --model my_model
"""


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
    words = "go on after a broken file, list it at the end"
    predict.add_argument("--skip-unreadable", action="store_true", help=words)
    chosen, start = parser.parse_args(arguments), time.monotonic()
    try:
        with warnings.catch_warnings(action="ignore"):  # pydicom's quote the header
            done = write_predictions(
                chosen.folder, chosen.out, chosen.model, chosen.skip_unreadable
            )
    except (OSError, ValueError) as problem:
        hint = "; --skip-unreadable goes on without it" if isinstance(problem, Unreadable) else ""
        parser.exit(2, f"error: {problem}{hint}\n")
    for row in done.rejected:
        sys.stderr.write(f"skipped: {row.path}: {in_words(row)}\n")
    n_lost = sum(row.frame is None for row in done.rejected)
    n, seconds, sides = done.sides.total(), time.monotonic() - start, done.sides
    sys.stdout.write(
        f"{n} pictures: {sides['LCA']} LCA, {sides['RCA']} RCA; of {done.n_files} files "
        f"{done.n_files - n_lost - done.n_passed_over} read, {n_lost} skipped, "
        f"{done.n_passed_over} passed over; {seconds:.0f} s; {chosen.out}\n"
    )


if __name__ == "__main__":
    main()
