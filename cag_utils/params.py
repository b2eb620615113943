"""Turn a notebook's parameters cell into a checked, frozen config."""

import ast
import difflib
import hashlib
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import PurePath
from typing import Self


@dataclass(frozen=True)
class Params:
    """Base class: a field (str, int, float or bool) a parameter, its default that of the cell."""

    @classmethod
    def read(cls, namespace: Mapping[str, object]) -> Self:
        """Build from `globals()` in the cell after the parameters cell.

        Papermill only warns about a name the notebook does not declare, and turns `-p x 007` into
        the integer 7; here both are errors. An int given for a float becomes a float, one given for
        a folder (`..._dir`) its name.

        Args:
            namespace: The notebook's globals. IPython keeps the executed cells in `In`.

        Raises:
            ValueError: A parameter is missing, unknown, or of the wrong type.
        """
        kinds = {f.name: f.type for f in fields(cls)}
        problems = [
            f"unknown parameter {name!r}{did_you_mean(name, kinds)}"
            for name in sorted(_injected(namespace.get("In", ())) - kinds.keys())
            if not name.startswith("PAPERMILL_")  # papermill --inject-paths
        ]
        values = {name: namespace.get(name) for name in kinds}
        for name, kind in kinds.items():
            if kind is str and name.endswith("_dir") and type(values[name]) is int:
                values[name] = str(values[name])  # a folder `2021`
            value = values[name]
            if type(value) is not kind and not (kind is float and type(value) is int):
                hint = f"; papermill -r {name} keeps a text as it is" if kind is str else ""
                problems.append(f"{name} should be {kind.__name__}, got {value!r}{hint}")
        if problems:
            raise ValueError("bad notebook parameters: " + "; ".join(problems))
        return cls(**{name: kind(values[name]) for name, kind in kinds.items()})

    def changes(self, but: Collection[str]) -> list[str]:
        """Return what differs from the defaults, `but` these fields, fit for a folder's name.

        `epochs3` for a number, `scratch` for a switch turned on, `split_by_video` for a text (of a
        path its last part).
        """
        words = []
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in but or value == f.default:
                continue
            is_path = f.name.endswith("_dir")
            text = f"_{slugify(value, is_path)}" if isinstance(value, str) else f"{value:g}"
            words.append(f.name + ("" if value is True else text))
        return words


def slugify(text: str, is_path: bool = False) -> str:
    """Return a text, or a path's last part, fit for a run's folder: letters, digits, `_` and `-`.

    Two texts never give the same: what the letters do not say whole, as of a path, is followed by
    8 hex digits of all of it.
    """
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", PurePath(text).name).strip("_") or "none"
    digest = hashlib.sha256(os.fsencode(PurePath(text))).hexdigest()[:8]
    return plain if plain == text and not is_path else f"{plain}_{digest}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)`, or ` (known: a, b, c)` when no known name is near."""
    known = sorted(map(str, known))
    near = difflib.get_close_matches(str(name), known, 1)
    return f" (did you mean {near[0]!r}?)" if near else f" (known: {', '.join(known)})"


def check_choice(name: str, value: str, known: Iterable[str]) -> str:
    """Return `value` if it is one of `known`; else ValueError suggests the nearest."""
    known = list(known)
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}{did_you_mean(value, known)}")
    return value


def _injected(history: Iterable[str]) -> set[str]:
    """Names set by papermill's injected cell, looked up in IPython's `In`."""
    cells = [ast.parse(source) for source in history if source.startswith("# Parameters\n")]
    assigns = [node for cell in cells for node in cell.body if isinstance(node, ast.Assign)]
    return {target.id for node in assigns for target in node.targets}
