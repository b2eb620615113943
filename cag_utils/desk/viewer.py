"""The desk itself: a widget that shows one case after the other and writes down what is marked.

Its other half, `desk.js`, draws and listens to keys; it knows nothing but what is sent from here.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anywidget
import cv2
import numpy as np
import pandas as pd
import traitlets

from cag_utils.cines.dicom import NotACine, iter_frames, path_from
from cag_utils.cines.stills import Unreadable
from cag_utils.desk.marks import MarkLog, read_marks, reading_order
from cag_utils.profiles import Profile
from cag_utils.study import root

HERE = Path(__file__).parent
QUALITY = 92  # of the cine's JPEGs; choice: no block shows at fourfold zoom. The key frame is a PNG
CHUNK = 12  # frames an answer may hold, so that no mark waits long behind them
# A window not heard of for so long has lost its sheet; hidden tabs call once a minute.
LEASE_S = 90.0

Words = dict[str, str]  # en and ja


@dataclass(frozen=True)
class Field:
    """One thing to fill in."""

    name: str
    kind: str  # choice, flag (0 or 1) or text
    label: Words
    key: str = ""  # that toggles a flag or goes to a text
    options: Sequence[tuple[str, str, Words]] = ()  # of a choice: value, key, label
    saves: bool = False  # choosing marks the case and goes on to the next
    checked: bool = False  # a text that gets hints while it is typed

    def refuse(self, value: object) -> str:
        """Why a value cannot be marked; empty if it can."""
        if self.kind == "choice" and value not in [option[0] for option in self.options]:
            return f"{self.name}: {value!r} is none of {[option[0] for option in self.options]}"
        if self.kind == "flag" and value not in ("0", "1"):
            return f"{self.name}: {value!r} is neither 0 nor 1"
        return "" if isinstance(value, str) else f"{self.name}: no text"


@dataclass(frozen=True)
class Case:
    """What the reader sees of one item."""

    png: Path  # the key frame
    video_id: str
    frame: int
    n_frames: int
    frame_time_ms: float
    texts: Sequence[tuple[Words, str, bool]] = ()  # title, text, and whether it is hidden at first
    start: Mapping[str, str] = field(default_factory=dict)  # what stands in the form at first


@dataclass(frozen=True)
class Task:
    """What is done at a desk."""

    title: Words
    folder: Path  # of the readers' sheets
    fields: Sequence[Field]
    groups: Callable[[], Mapping[str, Sequence[str]]]  # items by case, asked when a reader starts
    show: Callable[[str], Case]
    seed: int
    repeat_share: float = 0.0
    hints: Callable[[str, str, str], list[Words]] | None = None  # item, field and text to hints


def sheet_folder(profile: Profile, desk: str) -> Path:
    """Return where a desk's sheets lie: in `data/`, because `make clean` empties `outputs/`."""
    return root() / "data" / "readers" / profile.name / desk


def cine_paths(profile: Profile, cohort: str) -> dict[str, Path]:
    """Return the DICOM file of each cine that notebook 00 sampled, by `video_id`.

    Empty if `data/private/` holds no links; a desk then shows key frames alone.
    """
    links = root() / "data" / "private" / f"{profile.name}_{cohort}_links.csv"
    if not links.exists():
        return {}
    known = pd.read_csv(links, dtype=str, keep_default_na=False)
    known = known[(known["reason"] == "") & (known["video_id"] != "")]
    start = Path(root().anchor)
    return {x.video_id: path_from(path_from(start, x.folder), x.path) for x in known.itertuples()}


def encode_frames(path: Path, frames: Sequence[int]) -> list[bytes]:
    """Decode frames of a cine, in the order given, as grey JPEGs of quality `QUALITY`.

    Raises:
        NotACine, OSError: The file is gone or does not decode.
    """
    ordered = sorted(set(frames))
    coded = {}
    for number, grey in zip(ordered, iter_frames(path, ordered), strict=True):
        done, data = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        if not done:
            raise NotACine(f"frame {number} cannot be shown")
        coded[number] = data.tobytes()
    return [coded[number] for number in frames]


class Desk(anywidget.AnyWidget):
    """A place to read at: `display` it in a notebook, or open the notebook as a page.

    Args:
        tasks: What can be done here, one or more; the reader chooses at the start.
        cines: DICOM files by `video_id`.
    """

    _esm = HERE / "desk.js"
    _css = HERE / "desk.css"
    tasks = traitlets.List().tag(sync=True)

    def __init__(self, tasks: Sequence[Task], cines: Mapping[str, Path]):
        super().__init__(tasks=[task.title for task in tasks])
        self._tasks, self._cines = list(tasks), dict(cines)
        self._log: MarkLog | None = None
        self._timer = threading.Timer(0, lambda: None)
        self.on_msg(lambda _, content, buffers: self.hear(content))

    def hear(self, message: dict) -> None:
        """Answer one message of the page: start, ask, frames, mark, undo, hint, stay or leave.

        What goes wrong is told there, and nothing is written then.
        """
        kinds = ("start", "ask", "frames", "mark", "undo", "hint", "stay", "leave")
        self._timer.cancel()
        try:
            if message.get("type") not in kinds:
                raise ValueError(f"unknown message {message.get('type')!r}")
            getattr(self, f"_{message['type']}")(message)
        except (ValueError, KeyError, IndexError, OSError) as problem:
            self.send({"type": "problem", "of": message.get("type"), "text": str(problem)})
        if self._log:
            self._timer = threading.Timer(LEASE_S, self._log.release)
            self._timer.daemon = True
            self._timer.start()

    def _start(self, message: dict) -> None:
        self._leave(message)
        task = self._tasks[message["task"]]
        log = MarkLog(task.folder, message["reader"].strip(), [x.name for x in task.fields])
        try:
            self._groups = task.groups()
            order = reading_order(self._groups, log.reader, task.seed, task.repeat_share)
            if not order:
                raise ValueError("there is nothing to read here yet")
        except ValueError:
            log.release()
            raise
        self._task, self._log, self._order = task, log, order
        self._case_of = {item: group for group, items in self._groups.items() for item in items}
        fields = [vars(x) for x in task.fields]
        self.send({"type": "started", "reader": log.reader, "fields": fields} | self._progress())

    def _progress(self) -> dict:
        """How far the reader is, and in which cases answers are missing that others there have."""
        marks = read_marks(self._log.path)
        self._marks = {(r["item"], int(r["repeat"])): r for r in marks.to_dict("records")}
        done = [place in self._marks for place in self._order]
        read = {item for item, repeat in self._marks if repeat == 0}
        missing = {name: len(set(x) - read) for name, x in self._groups.items()}
        part = [m for name, m in missing.items() if 0 < m < len(self._groups[name])]
        last = (marks["item"].iloc[-1], int(marks["repeat"].iloc[-1])) if len(marks) else None
        return {
            "done": done,
            "whole": sum(m == 0 for m in missing.values()),
            "cases": len(missing),
            "missing": sum(part),
            "last": self._order.index(last) if last in self._order else -1,
        }

    def _ask(self, message: dict) -> None:
        position = message["position"]
        item, repeat = self._order[position]
        case = self._task.show(item)
        mark = self._marks.get((item, repeat))
        values = {
            x.name: mark[x.name] if mark else case.start.get(x.name, "") for x in self._task.fields
        }
        group = self._case_of[item]
        left = [x for x in self._groups[group] if (x, 0) not in self._marks]
        told = {
            "type": "case", "position": position, "values": values, "marked": mark is not None,
            "left": len(left), "of": len(self._groups[group]),
            "texts": case.texts, "ahead": self._ahead(position),
        }  # fmt: skip
        self.send(told | self._cine(case), buffers=[_read_png(case.png)])

    def _cine(self, case: Case) -> dict:
        has = case.video_id in self._cines
        ms = case.frame_time_ms if case.frame_time_ms > 0 else 1000 / 15
        return {
            "video": case.video_id,
            "frame": case.frame if has else 0,
            "frames": case.n_frames if has else 1,
            "frame_ms": ms,
        }

    def _ahead(self, position: int) -> dict | None:
        """The cine after this one, which the page may fetch while the reader looks."""
        following = self._order[position + 1 : position + 2]
        return self._cine(self._task.show(following[0][0])) if following else None

    def _frames(self, message: dict) -> None:
        wanted, video = message["wanted"][:CHUNK], message["video"]
        told = {"type": "frames", "video": video, "numbers": wanted}
        try:
            self.send(told, buffers=encode_frames(self._cines[video], wanted))
        except (NotACine, KeyError) as problem:
            self.send(told | {"numbers": [], "problem": str(problem)})

    def _mark(self, message: dict) -> None:
        item, repeat = self._order[message["position"]]
        values = {x.name: message["values"].get(x.name, "") for x in self._task.fields}
        if wrong := [why for x in self._task.fields if (why := x.refuse(values[x.name]))]:
            raise ValueError("; ".join(wrong))
        seconds = float(message["seconds"])
        self._log.append(item, repeat, "mark", seconds if np.isfinite(seconds) else 0, values)
        self.send({"type": "saved", "position": message["position"]} | self._progress())

    def _undo(self, message: dict) -> None:
        item, repeat = self._order[message["position"]]
        if (item, repeat) not in self._marks:
            raise ValueError("this case is not marked: nothing to undo")
        self._log.append(item, repeat, "undo", 0, {})
        self.send({"type": "undone", "position": message["position"]} | self._progress())

    def _hint(self, message: dict) -> None:
        item, _ = self._order[message["position"]]
        field, hints = message["field"], self._task.hints
        found = hints(item, field, message["text"]) if hints else []
        self.send({"type": "hints", "field": field, "hints": found})

    def _stay(self, message: dict) -> None:
        """The window is still open: nothing to do but to keep the sheet for it."""

    def _leave(self, message: dict) -> None:
        if self._log:
            self._log.release()
        self._log = None


def _read_png(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        raise Unreadable(path, problem.strerror or "cannot be opened") from problem
