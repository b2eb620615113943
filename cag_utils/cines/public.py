"""Public angiograms: where they are, whether a download is whole, and what their labels tell.

ARCADE and CADICA are read in place, in the layout in which they are published, and become what a
hospital would bring: frames, `frame_labels.csv`, `reports.csv`, `findings.csv`.
"""

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from cag_utils.cines.dicom import file_bytes, path_within
from cag_utils.cines.sampling import (
    FRAME_COLUMNS,
    LINK_COLUMNS,
    PNG_SETTINGS,
    REJECTED_COLUMNS,
    STATISTICS_COLUMNS,
    VIDEO_COLUMNS,
    Sampled,
    frame_statistics,
)
from cag_utils.cines.stills import Unreadable, read_still
from cag_utils.identity import pseudonym
from cag_utils.segments import AHA_SEGMENTS, artery_of, laterality_of
from cag_utils.tables import write_table

SPLITS = ("train", "val", "test")
AHA_OF = {label: number for number, row in AHA_SEGMENTS.items() for label in row.syntax}
# CADICA's ranges to the AHA step that holds their upper end; 90-98 and 99 are one step there.
CADICA_GRADES = {"0_20": 25, "20_50": 50, "50_70": 75, "70_90": 90, "90_98": 99, "99": 99,
                 "100": 100}  # fmt: skip
STILL_COLUMNS = ["path", "patient", "video", "frame", "n_frames", "laterality", "segments",
                 "lesions", "clean", "problem"]  # fmt: skip
# The paper's own sentence (Figure 3): it claims nothing that these labels could not hold.
ADVICE = {
    "en": "Consider treatment plan in context of other angiographic findings and comorbidities.",
    "ja": "他のアンギオ画像や、合併症を考慮して、治療方針を検討してください。",
}


@dataclass(frozen=True)
class PublicSet:
    """One entry of the registry: a set, whence it comes and what its labels are worth."""

    title: str
    page: str
    archive: str  # the downloaded file's name
    sha256: str  # of the archive; empty where no sum is known
    size: str
    licence: str
    cite: str
    marker: str  # a folder by which the unpacked set is known
    expected: dict[str, int]  # pictures (or patients) by the place that holds them, as published
    truth: str  # what the labels can and cannot say
    read: Callable[[Path], pd.DataFrame]  # the unpacked set's top to one row a still


def find_top(folder: Path, marker: str) -> Path:
    """Return the folder that holds `marker`: the given one, or up to two levels below it.

    Raises:
        FileNotFoundError: There is none.
    """
    for pattern in (marker, f"*/{marker}", f"*/*/{marker}"):
        if found := sorted(path for path in folder.glob(pattern) if path.is_dir()):
            return found[0].parent
    raise FileNotFoundError(f"{folder} holds no folder {marker!r}: is the archive unpacked there?")


def read_arcade(top: Path) -> pd.DataFrame:
    """Read ARCADE's syntax and stenosis sets, COCO JSON beside PNG.

    Annotation ids repeat in the published files, so nothing is looked up by them; an annotation
    that stands there twice counts once. A picture that is in both sets, or twice in one, is one
    still: it is known by its pixels. A stenosis lies in the segment whose outline it overlaps most.

    Args:
        top: Holds `syntax/` and `stenosis/`, each with `train/`, `val/` and `test/`.

    Returns:
        `STILL_COLUMNS`, one row a still: path, patient and video (a hash of the pixels: ARCADE says
        of no two pictures that they are one patient's), frame 0, n_frames 1, laterality (LCA, RCA
        or empty), segments (AHA numbers), lesions ((segment or None, None) each), clean (never:
        nothing says that a vessel is healthy), problem (why it is left out, else empty).

    Raises:
        ValueError: A JSON file is no COCO annotation.
        FileNotFoundError: One of the JSON files is missing.

    Source:
        Popov et al., Scientific Data 11, 20 (2024); the problems: cmctec/ARCADE, issue 7.
    """
    known: dict[str, dict] = {}
    places = [top / part / split for part in ("syntax", "stenosis") for split in SPLITS]
    for path, outlines, problem in (row for place in places for row in _coco_pictures(place)):
        try:
            grey = None if problem == "no such picture" else read_still(path)
        except Unreadable:
            grey, problem = None, "unreadable"
        if grey is None:
            known[str(path)] = {"path": path, "outlines": [], "shape": (0, 0), "problem": problem}
            continue
        still = known.setdefault(
            hashlib.sha256(grey.tobytes() + str(grey.shape).encode()).hexdigest()[:16],
            {"path": path, "outlines": [], "shape": grey.shape, "problem": ""},
        )
        still["outlines"] += outlines
        still["problem"] = still["problem"] or problem
    return pd.DataFrame(
        [_arcade_row(name, **x) for name, x in known.items()], columns=STILL_COLUMNS
    )


def _coco_pictures(place: Path) -> Iterator[tuple[Path, list[tuple[str, np.ndarray]], str]]:
    """Each picture of a split with (label, outline in pixels (n, 2)) of what is drawn into it."""
    path = place / "annotations" / f"{place.name}.json"
    if not path.is_file():  # the record's page spells it train.JSON
        path = path.with_suffix(".JSON")
    content = json.loads(path.read_text(encoding="utf-8"))
    try:
        names = {row["id"]: str(row["name"]) for row in content["categories"]}
        images = {row["id"]: row for row in content["images"]}
        outlines: dict[int, dict[tuple, tuple[str, np.ndarray]]] = {key: {} for key in images}
        for row in content["annotations"]:
            if row["image_id"] in images:  # others belong to no picture of this split
                drawn = row["segmentation"][0] if row["segmentation"] else []
                points = np.asarray(drawn, float).reshape(-1, 2)
                label = names[row["category_id"]]
                outlines[row["image_id"]][(label, *drawn)] = (label, points)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{path} is no COCO annotation: {error!r}") from error
    shared = Counter(row["file_name"] for row in images.values())
    for key, row in images.items():
        picture, found = place / "images" / row["file_name"], list(outlines[key].values())
        size = np.array([row["width"], row["height"]])
        problem = "two entries for one picture" if shared[row["file_name"]] > 1 else ""
        inside = [((points >= 0) & (points <= size)).all(axis=1).any() for _, points in found]
        if not all(inside):
            problem = "an outline outside the picture"
        yield picture, found, problem if picture.is_file() else "no such picture"
    for picture in sorted((place / "images").glob("*.png")):
        if picture.name not in shared:
            yield picture, [], "picture without an entry"


def _arcade_row(name: str, path: Path, outlines: list, shape: tuple, problem: str) -> dict:
    drawn = [(AHA_OF[label], points) for label, points in outlines if label in AHA_OF]
    plaques = [points for label, points in outlines if label == "stenosis"]
    sides = {laterality_of(number) for number, _ in drawn}
    if len(sides) > 1:
        problem = problem or "segments of both sides"
    lesions = {(_segment_under(points, drawn, shape), None) for points in plaques}
    return {
        "path": path, "patient": name, "video": name, "frame": 0, "n_frames": 1, "clean": False,
        "laterality": sides.pop() if len(sides) == 1 else "", "problem": problem,
        "segments": tuple(sorted({number for number, _ in drawn})),
        "lesions": tuple(sorted(lesions, key=lambda x: x[0] or 99)),
    }  # fmt: skip


def _segment_under(points: np.ndarray, drawn: list[tuple[int, np.ndarray]], shape) -> int | None:
    """The AHA segment that shares most pixels with an outline; None if none shares any."""
    plaque = _filled(points, shape)
    shared = [(int((plaque & _filled(outline, shape)).sum()), -n) for n, outline in drawn]
    most, number = max(shared, default=(0, 0))
    return -number if most else None


def _filled(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [np.round(points).astype(np.int32).reshape(-1, 1, 2)], 1)
    return mask


def read_cadica(top: Path) -> pd.DataFrame:
    """Read the key frames of CADICA's selected videos, PNG with a text file of boxes each.

    Args:
        top: Holds `selectedVideos/pX/vY/`.

    Returns:
        As `read_arcade`, but: patient and video as published (p1, p1_v2), frame the number in the
        file's name, laterality from `CADICAprojections.json`, no segments (there are none), lesions
        ((None, AHA grade) each), clean for the videos that are listed as without a lesion.

    Raises:
        FileNotFoundError: The JSON file of the sides is missing.

    Source:
        Jimenez-Partinen et al., Expert Systems 41, e13708 (2024), and the set's readme.txt.
    """
    selected = top / "selectedVideos"
    tables = [*selected.glob("CADICAprojections.json"), *top.glob("CADICAprojections.json")]
    if not tables:
        raise FileNotFoundError(f"{selected} lacks CADICAprojections.json, which tells the sides")
    groups = json.loads(tables[0].read_text(encoding="utf-8"))
    sides = {
        video: side
        for group, content in groups.items()
        for side in ("LCA", "RCA")
        if side in group.upper()
        for video in re.findall(r"p\d+_v\d+", json.dumps(content))
    }
    rows = []
    for folder in sorted(selected.glob("p*/v*"), key=lambda p: _numbers(p.parent.name + p.name)):
        patient, video = folder.parent.name, f"{folder.parent.name}_{folder.name}"
        clean = _numbers(folder.name)[0] in _listed(folder.parent / "nonlesionVideos.txt")
        pictures = {_numbers(p.stem)[-1]: p for p in (folder / "input").glob("*.png")}
        for frame in _listed(folder / f"{video}_selectedFrames.txt") or [0]:  # 0: there is none
            missing = folder / "input" / f"{video}_{frame:05d}.png"
            problem = "" if frame in pictures else "no such picture"
            side = sides.get(video, "")
            rows.append({
                "path": pictures.get(frame, missing), "patient": patient, "video": video,
                "frame": frame, "n_frames": len(pictures), "laterality": side, "segments": (),
                "lesions": _boxes(folder / "groundtruth" / f"{video}_{frame:05d}.txt"),
                "clean": clean, "problem": problem,
            })  # fmt: skip
    return pd.DataFrame(rows, columns=STILL_COLUMNS)


def _numbers(text: str) -> list[int]:
    return [int(x) for x in re.findall(r"\d+", text)]


def _listed(path: Path) -> list[int]:
    """The last number of each name listed, such as `v3` or `p1_v3_00021.png`; none of no file."""
    words = re.split(r"[\s,;]+", path.read_text(encoding="utf-8") if path.is_file() else "")
    return [_numbers(word.removesuffix(".png"))[-1] for word in words if _numbers(word)]


def _boxes(path: Path) -> tuple[tuple[None, int], ...]:
    """The grades of a frame's boxes, `x y w h p50_70` a line, each once."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    grades = {CADICA_GRADES[word] for word in re.findall(r"p(\d+(?:_\d+)?)\s*$", text, re.M)}
    return tuple((None, grade) for grade in sorted(grades))


PUBLIC_SETS = {
    "arcade": PublicSet(
        title="ARCADE",
        page="https://zenodo.org/records/10390295",
        archive="arcade.zip",
        sha256="a396cdea7c92c55dc97bbf3dd8e3df517d76872b289a8bcb45513bdb3350837f",  # as torch-em's
        size="450 MB",
        licence="CC0 1.0, as torch-em quotes the record; others say CC BY 4.0: the page decides",
        cite="Popov et al., Scientific Data 11, 20 (2024), doi 10.1038/s41597-023-02871-z",
        marker="syntax",
        expected={
            f"{part}/{split}/images": n
            for part in ("syntax", "stenosis")
            for split, n in zip(SPLITS, (1000, 200, 300), strict=True)
        },
        truth=(
            "Experts outlined the coronary segments (SYNTAX numbers) of key frames they had "
            "chosen, so side and visible segments are known. A stenosis is an outline without a "
            "grade, and has a segment only where the same picture is outlined in both sets. No "
            "picture is called healthy, none has a report, a plan or a patient: nothing can be "
            "said of grades, of clean vessels or of treatment, and intervals by picture are too "
            "narrow, since pictures of one patient cannot be told."
        ),
        read=read_arcade,
    ),
    "cadica": PublicSet(
        title="CADICA",
        page="https://data.mendeley.com/datasets/p9bpx9ctcv/2",
        archive="CADICA.zip",
        sha256="",
        size="2.9 GB",
        licence="CC BY 4.0, as others quote the page: the page decides",
        cite="Jimenez-Partinen et al., Expert Systems 41, e13708 (2024), doi 10.1111/exsy.13708",
        marker="selectedVideos",
        expected={"selectedVideos": 42},
        truth=(
            "A medical team chose key frames of 42 patients' cines, boxed the lesions with a range "
            "of per cent and listed the cines without one; sides are told by cine. Ranges become "
            "the AHA step that holds their upper end. No lesion has a segment: nothing can be said "
            "of where it is beyond the side, nor of treatment. A key frame of a cine with lesions "
            "that has no box is called neither ill nor clean, and is left out of the corpus."
        ),
        read=read_cadica,
    ),
}  # fmt: skip


def check_download(name: str, folder: Path) -> Iterator[tuple[bool, str]]:
    """Compare a download with what is published; each finding with whether all is as it should be.

    Args:
        name: A name in `PUBLIC_SETS`.
        folder: Holds the archive (it may be gone once unpacked), and the unpacked set.
    """
    entry = PUBLIC_SETS[name]
    archive = folder / entry.archive
    if archive.is_file() and entry.sha256:
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        same = found == entry.sha256
        yield same, f"{archive}: sha256 {found}" + ("" if same else f", not {entry.sha256}")
    elif archive.is_file():
        yield True, f"{archive}: {archive.stat().st_size:,} bytes; no sum of it is known here"
    try:
        top = find_top(folder, entry.marker)
    except FileNotFoundError as error:
        yield False, str(error)
        return
    for place, wanted in entry.expected.items():
        what = "*.png" if place.endswith("images") else "p*"
        n = len([path for path in (top / place).glob(what) if path.is_file() == ("." in what)])
        yield n == wanted, f"{top / place}: {n} of {wanted}"


def read_public(name: str, folder: Path) -> pd.DataFrame:
    """Read a public set's stills; what cannot be used has a `problem`.

    Args:
        name: A name in `PUBLIC_SETS`.
        folder: Holds the unpacked set.

    Returns:
        As `read_arcade`; a still whose side is not told has the problem "side not told".

    Raises:
        FileNotFoundError: The set, or one of its files, is not there.
    """
    entry = PUBLIC_SETS[name]
    stills = entry.read(find_top(folder, entry.marker))
    bare = (stills["laterality"] == "") & (stills["problem"] == "")
    return stills.assign(problem=stills["problem"].mask(bare, "side not told"))


def sample_public(stills: pd.DataFrame, folder: Path, out: Path, key: bytes) -> Sampled:
    """Take the published stills as notebook 00's picks: nothing is left to choose.

    Args:
        stills: Of `read_public`.
        folder: What paths are told relative to.
        out: The run's folder; pictures land in `out/frames/<video_id>/<frame>.png`.

    Returns:
        As `sampling.sample_folder`; `reason` is "published", statistics are those of the picks,
        angles and times are missing, and a rejected file is a still that cannot be used.
    """
    table = pd.DataFrame([_take(still, folder, out, key) for still in stills.itertuples()])
    table = table.reindex(columns=list(dict.fromkeys([*FRAME_COLUMNS, *table.columns])))
    used, lost = table[table["problem"] == ""], table[table["problem"] != ""]
    videos = used.assign(n_picks=used.groupby("video_id")["frame"].transform("size"))
    videos = videos.drop_duplicates("video_id").drop(columns=["frame", "reason"])
    lost = lost.assign(reason=lost["problem"])
    return Sampled(
        frames=used[FRAME_COLUMNS].reset_index(drop=True),
        videos=videos.assign(notes="").reindex(columns=VIDEO_COLUMNS).reset_index(drop=True),
        statistics=used.reindex(columns=STATISTICS_COLUMNS).reset_index(drop=True),
        rejected=lost.reindex(columns=REJECTED_COLUMNS).reset_index(drop=True),
        links=pd.concat([videos, lost], ignore_index=True).reindex(columns=LINK_COLUMNS),
    )


def _take(still, folder: Path, out: Path, key: bytes) -> dict:
    """Write and measure one still; of one that cannot be used only where it lies, and why."""
    path = path_within(still.path, folder)
    row = {"path": path, "file_id": pseudonym("file", path, key), "folder": str(folder.resolve())}
    row |= {"suffix": ".png", "bytes": file_bytes(still.path), "problem": still.problem}
    row |= {name: getattr(still, name) for name in ("frame", "n_frames", "patient", "video")}
    if still.problem:
        return row
    try:
        grey = read_still(still.path)
    except Unreadable:
        return row | {"problem": "unreadable"}
    ids, (mean, variance) = public_ids(still, key), frame_statistics([grey])
    png = f"frames/{ids['video_id']}/{still.frame:04d}.png"
    (out / png).parent.mkdir(parents=True, exist_ok=True)
    (out / png).write_bytes(cv2.imencode(".png", grey, PNG_SETTINGS)[1].tobytes())
    return row | ids | {"png": png, "mean": mean[0], "variance": variance[0], "reason": "published"}


def public_ids(still, key: bytes) -> dict[str, str]:
    """Return patient_id, exam_id (one a patient) and video_id of a row of `read_public`."""
    values = {"patient": still.patient, "exam": still.patient, "video": still.video}
    return {f"{kind}_id": pseudonym(kind, value, key) for kind, value in values.items()}


def write_tables(stills: pd.DataFrame, name: str, folder: Path, key: bytes) -> None:
    """Write what a reader would bring: `frame_labels.csv`, `reports.csv` and `findings.csv`.

    Every still was chosen by a reader, so it is labelled `better`. The report says that there is
    none; the findings are `finding_texts`, where the labels tell anything.

    Args:
        stills: Of `read_public`.
        name: Of the set; it stands for the reader.
        folder: Of one of the profile's cohorts; made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    title = PUBLIC_SETS[name].title
    used = stills[stills["problem"] == ""]
    ids = pd.DataFrame([public_ids(row, key) for row in used.itertuples()], index=used.index)
    texts = pd.DataFrame([finding_texts(row) for row in used.itertuples()], index=used.index)
    rows = used[["frame"]].assign(video=ids["video_id"], exam=ids["exam_id"], reader=title)
    labels = rows.assign(label=used["laterality"] + "_better")
    reports = rows.drop_duplicates("exam").assign(
        report_ja=f"臨床レポートは公開されていません（{title}）。",
        report_en=f"No clinical report is published with this picture ({title}).",
    )
    findings = rows.join(texts.add_prefix("findings_")).rename(columns={"reader": "validated_by"})
    columns = ["video", "frame", "findings_ja", "findings_en", "validated_by"]
    write_table(labels[["video", "frame", "reader", "label"]], folder / "frame_labels.csv")
    write_table(reports[["exam", "report_ja", "report_en"]], folder / "reports.csv")
    told = findings["findings_en"] != ""
    write_table(findings.loc[told, columns], folder / "findings.csv")


def finding_texts(still) -> dict[str, str]:
    """Write what the labels tell of a row of `read_public`, and no more, in both languages.

    Lesions first (segment or side, grade where one is given), then the segments shown, then the
    paper's sentence on the plan. Empty where the labels tell neither.
    """
    pairs = []
    for segment, percent in still.lesions:
        en, ja = _places([segment]) if segment else (still.laterality,) * 2
        grade, told = (f"{percent}% stenosis", f"{percent}%の") if percent else ("a stenosis", "")
        pairs.append((f"{en} shows {grade}.", f"{ja}に{told}狭窄が確認できます。"))
    if still.clean and not pairs:
        side = still.laterality
        pairs.append((f"No significant stenosis in the {side}.", f"{side}に有意狭窄は認めません。"))
    if still.segments:
        en, ja = _places(still.segments)
        pairs.append((f"Shown: {en}.", f"描出: {ja}。"))
    if not pairs:
        return {"en": "", "ja": ""}
    en, ja = zip(*pairs, strict=True)
    return {"en": " ".join([*en, ADVICE["en"]]), "ja": "".join([*ja, ADVICE["ja"]])}


def _places(segments: Sequence[int]) -> tuple[str, str]:
    """Name segments by artery, "LM #5; LAD #6, #7" and as Japanese notes do."""
    names = [
        f"{artery} " + ", ".join(f"#{n}" for n in numbers)
        for artery, numbers in itertools.groupby(segments, artery_of)
    ]
    en = "; ".join(names)
    return en, en.replace("LM ", "LMT ").replace("; ", "、").replace(", ", "、")
