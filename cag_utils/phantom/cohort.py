"""Cohorts on disk: patients, their cines and notes, drawn at once, resumed patient by patient."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from filelock import FileLock
from joblib import Parallel, delayed
from tqdm import tqdm

from cag_utils.phantom import labels
from cag_utils.phantom.anatomy.atlas import LATERALITIES
from cag_utils.phantom.clinic.findings import decide_plan, write_findings
from cag_utils.phantom.clinic.notes import write_report
from cag_utils.phantom.clinic.patients import Record, draw_record
from cag_utils.phantom.dicom import Identity, make_uid, write_xa, xa_dataset
from cag_utils.phantom.imaging.hardware import draw_hardware
from cag_utils.phantom.imaging.render import film
from cag_utils.phantom.imaging.shot import draw_kind, draw_shot
from cag_utils.phantom.labels import FrameTruth, LesionSight, simulate_labels
from cag_utils.phantom.streams import VERSION, Streams
from cag_utils.phantom.subject import Subject, diseased_tree, draw_subject
from cag_utils.segments import laterality_of

MARKER = "finished.json"
STREAMS = {"cnn": 1, "corpus": 2}  # first word of every seed: cohorts never share a patient
LESION_SHARES = {"cnn": (0.30, 0.35, 0.25, 0.10), "corpus": (0.12, 0.43, 0.30, 0.15)}
READER = "phantom truth"
IDEAL_PX = 224  # rows of the pictures that the study's models are shown
SIGHT = "width_px", "narrowing_px", "filled", "signal", "in_field", "covered", "visible"
DATES = (2020, 2025), (1, 13), (1, 29)  # made-up years, months and days


@dataclass(frozen=True)
class CohortSettings:
    """How large a cohort is, and which.

    Raises:
        ValueError: The name is unknown, or a number breaks its rule.
    """

    name: str  # cnn or corpus
    seed: int  # of the whole cohort
    n_patients: int  # one exam each
    cines_per_patient: int  # at least 1; with 2 or more both sides are shown
    frames_low: int  # fewest frames of a cine
    frames_high: int  # most frames of a cine
    size_px: int = 512  # rows and columns
    frame_rate: float = 15.0  # frames a second

    def __post_init__(self):
        if self.name not in STREAMS:
            raise ValueError(f"a cohort is one of {tuple(STREAMS)}, got {self.name!r}")
        if min(self.n_patients, self.cines_per_patient, self.frames_low) < 1 or self.seed < 0:
            raise ValueError(f"a cohort needs patients, cines, frames and seed >= 0, got {self}")
        if self.frames_low > self.frames_high:
            raise ValueError(
                f"frames_low {self.frames_low} must not exceed frames_high {self.frames_high}"
            )
        if self.size_px < 64 or self.frame_rate <= 0:
            raise ValueError(f"size_px must be >= 64 and frame_rate > 0, got {self}")

    @property
    def key(self) -> tuple[int, int]:
        """First two words of every stream of this cohort."""
        return STREAMS[self.name], self.seed

    def streams(self, number: int) -> Streams:
        """Return the streams of one patient of this cohort alone."""
        return Streams((*self.key, number))


def shoot_exam(folder: Path, settings: CohortSettings, number: int) -> dict:
    """Render one patient's cines into a folder, from the cohort's seed and its number alone.

    Returns:
        JSON-ready truth: `exam` (one row), `videos` (rows), `frames` (columns by video) and
        `sights` (pairs of video and columns, one a lesion).
    """
    streams = settings.streams(number)
    subject = draw_subject(streams("subject"), LESION_SHARES[settings.name])
    record = draw_record(streams("record"), subject.lesions, subject.sex)
    operated, stented = "cabg" in record.history, "pci" in record.history
    subject = replace(subject, hardware=draw_hardware(streams("metal"), operated, stented))
    exam = _exam_row(streams("exam"), settings, number, subject, record)
    trees = {side: diseased_tree(streams("tree", side), subject, side)[0] for side in LATERALITIES}
    shapes = [lesion.shape() for side in LATERALITIES for lesion in trees[side].lesions]
    exam["lesion_shapes"] = json.dumps(sorted(shapes, key=lambda shape: shape["segment"]))
    videos, frames, sights = [], {}, []
    sides = _sides(streams("sides"), settings.cines_per_patient)
    for cine, side in enumerate(sides, start=1):
        kind = draw_kind(streams("kind", cine), settings.name)
        low, high = settings.frames_low, settings.frames_high
        length = int(streams("length", cine).integers(low, high + 1))
        shot = draw_shot(
            streams("shot", cine), subject, trees[side], kind, length, settings.frame_rate,
            settings.size_px,
        )  # fmt: skip
        pictures, truth = film(streams("film", cine), subject, trees[side], shot)
        identity = _identity(exam, cine)
        data = xa_dataset(pictures, identity, shot.arm, shot.frame_rate, shot.pulse_s)
        write_xa(folder / f"cine_{cine:02d}.dcm", data)
        videos.append(_video_row(exam, identity, side, shot, subject, record))
        frames[identity.cine_uid] = _frame_columns(streams("readers", cine), truth, side, record)
        sights += [(identity.cine_uid, _sight_columns(sight)) for sight in truth.sights]
    return {"exam": exam, "videos": videos, "frames": frames, "sights": sights}


def _frame_columns(rng, truth: FrameTruth, side: str, record: Record) -> dict[str, list]:
    """Columns of a cine's frames.

    The label, what it follows from, the lesions that a frame shows with the plan after them alone,
    the same as an ideal reader of the twins' pictures has them, and the noise models' labels.
    """
    measured = {name: column.tolist() for name, column in truth.measured().items()}
    measured["contrast"] = np.round(truth.contrast, 4).tolist()
    for prefix, size_px in (("", None), ("ideal_", IDEAL_PX)):
        shown = [truth.lesions(i, size_px) for i in range(len(truth.opacified))]
        measured[f"{prefix}lesions"] = list(map(json.dumps, shown))
        measured[f"{prefix}plan"] = [decide_plan(record, lesions) for lesions in shown]
    noisy = {model.name: simulate_labels(rng, truth, side, model) for model in labels.NOISE_MODELS}
    return {"label": truth.labels(side)} | measured | noisy


def _sight_columns(sight: LesionSight) -> dict[str, list]:
    """Columns of one lesion over a cine's frames: what was measured, and what follows from it."""
    columns = {name: getattr(sight, name).tolist() for name in SIGHT}
    lesion = {name: [sight.lesion[name]] * len(sight.visible) for name in ("segment", "percent")}
    return lesion | columns | {"ideal_percent": sight.percent_at(IDEAL_PX).tolist()}


def _sides(rng, count: int) -> list[str]:
    """Sides of an exam's cines: both if there is room, then three of five left, in any order."""
    sides = [*LATERALITIES, *rng.choice(LATERALITIES, max(count - 2, 0), p=[0.6, 0.4])]
    if count == 1:
        return [str(rng.choice(LATERALITIES, p=[0.6, 0.4]))]
    return [str(side) for side in rng.permutation(sides)]


def _exam_row(rng, settings: CohortSettings, number: int, subject: Subject, record: Record) -> dict:
    """The exam's row of truth_exams.csv, reports included."""
    report = write_report(rng, record)
    plans = {side: decide_plan(record, _of_side(subject, side)) for side in LATERALITIES}
    return {
        "exam": make_uid("study", *settings.key, number),
        "patient": f"PHANTOM-{settings.name.upper()}-{number + 1:04d}",
        "sex": subject.sex, "age": record.age, "dominance": subject.dominance,
        "lesions": json.dumps(subject.lesions), "plan": json.dumps(plans),
        "record": json.dumps(asdict(record)),
        "report_ja": report["ja"], "report_en": report["en"],
        "date": "{:04d}{:02d}{:02d}".format(*(int(rng.integers(*x)) for x in DATES)),
    }  # fmt: skip


def _of_side(subject: Subject, laterality: str) -> list[dict]:
    return [x for x in subject.lesions if laterality_of(x["segment"]) == laterality]


def _identity(exam: dict, cine: int) -> Identity:
    """DICOM identity of one cine of an exam."""
    return Identity(
        **{word: exam[word] for word in ("patient", "sex", "age", "date")},
        study_uid=exam["exam"],
        series_uid=make_uid("series", exam["exam"], cine),
        cine_uid=make_uid("cine", exam["exam"], cine),
        number=cine,
        time=f"{9 + cine // 60:02d}{cine % 60:02d}00",
    )


def _video_row(exam, identity: Identity, side: str, shot, subject: Subject, record: Record) -> dict:
    """The cine's row of truth_videos.csv: what is true of the side, whatever a frame shows."""
    lesions = _of_side(subject, side)
    return {
        "video": identity.cine_uid, "exam": exam["exam"], "patient": exam["patient"],
        "laterality": side, "view": shot.view,
        "primary_angle_deg": round(shot.arm.primary_deg, 1),
        "secondary_angle_deg": round(shot.arm.secondary_deg, 1),
        "kind": shot.kind, "lesions": json.dumps(lesions), "plan": decide_plan(record, lesions),
    }  # fmt: skip


def exam_tables(exams: list[dict], with_clinic: bool) -> dict[str, pd.DataFrame]:
    """Gather the truth of exams into the study's tables.

    Args:
        exams: From `shoot_exam`, at least one. One at a time gives the same rows as all at once,
            so that a cohort's size need not fit into memory.
        with_clinic: Also reports.csv and findings.csv.

    Returns:
        File stem to table; `noise_model_labels` has a simulated sheet, no reader's, a noise model.
    """
    videos = pd.DataFrame([row for exam in exams for row in exam["videos"]])
    frames = _by_frame((uid, own) for exam in exams for uid, own in exam["frames"].items())
    sights = (pair for exam in exams for pair in exam["sights"])
    names = [model.name for model in labels.NOISE_MODELS]
    noisy = pd.concat(
        [frames[["video", "frame"]].assign(reader=name, label=frames[name]) for name in names]
    ).sort_index(kind="stable", ignore_index=True)
    frames = frames.drop(columns=names)
    every = pd.DataFrame([exam["exam"] for exam in exams])
    tables = {
        "truth_exams": every.drop(columns=["report_ja", "report_en", "date"]),
        "truth_videos": videos,
        "truth_frames": frames,
        "truth_lesions": _by_frame(sights, ("segment", "percent", *SIGHT, "ideal_percent")),
        "frame_labels": frames.assign(reader=READER)[["video", "frame", "reader", "label"]],
        "noise_model_labels": noisy,
    }
    if with_clinic:
        tables["reports"] = every[["exam", "report_ja", "report_en"]]
        sides = frames["video"].map(videos.set_index("video")["laterality"])
        texts = [
            write_findings(json.loads(lesions), side, plan)
            for lesions, side, plan in zip(frames["lesions"], sides, frames["plan"], strict=True)
        ]
        tables["findings"] = frames[["video", "frame"]].assign(
            findings_ja=[text["ja"] for text in texts],
            findings_en=[text["en"] for text in texts],
            validated_by=READER,
        )
    return tables


def _by_frame(found: Iterable[tuple[str, dict[str, list]]], columns=()) -> pd.DataFrame:
    """Stack the columns of cines, one row a frame; `columns` names them where there is no cine."""
    tables = [pd.DataFrame(columns=["video", "frame", *columns])]
    for uid, own in found:
        count = len(next(iter(own.values())))
        tables.append(pd.DataFrame({"video": uid, "frame": range(count)} | own))
    return pd.concat(tables[1:] or tables, ignore_index=True)


def make_cohort(folder: Path, settings: CohortSettings, n_workers: int = 2) -> Path:
    """Render a cohort into a folder, or return at once if it is already there.

    Args:
        folder: Where it goes: `cines/<patient>/cine_NN.dcm`, `truth_exams.csv`, `truth_videos.csv`,
            `truth_frames.csv`, `truth_lesions.csv` (how each frame shows each lesion of its side),
            `frame_labels.csv`, `noise_model_labels.csv`, and for the corpus `reports.csv` and
            `findings.csv`, of each frame what it shows, with the plan that follows from that alone.
            Patients that an interrupted run has finished stay.
        settings: The same settings give the same bytes, whatever `n_workers`.
        n_workers: Processes, at least 1.

    Raises:
        ValueError: `n_workers` is below 1, or the folder holds a cohort of other settings.
    """
    if n_workers < 1:
        raise ValueError(f"n_workers must be at least 1, got {n_workers}")
    folder = Path(folder)
    wanted = {"version": VERSION} | asdict(settings)
    if _read_json(folder / MARKER) == wanted:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    # a second process waits here, then finds it finished
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if _read_json(folder / MARKER) == wanted:
            return folder
        _refuse_other(folder, settings)
        (folder / "patients").mkdir(exist_ok=True)
        _write_json(folder / "settings.json", asdict(settings))
        missing = [i for i in range(settings.n_patients) if not _finished(folder, settings, i)]
        _shoot_all(folder, settings, missing, n_workers)
        _write_tables(folder, settings)
        _write_json(folder / MARKER, wanted)
    return folder


def _write_tables(folder: Path, settings: CohortSettings) -> None:
    """Gather all patients' truth into tables, one patient in memory at a time."""
    parts = {}
    for number in range(settings.n_patients):
        exam = json.loads(_truth_path(folder, number).read_text(encoding="utf-8"))
        for stem, table in exam_tables([exam], with_clinic=settings.name == "corpus").items():
            text = table.to_csv(index=False, lineterminator="\n", header=stem not in parts)
            part = parts.setdefault(stem, folder / f"{stem}.csv.part")
            with part.open("ab" if number else "wb") as file:
                file.write(text.encode())
    for stem, part in parts.items():
        part.replace(folder / f"{stem}.csv")


def _shoot_all(folder: Path, settings: CohortSettings, numbers: list[int], n_workers: int) -> None:
    """Render the missing patients, one task each, with a bar that counts patients."""
    tasks = [delayed(shoot_patient)(folder, settings, number) for number in numbers]
    done = settings.n_patients - len(numbers)
    about = f"phantom {settings.name}"
    with tqdm(
        total=settings.n_patients, initial=done, desc=about, unit="patient", mininterval=30
    ) as bar:
        for _ in Parallel(n_workers, return_as="generator_unordered")(tasks):
            bar.update()


def shoot_patient(folder: Path, settings: CohortSettings, number: int) -> None:
    """Render one patient's cines and, last of all, the truth that marks them as finished."""
    cv2.setNumThreads(1)  # one core a worker
    _truth_path(folder, number).unlink(missing_ok=True)
    cines = folder / "cines" / f"patient_{number + 1:04d}"
    cines.mkdir(parents=True, exist_ok=True)
    truth = shoot_exam(cines, settings, number)
    _write_json(_truth_path(folder, number), {"fingerprint": _fingerprint(settings)} | truth)


def _truth_path(folder: Path, number: int) -> Path:
    return folder / "patients" / f"patient_{number + 1:04d}.json"


def _fingerprint(settings: CohortSettings) -> str:
    """A hash of everything that one patient's files depend on."""
    content = {k: v for k, v in asdict(settings).items() if k != "n_patients"}
    text = json.dumps({"version": VERSION} | content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _finished(folder: Path, settings: CohortSettings, number: int) -> bool:
    """Whether an earlier run with these settings has finished this patient."""
    truth = _read_json(_truth_path(folder, number))
    return truth is not None and truth.get("fingerprint") == _fingerprint(settings)


def _refuse_other(folder: Path, settings: CohortSettings) -> None:
    """Leave a cohort of other settings alone; another version of the phantom is drawn anew."""
    found = _read_json(folder / "settings.json")
    if found is not None and found != asdict(settings):
        changed = [k for k, v in asdict(settings).items() if found.get(k) != v]
        raise ValueError(
            f"{folder} holds a cohort with other {', '.join(changed)}: delete it or choose another "
            "folder"
        )


def _read_json(path: Path):
    """Content of a JSON file; None if it is missing or cut off."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _write_json(path: Path, content) -> None:
    """Write a file that appears whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(json.dumps(content, ensure_ascii=False).encode())
    part.replace(path)
