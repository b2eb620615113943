"""Where a key-frame network looks: Grad-CAM and occlusion maps, and a check of them."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from cag_utils.keyframes.labels import SIX_CLASSES
from cag_utils.keyframes.network import build_model, load_model, pick_device, prepare, read_pictures

WINDOW_SHARE, STRIDE_SHARE = 1 / 5, 1 / 10  # of the picture's side, for occlusion; choice


def grad_cam(
    model: nn.Module, name: str, pictures: Tensor, classes: Sequence[int], upsample: bool = True
) -> np.ndarray:
    """Map what speaks for a class, from the last but one stage of a ConvNeXt.

    The last stage has 4 x 4 to 7 x 7 cells, too coarse to tell a catheter from a vessel.

    Args:
        model: In evaluation mode, a timm ConvNeXt (it has `stages`).
        pictures: (n, 1, px, px) uint8, on the model's device.
        classes: (n,) which of the six classes to explain, picture by picture.
        upsample: Enlarge to the picture's size; else the stage's own cells.

    Returns:
        (n, px, px) or (n, cells, cells) float32, 0 or more.

    Source:
        Selvaraju et al., ICCV 2017; Kokhlikyan et al., Captum, 2020.
    """
    captum, target = _captum(), torch.as_tensor(list(classes), device=pictures.device)
    method = captum.LayerGradCam(model, model.stages[-2])
    maps = method.attribute(prepare(pictures, name), target, relu_attributions=True)
    if upsample:
        maps = captum.LayerAttribution.interpolate(maps, pictures.shape[-2:], "bilinear")
    return maps.detach()[:, 0].cpu().float().numpy()


def occlude(model: nn.Module, name: str, pictures: Tensor, classes: Sequence[int]) -> np.ndarray:
    """Map by how much a class's logit falls when a square is painted over with the mean grey.

    The square is painted before the picture is standardised, as a real thing would be. Takes what
    `grad_cam` takes.

    Returns:
        (n, px, px) float32: mean fall of the logit over the squares that cover a pixel; below 0
        where covering *helps* the class.

    Source:
        Zeiler and Fergus, ECCV 2014.
    """
    grey = pictures.float()
    side = grey.shape[-1]
    window, stride = max(1, round(side * WINDOW_SHARE)), max(1, round(side * STRIDE_SHARE))
    method = _captum().Occlusion(lambda x: model(prepare(x, name)))
    with torch.no_grad():
        maps = method.attribute(
            grey,
            sliding_window_shapes=(1, window, window),
            strides=(1, stride, stride),
            baselines=grey.mean((2, 3), keepdim=True).expand_as(grey),
            target=torch.as_tensor(list(classes), device=pictures.device),
            perturbations_per_eval=8,
        )
    return maps[:, 0].cpu().float().numpy()


def compare_random(
    model: nn.Module, name: str, pictures: Tensor, classes: Sequence[int], seed: int
) -> np.ndarray:
    """Compare Grad-CAM maps with those of the same network with random weights, drawn by a seed.

    A map that hardly changes shows edges of the picture, not what the network learnt.

    Returns:
        (n,) Spearman's rank correlation over the stage's cells, -1 to 1; NaN where a map is flat.

    Source:
        Adebayo et al., Sanity checks for saliency maps, NeurIPS 2018.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        untrained = build_model(name, pretrained=False).to(pictures.device).eval()
    pair = [grad_cam(m, name, pictures, classes, upsample=False) for m in (model, untrained)]
    flat = [[np.ptp(x) == 0 for x in maps] for maps in pair]
    return np.array([
        np.nan if a or b else spearmanr(x.ravel(), y.ravel()).statistic
        for x, y, a, b in zip(*pair, *flat, strict=True)
    ])  # fmt: skip


def explain(
    model_dir: Path, paths: Sequence[Path], answers: Sequence[str], seed: int
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Map what speaks for a network's answers on some stills.

    Args:
        answers: (n,) the class to explain, still by still.

    Returns:
        The stills as the network sees them, (n, px, px) uint8; its maps by name, (n, px, px); and
        what `compare_random` finds, (n,).
    """
    device = pick_device()
    model, facts = load_model(model_dir, device)
    pictures = read_pictures(paths, facts["image_px"])
    classes = [SIX_CLASSES.index(answer) for answer in answers]
    asked = (model, facts["model"], pictures.to(device), classes)
    maps = {"Grad-CAM": grad_cam(*asked), "occlusion": occlude(*asked)}
    return pictures[:, 0].numpy(), maps, compare_random(*asked, seed)


def _captum() -> ModuleType:
    """Captum's methods, imported late: that takes a second, and tqdm warns of a missing widget."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        from captum import attr
    return attr
