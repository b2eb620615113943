"""Frames and their six classes: the desk for them, how readers agree, and the labels that stand."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from cag_utils.desk.marks import first_marks, read_all_marks
from cag_utils.desk.viewer import Case, Field, Task
from cag_utils.keyframes.labels import CAUTION, LATERALITY, QUALITY, SIX_CLASSES
from cag_utils.profiles import Stats
from cag_utils.stats import Estimate, cluster_bootstrap

UNSURE = "unsure"
IN_JAPANESE = {"better": "良好", "bad": "不良", "other": "その他"}
CLASSES = [
    (x, str(i), {"en": x.replace("_", " "), "ja": f"{LATERALITY[x]} {IN_JAPANESE[QUALITY[x]]}"})
    for i, x in enumerate(SIX_CLASSES, 1)
]
QUESTION = {"en": "Which class is this frame?", "ja": "このフレームの分類"}
UNSURE_OPTION = (UNSURE, "0", {"en": "unsure", "ja": "判断できない"})
FIELD = Field("label", "choice", QUESTION, options=[*CLASSES, UNSURE_OPTION], saves=True)


def _cost(one: str, other: str) -> float:
    if LATERALITY[one] != LATERALITY[other]:
        return 1.0
    return abs(CAUTION.index(QUALITY[one]) - CAUTION.index(QUALITY[other])) / 2


# What a disagreement costs, 0 to 1: another side the most, else half of it a step of quality.
WEIGHTS = np.array([[_cost(one, other) for other in SIX_CLASSES] for one in SIX_CLASSES])
LABEL_STUDIO_CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="label" toName="image">'
    + "".join(f'<Choice value="{name}"/>' for name in (*SIX_CLASSES, UNSURE))
    + "</Choices></View>"
)


def label_tasks(
    frames: pd.DataFrame, pictures: Path, folder: Path, seed: int, repeat_share: float
) -> list[Task]:
    """Return the two tasks of this desk: to label frames, and to settle what readers see otherwise.

    Args:
        frames: Rows of notebook 00's `frames.csv`; a frame's item is `video_id/frame`.
        pictures: The folder that `png` is relative to.
        folder: Of the sheets; those who adjudicate have theirs in `<folder>_adjudicated`.
        repeat_share: Frames that come back, 0 to 1/3.
    """
    rows = {frame_item(row): row for row in frames.itertuples()}

    def show(item: str) -> Case:
        row = rows[item]
        facts = (row.video_id, row.frame, row.n_frames, row.frame_time_ms)
        return Case(pictures / row.png, *facts)

    def show_with_labels(item: str) -> Case:
        case, marks = show(item), first_marks(read_all_marks(folder, ["label"]))
        said = marks.loc[marks["item"] == item, "label"]
        told = "\n".join(f"{chr(65 + i)}: {label}" for i, label in enumerate(sorted(said)))
        texts = [({"en": "What readers said", "ja": "読影者の判定"}, told, False)]
        return replace(case, texts=texts)

    def open_items() -> dict[str, list[str]]:
        apart = disagreements(read_all_marks(folder, ["label"]))
        return {item: [item] for item in apart if item in rows}

    label = {"en": "Label frames", "ja": "フレーム分類"}
    settle = {"en": "Settle disagreements", "ja": "不一致の裁定"}
    second = folder.with_name(f"{folder.name}_adjudicated")
    return [
        Task(label, folder, [FIELD], lambda: {x: [x] for x in rows}, show, seed, repeat_share),
        Task(settle, second, [FIELD], open_items, show_with_labels, seed),
    ]


def frame_item(row) -> str:
    """Name a row of `frames.csv` as the desk does."""
    return f"{row.video_id}/{row.frame:04d}"


def disagreements(marks: pd.DataFrame) -> list[str]:
    """Return the items that two readers or more have marked, and not all as the same class."""
    by_item = first_marks(marks).groupby("item")["label"].agg(["nunique", "size", list])
    apart = (by_item["nunique"] > 1) | by_item["list"].map(lambda said: UNSURE in said)
    return list(by_item.index[apart & (by_item["size"] > 1)])


def final_labels(marks: pd.DataFrame, decided: pd.DataFrame) -> pd.DataFrame:
    """Return one label a frame, for `data/<cohort>/frame_labels.csv`, and how it came about.

    Args:
        decided: Those of whoever adjudicated; of two, the later one's counts.

    Returns:
        video, frame, reader (who decided), label, how: `adjudicated`, `agreed` by all readers, or
        `single`. Frames that are open (a disagreement not yet settled, or unsure) are left out.
    """
    settled = decided.sort_values("at").groupby("item").last()
    rows = []
    for item, part in first_marks(marks).groupby("item"):
        readers, labels = "+".join(sorted(part["reader"])), set(part["label"])
        label, how = next(iter(labels)), "agreed" if len(part) > 1 else "single"
        if item in settled.index:
            label, readers, how = *settled.loc[item, ["label", "reader"]], "adjudicated"
        elif len(labels) > 1:
            continue
        if label != UNSURE:
            video, frame = item.rsplit("/", 1)
            rows.append((video, int(frame), readers, label, how))
    return pd.DataFrame(rows, columns=["video", "frame", "reader", "label", "how"])


def kappa(sums: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Return Cohen's kappa of confusion sums: 1 less the cost seen over the cost by chance.

    Args:
        sums: (..., k, k) how often the first said the row and the second the column.
        costs: (k, k) of each cell; 1 off the diagonal and 0 on it is the plain kappa.

    Returns:
        (...), at most 1; NaN where one class was all that either said.

    Source:
        Cohen, Psychol Bull 1968;70:213 (weighted kappa).
    """
    n = sums.sum((-2, -1))[..., None, None]
    chance = sums.sum(-1)[..., :, None] * sums.sum(-2)[..., None, :] / n
    return 1 - (sums * costs).sum((-2, -1)) / (chance * costs).sum((-2, -1))


def agreement_table(
    first: Sequence[str], second: Sequence[str], groups: Sequence[str], stats: Stats, seed: int
) -> pd.DataFrame:
    """Compare two readings of the same frames, with intervals over whole exams.

    Args:
        first: (n,) classes, or `UNSURE`: such frames count as such in the last row alone.
        second: (n,) likewise.
        groups: (n,) each frame's exam.

    Returns:
        measure, value, low, high, frames: `agreement` (share), `kappa`, `kappa_weighted` by
        `WEIGHTS`, `kappa_<class>` against all others, `sure` (share that both gave a class).
    """
    given = pd.DataFrame({"a": list(first), "b": list(second), "group": list(groups)})
    sure = given[given[["a", "b"]].isin(SIX_CLASSES).all(axis=1)]
    plain = 1.0 - np.eye(6)
    measures = {"agreement": lambda x: np.trace(x, axis1=-2, axis2=-1) / x.sum((-2, -1))}
    measures |= {"kappa": lambda x: kappa(x, plain), "kappa_weighted": lambda x: kappa(x, WEIGHTS)}
    for i, name in enumerate(SIX_CLASSES):
        pick = np.zeros((2, 6))
        pick[0, i], pick[1] = 1, np.arange(6) != i
        measures[f"kappa_{name}"] = lambda x, pick=pick: kappa(pick @ x @ pick.T, 1 - np.eye(2))
    draws, rows = stats.draws(seed), []
    if len(sure):
        one, two = (sure[x].map(SIX_CLASSES.index).to_numpy() for x in "ab")
        cells = np.eye(6)[one][:, :, None] * np.eye(6)[two][:, None, :]
        for name, measure in measures.items():
            [found] = cluster_bootstrap(sure["group"], cells, measure, *draws)
            rows.append((name, *found, len(sure)))
    if len(given):
        both = np.stack([given.index.isin(sure.index), np.ones(len(given))], axis=1)
        [found] = cluster_bootstrap(given["group"], both, lambda x: x[..., 0] / x[..., 1], *draws)
        rows.append(("sure", *found, len(given)))
    return pd.DataFrame(rows, columns=["measure", *Estimate._fields, "frames"])


def all_agreements(
    marks: pd.DataFrame, exam_of: Mapping[str, str], stats: Stats, seed: int
) -> pd.DataFrame:
    """Return `agreement_table` of each pair of readers, and of each reader with himself.

    Args:
        exam_of: Item to its exam.
    """
    once, again = first_marks(marks), marks[marks["repeat"] == "1"]
    of = lambda table, reader: table[table["reader"] == reader].set_index("item")["label"]  # noqa: E731
    readers = sorted(set(once["reader"]))
    pairs = {
        f"{a} / {b}": (of(once, a), of(once, b)) for a, b in itertools.combinations(readers, 2)
    }
    pairs |= {f"{a} again": (of(once, a), of(again, a)) for a in readers}
    tables = []
    for name, readings in pairs.items():
        both = pd.concat(readings, axis=1, join="inner", keys=["a", "b"])
        groups = [exam_of[item] for item in both.index]
        tables.append(
            agreement_table(both["a"], both["b"], groups, stats, seed).assign(readers=name)
        )
    columns = ["readers", "measure", *Estimate._fields, "frames"]
    return pd.concat(tables or [pd.DataFrame(columns=columns)], ignore_index=True)[columns]


def to_label_studio(marks: pd.DataFrame, png_of: Mapping[str, str]) -> list[dict]:
    """Return all first marks as Label Studio's tasks, for a project with `LABEL_STUDIO_CONFIG`.

    Args:
        png_of: Item to its picture's path, as Label Studio's local storage shall find it.
    """
    tasks, where = [], {"from_name": "label", "to_name": "image", "type": "choices"}
    for item, part in first_marks(marks).groupby("item"):
        annotations = []
        for row in part.itertuples():
            by = {"completed_by": {"email": f"{row.reader}@desk.invalid"}}
            said = {"id": f"{row.reader}-{item}", **where, "value": {"choices": [row.label]}}
            annotations.append(by | {"lead_time": float(row.seconds), "result": [said]})
        tasks.append({"data": {"image": png_of[item], "item": item}, "annotations": annotations})
    return tasks


def from_label_studio(tasks: Sequence[Mapping]) -> pd.DataFrame:
    """Return Label Studio's JSON export as rows of `frame_labels.csv`; unsure and skipped are not.

    Args:
        tasks: Its tasks with `data.item` (`video_id/frame`, or a SOPInstanceUID in its place).

    Returns:
        video, frame, reader, label.

    Raises:
        ValueError: A task names no item, or an annotation chose none or several of the classes.
    """
    rows, known = [], (*SIX_CLASSES, UNSURE)
    for number, task in enumerate(tasks):
        video, slash, frame = str(task.get("data", {}).get("item", "")).rpartition("/")
        if not slash or not frame.isdigit():
            raise ValueError(f"task {number}: data.item must be `video/frame`, e.g. vi-3f09/0012")
        for annotation in task.get("annotations", []):
            if annotation.get("was_cancelled"):
                continue
            results = [x for x in annotation["result"] if x["from_name"] == "label"]
            chosen = [x["value"]["choices"] for x in results]
            if chosen not in [[[name]] for name in known]:
                raise ValueError(f"task {number}: {chosen} is not one of {known}")
            by = annotation.get("completed_by")
            reader = str(by.get("email", by.get("id")) if isinstance(by, Mapping) else by)
            if chosen[0][0] != UNSURE:
                rows.append((video, int(frame), reader.removesuffix("@desk.invalid"), chosen[0][0]))
    return pd.DataFrame(rows, columns=["video", "frame", "reader", "label"])
