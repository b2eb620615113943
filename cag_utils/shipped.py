"""What ships with the package: a model card and a checksum for every network in `weights/`."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from cag_utils.study import read_json, write_json

WEIGHTS = Path(__file__).parent / "weights"
CHECKSUMS = "checksums.json"
LARGEST_MB = 40  # all twins and embedders together, so that a clone stays light
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


def write_card(
    folder: Path, what: str, made_by: str, parameters: int, scores: Mapping[str, float]
) -> Path:
    """Write a network's model card, `README.md` in its folder.

    Args:
        folder: Existing folder of one network; its name is the card's title.
        what: One or two sentences: the class, and what it stands for.
        made_by: The notebook and its settings.
        parameters: Count.
        scores: Held-out measures by name; rounded to three decimals.

    Returns:
        The card's path.

    Raises:
        ValueError: No measure: a card without one says nothing.
    """
    if not scores:
        raise ValueError(f"the card of {folder.name} needs at least one held-out measure")
    rows = "\n".join(f"| {name} | {value:.3f} |" for name, value in scores.items())
    card = CARD.format(
        name=folder.name, what=what, made_by=made_by, parameters=parameters, rows=rows
    )
    path = folder / "README.md"
    path.write_text(card, encoding="utf-8")
    return path


def checksums(folder: Path = WEIGHTS) -> dict[str, str]:
    """Return the SHA-256 of every weight file below a folder, by relative path, sorted."""
    found = sorted(folder.rglob("*.safetensors"))
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in found
    }


def write_checksums(folder: Path = WEIGHTS) -> dict[str, str]:
    """Write `checksums.json` beside the networks; return what it says."""
    found = checksums(folder)
    write_json(folder / CHECKSUMS, found)
    return found


def changed_weights(folder: Path = WEIGHTS) -> list[str]:
    """Return the weight files that are missing, new or not what `checksums.json` says.

    Args:
        folder: Holds `checksums.json`.
    """
    said, found = read_json(folder / CHECKSUMS), checksums(folder)
    return sorted(name for name in said.keys() | found.keys() if said.get(name) != found.get(name))


def shipped_mb(folder: Path = WEIGHTS) -> float:
    """Return the size of everything below a folder, MB of a million bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
