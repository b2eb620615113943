"""One fine-tuning run as plain names and numbers, written beside its results."""

import hashlib
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cag_utils.backbones import get_backbone
from cag_utils.params import check_choice
from cag_utils.profiles import Finetune, Lora
from cag_utils.study import read_json, write_json
from cag_utils.vlm.loading import SIZES

SEAL = "whole.json"  # in a checkpoint: its files' hashes, written last


@dataclass(frozen=True)
class Job:
    """Everything one fine-tuning run depends on.

    Attributes:
        backbone: A key of `backbones.BACKBONES`.
        size: tiny or real.
        language: en or ja.
        pairs: Path of notebook 03's `pairs.csv`.
        pairs_hash: Of its content: other pairs are another job.
        outputs: The folder its pictures are relative to.
        folder: The run's folder.
        features: Where tower features are kept; runs on the same pictures share it.
        seed: Of the adapter's start, the order of cases, and dropout.
        settings: The profile's `finetune` section.
    """

    backbone: str
    size: str
    language: str
    pairs: str
    pairs_hash: str
    outputs: str
    folder: str
    features: str
    seed: int
    settings: dict = field(repr=False)

    def __post_init__(self):
        """Check the names and the settings before anything heavy starts.

        Raises:
            ValueError: Unknown backbone, or settings that are no `finetune` section.
        """
        get_backbone(self.backbone)
        Finetune.model_validate(self.settings)

    @property
    def finetune(self) -> Finetune:
        """The settings, checked."""
        return Finetune.model_validate(self.settings)

    @property
    def lora(self) -> Lora:
        """Rank and alpha."""
        return self.finetune.lora[self.backbone]

    @property
    def source(self) -> dict[str, str]:
        """What `load_backbone` and `load_tuned` get beside name and size."""
        own, swapped = self.finetune.checkpoints, get_backbone(self.backbone).tower
        tower = self.finetune.tower_checkpoint if swapped else ""
        return {"checkpoint": own.get(self.backbone, ""), "tower_checkpoint": tower}

    @property
    def path(self) -> Path:
        """The run's folder as a path."""
        return Path(self.folder)


def make_job(
    settings: Finetune,
    backbone: str,
    language: str,
    pairs: str | Path,
    folder: str | Path,
    seed: int,
    size: str = "",
    epochs: float = 0.0,
    features: str | Path = "",
) -> Job:
    """Describe a run from a profile's settings and what a notebook changes in them.

    Args:
        settings: `profile.finetune`.
        backbone: A key of `backbones.BACKBONES`.
        language: en or ja.
        pairs: `outputs/<profile>/03_build_corpus/all/pairs.csv`.
        folder: The run's folder.
        seed: Of the run.
        size: tiny or real; the profile's if empty.
        epochs: The profile's if 0.
        features: Folder of tower features; `outputs/<profile>/04_finetune/tower_features` if empty.

    Raises:
        ValueError: Unknown backbone, size or language, or negative epochs.
    """
    check_choice("language", language, settings.languages)
    size = check_choice("size", size or settings.size, SIZES)
    if epochs < 0:
        raise ValueError(f"epochs must be > 0, or 0 for the profile's, got {epochs}")
    entry = get_backbone(backbone)
    lora = settings.lora.get(backbone) or Lora(rank=entry.lora_rank, alpha=entry.lora_alpha)
    changed = settings.model_copy(
        update={"epochs": float(epochs or settings.epochs), "lora": {backbone: lora}}
    )
    pairs = Path(pairs)
    outputs = pairs.parents[2]  # outputs/<profile>/
    return Job(
        backbone=backbone,
        size=size,
        language=language,
        pairs=str(pairs),
        pairs_hash=hashlib.sha256(pairs.read_bytes()).hexdigest()[:16],
        outputs=str(outputs),
        folder=str(folder),
        features=str(features or outputs / "04_finetune" / "tower_features"),
        seed=seed,
        settings=changed.model_dump(),
    )


def start_folder(job: Job) -> None:
    """Write `job.json`; leave checkpoints and logs only if they belong to the very same job.

    Checkpoints that are not whole go too.
    """
    job.path.mkdir(parents=True, exist_ok=True)
    path = job.path / "job.json"
    same = path.is_file() and read_json(path) == asdict(job)
    for folder in _checkpoints(job):
        if not (same and is_whole(folder)):
            shutil.rmtree(folder)
    if last_checkpoint(job) is None:
        shutil.rmtree(job.path / "tensorboard", ignore_errors=True)
    _write_at_once(path, asdict(job))


def last_checkpoint(job: Job) -> str | None:
    """Return the last whole checkpoint a stopped run left, if any."""
    return next((str(folder) for folder in _checkpoints(job)[::-1] if is_whole(folder)), None)


def seal(folder: Path) -> None:
    """Write what a checkpoint holds, as its last file and at once: from now on it counts."""
    _write_at_once(folder / SEAL, _digests(folder))


def is_whole(folder: Path) -> bool:
    """Say whether a checkpoint holds what its seal says, byte for byte."""
    path = folder / SEAL
    return path.is_file() and read_json(path) == _digests(folder)


def _checkpoints(job: Job) -> list[Path]:
    found = (job.path / "checkpoints").glob("checkpoint-*")
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(SEAL))
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def _write_at_once(path: Path, content: dict) -> None:
    """A reader finds the old file or the whole new one, also after a kill."""
    half_made = path.with_name(f"{path.name}.{os.getpid()}")
    write_json(half_made, content)
    half_made.replace(path)


def base_name(job: Job) -> str:
    """Return the base's name for the adapter's card: a repository, or a folder without its path."""
    checkpoint, own = get_backbone(job.backbone).checkpoint, job.source["checkpoint"]
    if job.size == "tiny":
        return f"cag_utils/weights/{checkpoint.twin}"
    return (Path(own).name if Path(own).is_dir() else own) if own else checkpoint.repo
