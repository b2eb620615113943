"""Public angiograms: what to download from where, and whether what is there is whole."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from cag_utils.cines.public import PUBLIC_SETS, check_download, read_public
from cag_utils.study import under_root
from cag_utils.tables import write_table

HELP = """\
Say where a public set is found and under which licence; then check what lies in the folder: the
archive's sum, the published layout, and what in the labels cannot be used. Nothing is downloaded.
Of a set that can be read, FOLDER/stills gets a link to every usable still and `labels.csv` with the
side of each: what `python -m cag_utils.keyframes predict` and appendix A1 (`-p real_dir`) take.

exit codes: 0 all is there, 1 something is missing or differs, 2 a wrong command
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Say what to fetch, check what is there: `python -m cag_utils.cines fetch NAME`."""
    parser = argparse.ArgumentParser(prog="python -m cag_utils.cines", description=__doc__)
    commands = parser.add_subparsers(required=True)
    raw = {"description": HELP, "formatter_class": argparse.RawDescriptionHelpFormatter}
    fetch = commands.add_parser("fetch", help="a public set: whence, and is it whole", **raw)
    fetch.add_argument("name", choices=list(PUBLIC_SETS))
    words = "where it lies (default data/NAME, which the profile NAME reads)"
    fetch.add_argument("--folder", type=Path, help=words)
    chosen = parser.parse_args(arguments)
    entry, folder = PUBLIC_SETS[chosen.name], chosen.folder or under_root(f"data/{chosen.name}")
    for what in ("title", "page", "archive", "size", "licence", "cite", "truth"):
        print(f"{what:8} {getattr(entry, what)}")
    print(f"\nDownload {entry.archive} from the page into {folder} and unpack it there.\n")
    found = list(check_download(chosen.name, folder))
    for right, text in found:
        print("ok      " if right else "MISSING ", text)
    try:
        stills = read_public(chosen.name, folder)
    except (OSError, ValueError) as error:
        print("MISSING ", error)
        return 1
    usable = stills[stills["problem"] == ""]
    print(f"{len(usable)} usable stills: {usable['laterality'].value_counts().to_dict()}")
    for problem, n in stills["problem"].value_counts().drop("", errors="ignore").items():
        print(f"{n} left out: {problem}")
    link_stills(usable, folder / "stills")
    print(f"links and labels.csv: {folder / 'stills'}; next: make study PROFILE={chosen.name}")
    return 0 if all(right for right, _ in found) else 1


def link_stills(usable: pd.DataFrame, folder: Path) -> None:
    """Link stills under names of their own, `<video>_<frame>.png`, and write `labels.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{row.video}_{row.frame:05d}.png" for row in usable.itertuples()]
    for name, path in zip(names, usable["path"], strict=True):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(path.resolve())
    labels = {"file": names, "frames": "", "laterality": usable["laterality"], "contrast": "yes"}
    write_table(pd.DataFrame(labels), folder / "labels.csv")


if __name__ == "__main__":
    sys.exit(main())
