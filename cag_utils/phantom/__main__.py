"""Draw a cohort: `python -m cag_utils.phantom FOLDER --name cnn --seed 1 --n-patients 10 ...`."""

import argparse
import os
import sys
import threading
from dataclasses import MISSING, fields
from pathlib import Path

import psutil

from cag_utils.phantom.cohort import CohortSettings, make_cohort


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and draw what is missing; 0 on success."""
    parser = argparse.ArgumentParser(prog="python -m cag_utils.phantom", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the cohort goes")
    for field in fields(CohortSettings):
        needed = field.default is MISSING
        shown = {"required": True} if needed else {"default": field.default}
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, **shown)
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--follow", action="store_true", help="end when standard input closes")
    given = vars(parser.parse_args(arguments))
    folder, workers = given.pop("folder"), given.pop("workers")
    if given.pop("follow"):
        threading.Thread(target=_end_with_caller, daemon=True).start()
    try:
        make_cohort(folder, CohortSettings(**given), workers)
    except ValueError as error:
        parser.error(str(error))
    return 0


def _end_with_caller() -> None:
    os.read(sys.stdin.fileno(), 1)
    for worker in psutil.Process().children(recursive=True):
        worker.kill()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
