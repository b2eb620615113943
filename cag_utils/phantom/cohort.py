"""Whole cohorts on disk: rendered in parallel, resumed patient by patient, never half written."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import cv2
from filelock import FileLock
from joblib import Parallel, delayed
from tqdm import tqdm

from cag_utils.phantom.exam import CohortSettings, exam_tables, shoot_exam
from cag_utils.phantom.stills import Still, still

__all__ = ["CohortSettings", "Still", "make_cohort", "still"]

VERSION = 7  # raise it whenever the same settings give other pictures or tables
MARKER = "finished.json"


def make_cohort(folder: Path, settings: CohortSettings, n_workers: int = 2) -> Path:
    """Render a cohort, or return at once if it is already there.

    Args:
        folder: Where it goes: `cines/<patient>/cine_NN.dcm`, `truth_exams.csv`, `truth_videos.csv`,
            `truth_frames.csv`, `frame_labels.csv`, `noise_model_labels.csv`, and for the corpus
            `reports.csv` and `findings.csv`. Patients that an interrupted run has finished stay.
        settings: The cohort. The same settings give the same bytes, whatever `n_workers`.
        n_workers: Processes, at least 1.

    Returns:
        `folder`.

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
    """Render one patient's cines and, last of all, the truth that marks them as finished.

    Args:
        folder: The cohort's folder.
        settings: The cohort.
        number: Of the patient, from 0.
    """
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
