"""The rooms of the package, read from its imports: who uses whom, and how large each is.

`python -m cag_utils.rooms` draws them anew into the README; `make format` and `make reference` do.
"""

import ast
from pathlib import Path

from cag_utils.workflow import PACKAGE, imported_files

TOP = "top"  # files beside the rooms
OPEN, CLOSE = "<!-- rooms: make format -->\n", "<!-- end of rooms -->"


def room_of(path: Path, package: Path = PACKAGE) -> str:
    """Return the name of a file's room: the folder below the package, or `top`."""
    parts = path.relative_to(package).parts
    return parts[0] if len(parts) > 1 else TOP


def read_imports(package: Path = PACKAGE) -> dict[Path, set[Path]]:
    """Return every module of the package with those it imports, anywhere in its text."""
    trees = {p: ast.parse(p.read_text(encoding="utf-8")) for p in sorted(package.rglob("*.py"))}
    return {path: imported_files(tree, package) for path, tree in trees.items()}


def room_arrows(package: Path = PACKAGE) -> dict[str, set[str]]:
    """Return each room, with `top`, and the other rooms that it imports."""
    arrows: dict[str, set[str]] = {}
    for path, imported in read_imports(package).items():
        room = room_of(path, package)
        arrows.setdefault(room, set()).update(room_of(other, package) for other in imported)
    return {room: others - {room} for room, others in sorted(arrows.items())}


def room_sizes(package: Path = PACKAGE) -> dict[str, int]:
    """Return the lines and files of Python of each room, and of the tests beside the package.

    Returns:
        `rooms.<room>.lines` and `rooms.<room>.files`; `all` is the package, `tests` the tests. An
        empty `__init__` is no file to read.
    """
    sizes: dict[str, int] = {}
    for folder in (package, package.parent / "tests"):
        for path in sorted(folder.rglob("*.py")):
            if not (lines := len(path.read_text(encoding="utf-8").splitlines())):
                continue
            for room in {room_of(path, package), "all"} if folder == package else {"tests"}:
                for unit, more in (("lines", lines), ("files", 1)):
                    key = f"rooms.{room}.{unit}"
                    sizes[key] = sizes.get(key, 0) + more
    return sizes


def draw_rooms(package: Path = PACKAGE) -> str:
    """Return the rooms as a Mermaid diagram: an arrow is an import; those of `top` are left out."""
    sizes = room_sizes(package)
    rows = ["```mermaid", "flowchart LR"]
    for room, others in room_arrows(package).items():
        lines = f"{sizes[f'rooms.{room}.lines'] / 1000:.1f}k lines"
        rows.append(f'    {room}["{room}<br>{sizes[f"rooms.{room}.files"]} files, {lines}"]')
        if room != TOP:
            rows += [f"    {room} --> {other}" for other in sorted(others - {TOP})]
    return "\n".join([*rows, "```"]) + "\n"


def update_picture(readme: Path, package: Path = PACKAGE) -> None:
    """Draw the rooms between the README's markers; ValueError where these are not there."""
    replace_between(readme, OPEN, CLOSE, draw_rooms(package))


def replace_between(page: Path, first: str, last: str, new: str) -> None:
    """Replace what stands between two markers of a page; ValueError where these are not there."""
    before, opening, rest = page.read_text(encoding="utf-8").partition(first)
    _, closing, after = rest.partition(last)
    if not closing:
        raise ValueError(f"{page} lacks the markers {first.strip()} and {last}")
    page.write_text(before + opening + new + closing + after, encoding="utf-8")


if __name__ == "__main__":
    update_picture(PACKAGE.parent / "README.md")
