"""A trained network on disk and its probabilities, calibrated as its `model.json` says."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
DEFAULTS = {"temperature": 1.0, "rca_logit_offset": 0.0}
CPU_BATCH = 8  # pictures whose layers stay in a core's cache; a choice
IS_RCA = tuple(float(LATERALITY[name] == "RCA") for name in SIX_CLASSES)


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
    softmax. On a CPU workers of one thread each answer all batches before the first is yielded.

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
    chosen = DEFAULTS | dict(facts or {})
    offset = chosen["rca_logit_offset"] * torch.tensor(IS_RCA, dtype=torch.float64)

    @torch.inference_mode()
    def answer(batch: Tensor) -> np.ndarray:
        with autocast(device):
            logits = model(prepare(batch.to(device), name))
        return (logits.double().cpu() / chosen["temperature"] + offset).softmax(1).numpy()

    if device.type == "cpu":
        with _one_thread_each() as pool:
            answers = list(pool.map(answer, pictures.split(min(batch_size, CPU_BATCH))))
        yield from answers
    else:
        yield from map(answer, pictures.split(batch_size))


@contextmanager
def _one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """As many workers as torch has threads, each with one: none waits for others layer by layer."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that begin from here on take this over
    try:
        with ThreadPoolExecutor(n_threads) as pool:
            yield pool
    finally:
        torch.set_num_threads(n_threads)


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
            or holds a bad `temperature` or `rca_logit_offset`; or the weights are broken or another
            network's.
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
    for layer in model.modules():
        if isinstance(layer, nn.Hardswish):
            layer.inplace = True  # spares a CPU thousands of new memory pages a batch
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
