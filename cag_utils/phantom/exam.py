"""One patient's exam: its cines, what is true of them, and what the clinic wrote."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from cag_utils.phantom.atlas import LATERALITIES
from cag_utils.phantom.findings import decide_plan, write_findings
from cag_utils.phantom.hardware import draw_hardware
from cag_utils.phantom.hospital_notes import write_report
from cag_utils.phantom.labels import NOISE_MODELS, FrameTruth, simulate_labels
from cag_utils.phantom.patients import Record, draw_record
from cag_utils.phantom.render import film
from cag_utils.phantom.shot import draw_kind, draw_shot
from cag_utils.phantom.streams import Streams
from cag_utils.phantom.subject import Subject, diseased_tree, draw_subject
from cag_utils.phantom.xadicom import Identity, make_uid, write_xa, xa_dataset
from cag_utils.segments import laterality_of

STREAMS = {"cnn": 1, "corpus": 2}  # first word of every seed: cohorts never share a patient
LESION_SHARES = {"cnn": (0.30, 0.35, 0.25, 0.10), "corpus": (0.12, 0.43, 0.30, 0.15)}
READER = "phantom truth"


@dataclass(frozen=True)
class CohortSettings:
    """How large a cohort is, and which.

    Attributes:
        name: cnn or corpus.
        seed: Of the whole cohort.
        n_patients: One exam each.
        cines_per_patient: At least 1; with 2 or more both sides are shown.
        frames_low: Fewest frames of a cine.
        frames_high: Most frames of a cine.
        size_px: Rows and columns.
        frame_rate: Frames a second.

    Raises:
        ValueError: The name is unknown, or a number breaks its rule.
    """

    name: str
    seed: int
    n_patients: int
    cines_per_patient: int
    frames_low: int
    frames_high: int
    size_px: int = 512
    frame_rate: float = 15.0

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
    """Render one patient's cines into files.

    Everything is drawn from the cohort's seed and the patient's number, so neither order nor
    workers matter.

    Args:
        folder: Existing folder for this patient's cines.
        settings: The cohort.
        number: Of the patient, from 0.

    Returns:
        JSON-ready truth: `exam` (one row), `videos` (rows) and `frames` (columns by video).
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
    videos, frames = [], {}
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
        frames[identity.cine_uid] = _frame_columns(streams("readers", cine), truth, side)
    return {"exam": exam, "videos": videos, "frames": frames}


def _frame_columns(rng, truth: FrameTruth, side: str) -> dict[str, list]:
    """Columns of a cine's frames: the label, what it follows from, and the noise models' labels."""
    measured = {name: column.tolist() for name, column in truth.measured().items()}
    measured["contrast"] = np.round(truth.contrast, 4).tolist()
    noisy = {model.name: simulate_labels(rng, truth, side, model) for model in NOISE_MODELS}
    return {"label": truth.labels(side)} | measured | noisy


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
        "sex": subject.sex,
        "age": record.age,
        "dominance": subject.dominance,
        "lesions": json.dumps(subject.lesions),
        "plan": json.dumps(plans),
        "record": json.dumps(asdict(record)),
        "report_ja": report["ja"],
        "report_en": report["en"],
        "date": f"{2020 + int(rng.integers(5))}{int(rng.integers(1, 13)):02d}"
        f"{int(rng.integers(1, 29)):02d}",
    }


def _of_side(subject: Subject, laterality: str) -> list[dict]:
    return [x for x in subject.lesions if laterality_of(x["segment"]) == laterality]


def _identity(exam: dict, cine: int) -> Identity:
    """DICOM identity of one cine of an exam."""
    return Identity(
        patient=exam["patient"],
        sex=exam["sex"],
        age=exam["age"],
        study_uid=exam["exam"],
        series_uid=make_uid("series", exam["exam"], cine),
        cine_uid=make_uid("cine", exam["exam"], cine),
        number=cine,
        date=exam["date"],
        time=f"{9 + cine // 60:02d}{cine % 60:02d}00",
    )


def _video_row(exam, identity: Identity, side: str, shot, subject: Subject, record: Record) -> dict:
    """The cine's row of truth_videos.csv, findings included."""
    lesions = _of_side(subject, side)
    plan = decide_plan(record, lesions)
    findings = write_findings(lesions, side, plan)
    return {
        "video": identity.cine_uid,
        "exam": exam["exam"],
        "patient": exam["patient"],
        "laterality": side,
        "view": shot.view,
        "primary_angle_deg": round(shot.arm.primary_deg, 1),
        "secondary_angle_deg": round(shot.arm.secondary_deg, 1),
        "kind": shot.kind,
        "lesions": json.dumps(lesions),
        "plan": plan,
        "findings_ja": findings["ja"],
        "findings_en": findings["en"],
    }


def exam_tables(exams: list[dict], with_clinic: bool) -> dict[str, pd.DataFrame]:
    """Gather the truth of exams into the study's tables.

    Args:
        exams: From `shoot_exam`, in the order of patients, at least one. One exam at a time gives
            the same rows as all at once, so that a cohort's size need not fit into memory.
        with_clinic: Also reports.csv and findings.csv.

    Returns:
        File stem to table; `noise_model_labels` holds simulated sheets, no reader's, two rows a
        frame.
    """
    videos = pd.DataFrame([row for exam in exams for row in exam["videos"]])
    frames = pd.concat(
        [
            pd.DataFrame({"video": uid, "frame": range(len(columns["label"]))} | columns)
            for exam in exams
            for uid, columns in exam["frames"].items()
        ],
        ignore_index=True,
    )
    names = [model.name for model in NOISE_MODELS]
    noisy = pd.concat(
        [frames[["video", "frame"]].assign(reader=name, label=frames[name]) for name in names]
    ).sort_index(kind="stable", ignore_index=True)
    frames = frames.drop(columns=names)
    every = pd.DataFrame([exam["exam"] for exam in exams])
    tables = {
        "truth_exams": every.drop(columns=["report_ja", "report_en", "date"]),
        "truth_videos": videos.drop(columns=["findings_ja", "findings_en"]),
        "truth_frames": frames,
        "frame_labels": frames.assign(reader=READER)[["video", "frame", "reader", "label"]],
        "noise_model_labels": noisy,
    }
    if with_clinic:
        tables["reports"] = every[["exam", "report_ja", "report_en"]]
        findings = videos[["video", "findings_ja", "findings_en"]].assign(validated_by=READER)
        findings.insert(1, "frame", pd.array([pd.NA] * len(findings), dtype="Int64"))
        tables["findings"] = findings
    return tables
