"""The README's table of results, made from the reference run's figures."""

import re
from pathlib import Path

from cag_utils.claims import headline_table


def update_readme(path: Path, metrics: dict[str, float]) -> None:
    """Replace what stands between the README's result markers.

    Raises:
        ValueError: The markers are not there.
    """
    text = path.read_text(encoding="utf-8")
    pattern = r"(<!-- results: make reference -->\n).*?(<!-- end of results -->)"
    if not re.search(pattern, text, flags=re.S):
        raise ValueError(f"{path} has no result markers")
    table = headline_table(metrics)
    path.write_text(
        re.sub(pattern, lambda m: m[1] + table + m[2], text, flags=re.S), encoding="utf-8"
    )
