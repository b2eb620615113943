"""What ships with the package: a card, a checksum and the phantom's version for each network.

Weights that were made with one version of the phantom say nothing of another one until somebody
has looked. `weights/phantom.json` holds, for each network, the version it was made with and the
versions it holds for, each with the reason; loading a network under any other one is an error.
"""

import argparse
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from cag_utils.phantom import streams
from cag_utils.study import read_json, write_json

WEIGHTS = Path(__file__).parent / "weights"
CHECKSUMS, PHANTOM = "checksums.json", "phantom.json"
CARD = """---
license: apache-2.0
tags: [phantom, coronary-angiography, research-only]
---

# {name}

{what}

**Learnt from:** a digital phantom, nothing else: no patient's picture, no physician's word. Its
patients are not those of the study (other streams of random numbers).

**Made by:** {made_by}

**Parameters:** {parameters:,}, stored in 16 bit.

| held-out measure | value |
|---|---|
{rows}

**Not for:** any picture of a patient. It stands for a published model's mechanics, not for what
that model knows of medicine. Research use only, not a medical device.
"""


MEASURE = r"^\| (.+) \| (-?[\d.]+) \|$"


def check_phantom(folder: str | Path) -> Path:
    """Return the folder of a shipped network if it holds for the phantom as it is now.

    Args:
        folder: One of `weights/`; any other folder is returned unchecked.

    Raises:
        RuntimeError: Nobody has made the weights with this phantom, or looked whether they hold.
    """
    folder = Path(folder)
    record = folder.parent / PHANTOM
    known = read_json(record).get(folder.name) if record.is_file() else None
    if known and str(version := streams.VERSION) not in known["holds_for"]:
        raise RuntimeError(
            f"{folder} was made with version {known['made_with']} of the phantom and holds for "
            f"{', '.join(known['holds_for'])}, not for {version}. `make twins` makes it again; "
            "if a reference run shows that it holds, say so: "
            'python -m cag_utils.shipped --holds "reference run of DATE"'
        )
    return folder


def seal_weights(*names: str, folder: Path = WEIGHTS) -> None:
    """Write the checksums of all weights, and that `names` were made with the phantom of now."""
    write_json(folder / CHECKSUMS, checksums(folder))
    version, record = streams.VERSION, folder / PHANTOM
    fresh = {"made_with": version, "holds_for": {str(version): "made with it"}}
    known = read_json(record) if record.is_file() else {}
    write_json(record, known | dict.fromkeys(names, fresh))


def confirm(reason: str, folder: Path = WEIGHTS) -> dict[str, dict]:
    """Write that all weights hold for the phantom as it is now; return what is recorded.

    `reason` says what showed it, with a date; ValueError if it is empty.
    """
    if not reason.strip():
        raise ValueError("say what showed that the weights hold, with a date")
    found, version = read_json(folder / PHANTOM), str(streams.VERSION)
    held = {k: v | {"holds_for": v["holds_for"] | {version: reason}} for k, v in found.items()}
    write_json(folder / PHANTOM, held)
    return held


def checksums(folder: Path = WEIGHTS, pattern: str = "*.safetensors") -> dict[str, str]:
    """Return the SHA-256 of every file of this pattern below a folder, by relative path, sorted."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob(pattern))
        if path.is_file()
    }


def write_card(
    folder: Path, what: str, made_by: str, parameters: int, scores: Mapping[str, float]
) -> Path:
    """Write a network's model card, `README.md` in its folder, and return its path.

    Args:
        folder: Existing folder of one network; its name is the card's title.
        what: One or two sentences: the class, and what it stands for.
        made_by: The notebook and its settings.
        scores: Held-out measures by name; rounded to three decimals.

    Raises:
        ValueError: No measure: a card without one says nothing.
    """
    if not scores:
        raise ValueError(f"the card of {folder.name} needs at least one held-out measure")
    rows = "\n".join(f"| {name} | {value:.3f} |" for name, value in scores.items())
    facts = {"what": what, "made_by": made_by, "parameters": parameters, "rows": rows}
    path = folder / "README.md"
    path.write_text(CARD.format(name=folder.name, **facts), encoding="utf-8")
    return path


def read_card(folder: Path) -> dict[str, float]:
    """Return the held-out measures of a network's card."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    return {name: float(value) for name, value in re.findall(MEASURE, text, re.MULTILINE)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m cag_utils.shipped", description=__doc__)
    parser.add_argument("--holds", metavar="REASON", required=True, help="what showed it, and when")
    for name, entry in confirm(parser.parse_args(arguments).holds).items():
        print(f"{name}: made with {entry['made_with']}, holds for {', '.join(entry['holds_for'])}")  # noqa: T201 - a command


if __name__ == "__main__":
    main()
