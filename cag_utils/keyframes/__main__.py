"""Side and quality of every still and every frame of every cine in a folder, as a command."""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from cag_utils.keyframes.predict import DEFAULT_MODEL, Predicted, in_words, write_predictions

HELP = """\
Say of every still (PNG, JPEG) and every frame of every cine (XA DICOM, also without a suffix) in
a folder and below it whether it shows the left or the right coronary artery, and how good it is.

columns of the CSV:
  file, frame     the file, relative to FOLDER; the frame from 0, always 0 for a still
  laterality      LCA or RCA, the side with the larger sum of its three probabilities
  quality         better (a key frame), bad or other, the likeliest of that side
  confidence      the probability of that side and quality together
  p_LCA_better, p_LCA_bad, p_LCA_other, p_RCA_better, p_RCA_bad, p_RCA_other

beside it, NAME_cines.csv, one row a cine:
  file, frames, laterality of the cine, key_frame (the surest), its quality and confidence,
  primary_angle_deg (LAO positive), secondary_angle_deg (cranial positive), where known
and NAME_rejected.csv: file, frame, reason of what cannot be read.

Files in a zip are read; hidden files, DICOMDIR, reports and files of other kinds are passed over
and counted. A file that cannot be read costs itself alone. The CSV appears when it is whole; of a
run that is broken off, the rows so far stay in CSV.part.

exit codes:
  0    all pictures are in the CSV
  2    no CSV: a wrong command, nothing usable, no such device, a full disk
  3    the CSV is there, and files or frames could not be read (0 with --skip-unreadable)
  130  interrupted

The shipped network learnt from a digital phantom: look at some frames before you trust it with
yours. --model takes a folder that notebook 01 wrote. Research use only, no medical device.

examples:
  cag-keyframes predict my_stills --out sides.csv
  cag-keyframes predict archive --out sides.csv --quiet --json > summary.json
  python -m cag_utils.keyframes predict cine.dcm --out sides.csv --model my_model --device cpu
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict a folder or a file: `cag-keyframes predict FOLDER --out CSV`."""
    parser = argparse.ArgumentParser(prog="cag-keyframes", description=__doc__)
    told = f"%(prog)s {version('cag-vlm-study')}"
    parser.add_argument("--version", action="version", version=told)
    commands = parser.add_subparsers(required=True)
    predict = commands.add_parser(
        "predict",
        help="side and quality of every still and every frame of every cine in a folder",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = predict.add_argument
    add("folder", type=Path, metavar="FOLDER", help="or one file")
    add("--out", type=Path, required=True, metavar="CSV", help="to write")
    add("--model", type=Path, default=DEFAULT_MODEL, metavar="FOLDER", help="default: the shipped")
    add("--device", default="auto", help="auto (default: a GPU if there is one), cpu, cuda, cuda:1")
    add("--json", action="store_true", help="print counts and the cines' rows as one JSON object")
    add("--quiet", action="store_true", help="print errors alone, and what --json asks for")
    words = "files that cannot be read are no failure: exit code 0"
    add("--skip-unreadable", action="store_true", help=words)
    chosen, start = parser.parse_args(arguments), time.monotonic()
    try:
        with warnings.catch_warnings(action="ignore"):  # pydicom's quote the header
            done = write_predictions(
                chosen.folder, chosen.out, chosen.model, chosen.device, not chosen.quiet
            )
    except (OSError, ValueError) as problem:
        parser.exit(2, f"error: {problem}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"\ninterrupted; the rows so far are in {chosen.out}.part\n")
    if not chosen.quiet:
        for row in done.rejected:
            sys.stderr.write(f"skipped: {row.path}: {in_words(row)}\n")
    counts = count(done) | {"seconds": round(time.monotonic() - start, 1), "csv": str(chosen.out)}
    if chosen.json:
        cines = json.loads(done.cines.to_json(orient="records"))  # which writes no NaN
        print(json.dumps(counts | {"cines": cines}))
    elif not chosen.quiet:
        print(
            "{pictures} pictures: {LCA} LCA, {RCA} RCA; of {files} files {read} read, {skipped} "
            "skipped, {passed_over} passed over; {seconds:.0f} s; {csv}".format_map(counts)
        )
    return 3 if done.rejected and not chosen.skip_unreadable else 0


def count(done: Predicted) -> dict[str, int]:
    """Return how many pictures show which side, and what became of the files."""
    skipped = sum(row.frame is None for row in done.rejected)
    facts = {"pictures": done.sides.total(), "LCA": done.sides["LCA"], "RCA": done.sides["RCA"]}
    facts |= {"files": done.n_files, "skipped": skipped, "passed_over": done.n_passed_over}
    return facts | {"read": done.n_files - skipped - done.n_passed_over}


if __name__ == "__main__":
    sys.exit(main())
