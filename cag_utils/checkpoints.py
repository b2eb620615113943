"""A trained network on disk and its probabilities, calibrated as its `model.json` says."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cag_utils.labels import LATERALITY, SIX_CLASSES
from cag_utils.networks import autocast, build_model, prepare
from cag_utils.study import read_json, write_json

# Optional keys of model.json. RCA offset: in logits, after the temperature.
DEFAULTS = {"temperature": 1.0, "rca_logit_offset": 0.0, "views": 1}
LARGER = (15 / 14, 8 / 7)  # sizes of the second and third view: 240 and 256 for 224; a choice
CPU_BATCH = 16  # pictures whose layers stay in two cores' caches; half as fast again as 64
IS_RCA = tuple(float(LATERALITY[name] == "RCA") for name in SIX_CLASSES)


@torch.inference_mode()
def probabilities(
    model: nn.Module,
    name: str,
    pictures: Tensor,
    batch_size: int,
    device: torch.device,
    facts: Mapping[str, object] | None = None,
) -> Iterator[np.ndarray]:
    """Yield the six class probabilities, batch by batch.

    Logits are divided by the temperature, then the offset is added to the three RCA ones, then
    softmax; probabilities are averaged over the views: the picture as it is, and for `views` 3
    twice enlarged (`LARGER`). No view is cropped, as a cropped key frame is none.

    Args:
        model: On `device`, in evaluation mode.
        name: Its registry name.
        pictures: (n, 1, px, px) uint8.
        batch_size: Pictures at a time; on a CPU at most `CPU_BATCH`.
        device: Where the model is.
        facts: Content of `model.json`, of which only the optional keys are read; None for their
            `DEFAULTS`, which change nothing.

    Yields:
        (b, 6) float64, rows adding up to 1.

    Source:
        Temperature: Guo et al., ICML 2017.
    """

    def score(grey: Tensor) -> Tensor:
        with autocast(device):
            return model(prepare(grey, name))

    on_cpu = device.type == "cpu"
    for batch in pictures.split(min(batch_size, CPU_BATCH) if on_cpu else batch_size):
        yield _calibrated(score, batch.to(device), facts or {})


def save_model(model: nn.Module, folder: Path, facts: Mapping[str, object]) -> None:
    """Write `best.safetensors` and `model.json` (at least `model` and `image_px`)."""
    weights = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    save_file(weights, folder / "best.safetensors")
    write_json(folder / "model.json", {**facts, "classes": list(SIX_CLASSES)})


def load_model(folder: Path, device: torch.device) -> tuple[nn.Module, dict]:
    """Load a trained network in evaluation mode.

    Args:
        folder: Holds `best.safetensors` (float32 or float16) and `model.json`, as notebook 01
            writes them.
        device: Where to put it.

    Returns:
        The model, in float32, and the content of `model.json`.

    Raises:
        FileNotFoundError: One of the files is missing.
        ValueError: The classes are not this study's six, in this order; `model.json` lacks a key
            or holds a bad `temperature`, `rca_logit_offset` or `views`; or the weights are broken
            or another network's.
    """
    folder = Path(folder)
    for name in ("model.json", "best.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing; run notebooks/01_train_cnn first")
    try:
        facts = read_json(folder / "model.json")
    except ValueError as error:
        raise ValueError(f"{folder / 'model.json'} is not JSON: {error}") from error
    if facts.get("classes") != list(SIX_CLASSES):
        found = facts.get("classes")
        raise ValueError(f"{folder} predicts {found}, the study needs {SIX_CLASSES}")
    if missing := {"model", "image_px"} - set(facts):
        raise ValueError(f"{folder / 'model.json'} lacks {sorted(missing)}; notebook 01 writes all")
    _check_calibration(folder / "model.json", facts)
    model = build_model(facts["model"], pretrained=False)
    try:
        weights = load_file(folder / "best.safetensors")
        model.load_state_dict({k: v.float() for k, v in weights.items()})
    except (SafetensorError, RuntimeError) as error:
        text = f"{folder / 'best.safetensors'} does not hold the weights of {facts['model']}"
        raise ValueError(f"{text}: broken, or of another network") from error
    return model.to(device, memory_format=torch.channels_last).eval(), facts


def _check_calibration(path: Path, facts: Mapping[str, object]) -> None:
    """Refuse optional keys that make no sense."""
    chosen = DEFAULTS | dict(facts)
    for name, rule in (
        ("temperature", "a number above 0"),
        ("rca_logit_offset", "a finite number"),
    ):
        value = chosen[name]
        fits = type(value) in (int, float) and np.isfinite(value)
        if not fits or (name == "temperature" and value <= 0):
            raise ValueError(f"{path}: {name} must be {rule}, got {value!r}")
    if type(chosen["views"]) is not int or chosen["views"] not in (1, 3):
        raise ValueError(f"{path}: views must be 1 or 3, got {chosen['views']!r}")


def _calibrated(
    score: Callable[[Tensor], Tensor], pictures: Tensor, facts: Mapping[str, object]
) -> np.ndarray:
    chosen = DEFAULTS | dict(facts)
    offset = chosen["rca_logit_offset"] * torch.tensor(IS_RCA, dtype=torch.float64)
    views = _draw_views(pictures, chosen["views"])
    logits = [score(view).double().cpu() / chosen["temperature"] + offset for view in views]
    return torch.stack([x.softmax(1) for x in logits]).mean(0).numpy()


def _draw_views(pictures: Tensor, count: int) -> list[Tensor]:
    """The pictures, and for a count of three also enlarged (float32)."""
    if count == 1:
        return [pictures]
    sides = [round(pictures.shape[-1] * share) for share in LARGER]
    grey = pictures.float()
    larger = [nn.functional.interpolate(grey, (n, n), mode="bicubic") for n in sides]
    return [pictures, *(x.clamp(0, 255) for x in larger)]
