"""One fine-tuning run as plain names and numbers, written beside its results."""

import hashlib
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint

from cag_utils.backbones import SIZES, get_backbone
from cag_utils.params import check_choice
from cag_utils.profiles import Finetune
from cag_utils.study import read_json, write_json


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
        if self.backbone not in Finetune.model_validate(self.settings).lora:
            raise ValueError(f"finetune.lora gives no rank for {self.backbone!r}")

    @property
    def finetune(self) -> Finetune:
        """The settings, checked."""
        return Finetune.model_validate(self.settings)

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
    changed = settings.model_copy(update={"epochs": float(epochs or settings.epochs)})
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
    """Write `job.json`; leave checkpoints and logs only if they belong to the very same job."""
    job.path.mkdir(parents=True, exist_ok=True)
    path = job.path / "job.json"
    if not path.is_file() or read_json(path) != asdict(job):
        shutil.rmtree(job.path / "checkpoints", ignore_errors=True)
    if last_checkpoint(job) is None:
        shutil.rmtree(job.path / "tensorboard", ignore_errors=True)
    write_json(path, asdict(job))


def last_checkpoint(job: Job) -> str | None:
    """Return the checkpoint a stopped run left, if any."""
    folder = job.path / "checkpoints"
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def base_name(job: Job) -> str:
    """Return the base's name for the adapter's card: a repository, or a folder without its path."""
    checkpoint, own = get_backbone(job.backbone).checkpoint, job.source["checkpoint"]
    if job.size == "tiny":
        return f"cag_utils/weights/{checkpoint.twin}"
    return (Path(own).name if Path(own).is_dir() else own) if own else checkpoint.repo
