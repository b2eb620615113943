"""The key-frame network: a registry, what it sees, where it runs, and its calibrated answers."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cag_utils.cines.stills import fit_picture, read_still
from cag_utils.keyframes.labels import LATERALITY, SIX_CLASSES
from cag_utils.params import did_you_mean
from cag_utils.shipped import WEIGHTS, check_phantom
from cag_utils.study import read_json, write_json


@dataclass(frozen=True)
class Network:
    """One entry of the registry: a timm model, what to change in it, and what it sees."""

    timm_name: str
    overrides: Mapping[str, object] = field(default_factory=dict)  # of `timm.create_model`
    high_pass: bool = False  # sees grey and its high-pass instead of grey as RGB, see `prepare`
    weights: Path | None = None  # folder of shipped weights, six-way head and all, if not timm's


# From scratch in minutes: LayerScale at 1e-6 would keep a short training from starting, and the
# high-pass channel lifts thin vessels out of the background (three-class F1 .41 to .70 in a spike).
TWIN = dict(
    depths=(1, 1, 3, 1), dims=(32, 64, 128, 256), in_chans=2, ls_init_value=None,
    conv_mlp=True,  # the same function as linear layers, a third faster on a CPU
    act_layer="hard_swish",  # much like a steeper GELU, at a sixth of its time on a CPU
    drop_path_rate=0.05,
)  # fmt: skip
PREDICTOR_WEIGHTS = WEIGHTS / "keyframe_cnn"
NETWORKS = {"convnext_twin": Network("convnext_atto", TWIN, True, PREDICTOR_WEIGHTS)}


def network(name: str) -> Network:
    """Return the registry's entry, or a plain entry for any model that timm knows.

    Raises:
        ValueError: Neither the registry nor timm knows the name.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    if not timm.is_model(name):
        known = [*NETWORKS, *timm.list_models("convnext*", pretrained=True)]
        raise ValueError(f"unknown cnn.model {name!r}{did_you_mean(name, known)}")
    return Network(name)


def build_model(name: str, pretrained: bool) -> nn.Module:
    """Build a network with a six-way head in place of its own.

    Args:
        name: `convnext_twin`, or a timm name such as `convnext_base.fb_in22k_ft_in1k`.
        pretrained: Start from published weights: timm's, downloaded on first use, under a fresh
            head; for the twin the shipped ones of `making.cnn`, whose head is trained too.

    Returns:
        The model in training mode, channels last.

    Raises:
        ValueError: The name is unknown.
        RuntimeError: The shipped weights are of another phantom, see `check_phantom`.

    Source:
        CAG-VLM section 3.2: ConvNeXt-Base, its 1,000-way head replaced by a six-way one.
    """
    entry = network(name)
    model = timm.create_model(
        entry.timm_name,
        pretrained=pretrained and entry.weights is None,
        num_classes=len(SIX_CLASSES),
        **entry.overrides,
    )
    if pretrained and entry.weights is not None:
        weights = load_file(check_phantom(entry.weights) / "best.safetensors")
        model.load_state_dict({k: v.float() for k, v in weights.items()})
    return model.to(memory_format=torch.channels_last)


def read_pictures(paths: Sequence[Path], image_px: int) -> Tensor:
    """Read stills by `stills.read_still` and squash them, (n, 1, image_px, image_px) uint8.

    Raises:
        Unreadable: A file is missing or is no picture.
    """
    squares = [fit_picture(read_still(path), image_px) for path in paths]
    return torch.from_numpy(np.stack(squares)[:, None])


@dataclass(frozen=True)
class FrameSet:
    """Pictures, (n, 1, px, px) uint8, and their classes, (n,) int64 indices into SIX_CLASSES."""

    pictures: Tensor
    targets: Tensor


def read_frame_set(frames: pd.DataFrame, folder: Path, image_px: int) -> FrameSet:
    """Read a table's stills, `png` below a run folder of notebook 00, with `label`, into memory.

    A byte a pixel: 6,597 squares of 224 px take 0.33 GB.

    Raises:
        ValueError: No rows, an unknown label, or a still that cannot be read.
    """
    if frames.empty:
        raise ValueError("no frames in this split; label more videos or change the shares")
    if unknown := sorted(set(frames["label"]) - set(SIX_CLASSES)):
        raise ValueError(f"unknown labels {unknown}; they must be among {SIX_CLASSES}")
    pictures = read_pictures([folder / p for p in frames["png"]], image_px)
    targets = torch.tensor([SIX_CLASSES.index(label) for label in frames["label"]])
    return FrameSet(pictures, targets)


def prepare(pictures: Tensor, name: str) -> Tensor:
    """Turn grey levels into what a network sees.

    Args:
        pictures: (n, 1, px, px) uint8, or floats in [0, 255].
        name: The network; decides between the two forms.

    Returns:
        float32, channels last. (n, 2, px, px): the standardised picture, and the picture minus its
        Gaussian blur (sigma px / 32, in 8 grey levels). Or (n, 3, px, px): three equal channels
        with timm's mean and deviation.
    """
    grey = pictures.float()
    entry = network(name)
    if entry.high_pass:
        centred = grey - grey.mean((2, 3), keepdim=True)
        variance = centred.square().sum((2, 3), keepdim=True) / (grey[0].numel() - 1)
        deviation = variance.sqrt() + 4  # 4: an empty frame is all noise otherwise
        fine = (grey - _blur(grey)) / 8
        out = torch.cat([centred / deviation, fine], 1)
    else:
        config = timm.get_pretrained_cfg(entry.timm_name)
        mean, std = (torch.tensor(v, device=grey.device) for v in (config.mean, config.std))
        out = (grey.expand(-1, 3, -1, -1) / 255 - mean[:, None, None]) / std[:, None, None]
    return out.contiguous(memory_format=torch.channels_last)


def _blur(grey: Tensor) -> Tensor:
    """Gaussian blur as two matrix products, ten times faster on a CPU than a one-channel conv."""
    rows, columns = (_blur_matrix(n, grey.shape[-1] / 32).to(grey) for n in grey.shape[-2:])
    return rows @ grey @ columns.T


@functools.cache
def _blur_matrix(n_px: int, sigma_px: float) -> Tensor:
    """(n, n) matrix of a 1-D Gaussian, cut at two sigma, mirrored at the border pixel."""
    reach = max(1, int(2 * sigma_px))
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offsets / sigma_px) ** 2)
    sources = np.pad(np.arange(n_px), reach, mode="reflect")
    matrix = np.zeros((n_px, n_px))
    for offset, weight in zip(offsets, kernel / kernel.sum(), strict=True):
        np.add.at(matrix, (np.arange(n_px), sources[np.arange(n_px) + reach + offset]), weight)
    return torch.from_numpy(matrix)


def pick_device(name: str = "auto") -> torch.device:
    """Return a device by its name (cpu, cuda, cuda:1); `auto`: the GPU if there is one, else CPU.

    Raises:
        ValueError: There is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # of a build without CUDA
        told = f"no device {name!r} here: {str(error).splitlines()[0]}"
        raise ValueError(f"{told}; use auto, cpu, or a GPU that is there") from error
    return torch.device(name)


def autocast(device: torch.device) -> torch.autocast:
    """Compute in bfloat16 on a GPU and in float32 on every CPU, so that CPUs agree."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


# Optional keys of model.json. RCA offset: in logits, after the temperature.
DEFAULTS = {"temperature": 1.0, "rca_logit_offset": 0.0}
CALIBRATION = {"temperature": "a number above 0", "rca_logit_offset": "a finite number"}
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
    softmax. On a CPU workers of one thread each, so that none waits for others layer by layer,
    answer all batches before the first is yielded.

    Args:
        model: On `device`, in evaluation mode.
        pictures: (n, 1, px, px) uint8.
        batch_size: Pictures at a time; on a CPU at most `CPU_BATCH`.
        facts: Content of `model.json`, for its optional keys; None for their `DEFAULTS`.

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

    if device.type != "cpu":
        yield from map(answer, pictures.split(batch_size))
        return
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that begin from here on take this over
    try:
        with ThreadPoolExecutor(n_threads) as pool:
            answers = list(pool.map(answer, pictures.split(min(batch_size, CPU_BATCH))))
    finally:
        torch.set_num_threads(n_threads)
    yield from answers


def save_model(model: nn.Module, folder: Path, facts: Mapping[str, object]) -> None:
    """Write `best.safetensors` and `model.json` (at least `model` and `image_px`)."""
    weights = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    save_file(weights, folder / "best.safetensors")
    write_json(folder / "model.json", {**facts, "classes": list(SIX_CLASSES)})


def load_model(folder: Path, device: torch.device) -> tuple[nn.Module, dict]:
    """Load a trained network in evaluation mode.

    Args:
        folder: Holds `best.safetensors` (float32 or float16) and `model.json`, of notebook 01.

    Returns:
        The model, in float32, and the content of `model.json`.

    Raises:
        FileNotFoundError: One of the files is missing.
        ValueError: One of them is broken, or of a network with other classes or layers.
    """
    folder = check_phantom(folder)
    settings, file = folder / "model.json", folder / "best.safetensors"
    for path in (settings, file):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; run notebooks/01_train_cnn first")
    facts = _read_facts(settings)
    model = build_model(facts["model"], pretrained=False)
    try:
        model.load_state_dict({k: v.float() for k, v in load_file(file).items()})
    except (SafetensorError, RuntimeError) as error:
        text = f"{file} does not hold the weights of {facts['model']}: broken, or another network's"
        raise ValueError(text) from error
    for layer in model.modules():
        if isinstance(layer, nn.Hardswish):
            layer.inplace = True  # spares a CPU thousands of new memory pages a batch
    return model.to(device, memory_format=torch.channels_last).eval(), facts


def _read_facts(settings: Path) -> dict:
    """A network's `model.json`; ValueError if it is broken or of another study."""
    try:
        facts = read_json(settings)
    except ValueError as error:
        raise ValueError(f"{settings} is not JSON: {error}") from error
    if (found := facts.get("classes")) != list(SIX_CLASSES):
        raise ValueError(f"{settings.parent} predicts {found}, the study needs {SIX_CLASSES}")
    if missing := {"model", "image_px"} - set(facts):
        raise ValueError(f"{settings} lacks {sorted(missing)}; notebook 01 writes all")
    for name, rule in CALIBRATION.items():
        value = facts.get(name, DEFAULTS[name])
        fits = type(value) in (int, float) and np.isfinite(value)
        if not fits or (name == "temperature" and value <= 0):
            raise ValueError(f"{settings}: {name} must be {rule}, got {value!r}")
    return facts
