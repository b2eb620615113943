"""What a profile may say, one section per part of the study; each value is checked on load."""

import re
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from cag_utils.params import check_choice, did_you_mean

FOLDER = Path(__file__).parent / "profiles"
Share = Field(gt=0, lt=1)


class ProfileSection(BaseModel):
    """Base class: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class Data(ProfileSection):
    """Where cines come from, and how large the phantom is."""

    source: Literal["phantom", "folder", "arcade", "cadica"]  # the last two: cines.public
    folder: str = ""  # own or public data, relative to the repository root
    seed: int = 0
    scale: float = Field(1.0, gt=0)  # multiplies both patient counts
    cnn_patients: int = Field(0, ge=0)
    corpus_patients: int = Field(0, ge=0)
    cnn_cines: int = Field(0, ge=0)  # cines per patient
    corpus_cines: int = Field(0, ge=0)
    frames_low: int = Field(0, ge=0)  # frames per cine, inclusive range
    frames_high: int = Field(0, ge=0)
    size_px: int = Field(512, ge=64)

    @model_validator(mode="after")
    def _complete(self):
        if self.source != "phantom" and not self.folder:
            raise ValueError(f"data.folder is needed when data.source is {self.source!r}")
        if self.source == "phantom" and not 0 < self.frames_low <= self.frames_high:
            raise ValueError("data.frames_low and frames_high must satisfy 0 < low <= high")
        return self

    @property
    def title(self) -> str:
        """What tables and figures call the data."""
        named = {"phantom": "Digital phantom", "folder": "Own data"}
        return named.get(self.source, f"Public set {self.source.upper()}")


class Sampling(ProfileSection):
    """Which frames of a cine are worth a look."""

    rule: str  # a name in sampling.SAMPLING_RULES
    min_gap: int = Field(ge=1)  # frames between two picks
    # burnt-in text: rectangles blackened in each frame (left, top, right, bottom as shares of width
    # and height), and cines (vi-...) whose text somebody has looked at and found to name nobody
    masks: list[list[float]] = []
    reviewed: list[str] = []

    @model_validator(mode="after")
    def _masks_hide(self):
        for mask in self.masks:
            left, top, right, bottom = mask if len(mask) == 4 else (1, 1, 0, 0)
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
                raise ValueError("a mask is [left, top, right, bottom], shares of width and height")
        return self


class Cnn(ProfileSection):
    """The key-frame and laterality network."""

    model: str  # timm name, or the small network of cag_utils.keyframes
    pretrained: bool
    image_px: int = Field(ge=32)
    epochs: int = Field(ge=0)  # 0: no training, the shipped network as it is
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    label_smoothing: float = Field(ge=0, lt=1)
    warmup_epochs: float = Field(ge=0)
    schedule: Literal["cosine", "constant"]
    average: float = Field(ge=0, lt=1)  # decay of the weights' moving average; 0: none
    start_share: float = Field(ge=0, lt=1)  # of a pretrained start in what is kept; 0: none
    patience: int = Field(ge=0)  # epochs without a better validation F1 before it stops; 0: never
    n_workers: int = Field(ge=0)  # processes that read and augment; 0: none but the training's own
    split_by: Literal["patient", "video"]
    val_share: float = Share
    test_share: float = Share


class Corpus(ProfileSection):
    """Key frames paired with reports."""

    frames_per_video: int = Field(ge=1)
    min_confidence: float = Field(ge=0, le=1)
    only_validated: bool
    val_share: float = Share
    test_share: float = Share


class Lora(ProfileSection):
    """Rank and alpha of one backbone."""

    rank: int = Field(ge=1)
    alpha: int = Field(ge=1)


class Finetune(ProfileSection):
    """LoRA through TRL."""

    size: Literal["tiny", "real"]
    # backbone to `owner/name[@revision]` or folder; else the registry's
    checkpoints: dict[str, str]
    tower_checkpoint: str  # likewise, for a tower that is put in
    backbones: list[str]
    languages: list[Literal["en", "ja"]]
    lora: dict[str, Lora] = {}  # backbone to rank and alpha; else the registry's
    dropout: float = Field(ge=0, lt=1)
    epochs: float = Field(gt=0)
    max_steps: int = -1  # -1: no cap
    learning_rate: float = Field(gt=0)
    projector_rate: float = Field(ge=0)  # the projector's own learning rate; 0: the same
    batch_size: int = Field(ge=1)
    accumulation: int = Field(ge=1)
    warmup_share: float = Field(ge=0, lt=1)
    schedule: Literal["cosine", "linear", "constant"]
    weight_decay: float = Field(ge=0)
    cache_features: bool  # compute the frozen image tower once a picture; false: in every step
    warmup_projector_steps: int = Field(ge=0)  # first the projector learns alone; 0: never
    eval_cases: int = Field(ge=0)  # validation cases answered after each epoch; 0: loss alone
    patience: int = Field(ge=0)  # epochs without a better validation loss before it stops; 0: never
    quantise: Literal["none", "4bit"]  # 4bit: QLoRA, on CUDA with bitsandbytes; not run here

    @model_validator(mode="after")
    def _names_are_tuned(self):
        for key, named in {"checkpoints": self.checkpoints, "lora": self.lora}.items():
            if strays := set(named) - set(self.backbones):
                raise ValueError(f"finetune.{key} names {sorted(strays)}, which are not tuned")
        return self


class Generate(ProfileSection):
    """Decoding, few-shot baselines and the API baseline."""

    batch_size: int = Field(ge=1)
    max_new_tokens: int = Field(ge=1)
    shots: int = Field(ge=0)
    base_exams: int = Field(ge=1)  # validation exams on which an untuned model's prompt is chosen
    floor_exams: int = Field(ge=0)  # test exams that tuned models answer blind; 0: all
    baselines: list[str]  # untuned backbones
    api_model: str


class Vlscore(ProfileSection):
    """Equations 1 and 2."""

    size: Literal["tiny", "real"]
    embedders: list[str]
    normalise: bool
    max_area: float = Field(gt=0)  # C


class Stats(ProfileSection):
    """Intervals, and the measure that was fixed before any run; all others are secondary."""

    primary: str = "lesion_f1"  # a key of scores.measures
    n_resamples: int = Field(ge=10)
    level: float = Share

    def draws(self, seed: int) -> tuple[int, int, float]:
        """Return the last arguments of the bootstraps in `stats`."""
        return self.n_resamples, seed, self.level


class Profile(ProfileSection):
    """A whole profile, as read from `cag_utils/profiles/<name>.yaml`."""

    name: str
    data: Data
    sampling: Sampling
    cnn: Cnn
    corpus: Corpus
    finetune: Finetune
    generate: Generate
    vlscore: Vlscore
    stats: Stats
    _given: str = PrivateAttr("")

    @property
    def given(self) -> str:
        """What `load_profile` was asked for: a shipped profile's name, or a file's path."""
        return self._given or self.name


def profile_names() -> list[str]:
    """Return the names of the shipped profiles, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_profile(name: str) -> Profile:
    """Read and check one profile.

    Args:
        name: A shipped profile's name, or the path of a YAML file of your own (`my.yaml`), where
            you started or else in the repository; its name without suffix names the outputs.

    Raises:
        ValueError: The name or a key is unknown, a key is missing, or a value breaks its rule; the
            message names the key and suggests the nearest.
        FileNotFoundError: There is no such file.
    """
    if Path(name).suffix not in (".yaml", ".yml"):
        check_choice("profile", name, profile_names())
        path = FOLDER / f"{name}.yaml"
        return parse_profile(path.read_text(encoding="utf-8"), name, str(path))
    here = Path(name).expanduser()
    path = (here if here.is_file() else FOLDER.parents[1] / here).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"there is no profile {here}; shipped ones: {profile_names()}")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", path.stem) or path.stem in profile_names():
        rule = "letters, digits, _ and -, and no shipped profile's"
        raise ValueError(f"{path}: a profile's file name names its outputs; it must be {rule}")
    profile = parse_profile(path.read_text(encoding="utf-8"), path.stem, str(path))
    profile._given = str(path)
    return profile


def parse_profile(text: str, name: str, where: str) -> Profile:
    """Check the text of a profile, YAML from `where`; ValueError as `load_profile`."""
    content = yaml.safe_load(text)
    if not isinstance(content, dict):
        raise ValueError(f"{where}: a profile is a mapping of sections, got {content!r}")
    if base := content.pop("like", ""):  # another profile, but for what is named here
        check_choice("profile", base, profile_names())
        whole = yaml.safe_load((FOLDER / f"{base}.yaml").read_text(encoding="utf-8"))
        content = whole | {
            section: values if section == "data" else whole.get(section, {}) | values
            for section, values in content.items()
        }
    try:
        return Profile.model_validate({"name": name} | content)
    except ValidationError as error:
        raise ValueError(f"{where}: " + "; ".join(map(_explain, error.errors()))) from None


def _explain(error: dict) -> str:
    """One problem in words: the dotted key, the rule, and the nearest known key."""
    *parents, last = map(str, error["loc"]) if error["loc"] else ("profile",)
    key = ".".join((*parents, last))
    if error["type"] != "extra_forbidden":
        return f"{key}: {error['msg']}"
    model = Profile
    for part in parents:
        kind = model.model_fields[part].annotation
        model = Lora if kind == dict[str, Lora] else kind
        if model is Lora:
            break
    return f"unknown key {key!r}{did_you_mean(last, model.model_fields)}"
