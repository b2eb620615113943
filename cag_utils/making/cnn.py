"""Pretrain the key-frame twin on other phantom patients, and finish the network that is shipped.

A network is shown facts, then the six classes of the same strangers. It is shipped as
`weights/keyframe_cnn/`: the network of `python -m cag_utils.keyframes predict`, from which notebook
01 starts as the paper started from ImageNet. Notebook A2 makes it.
"""

import copy
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize
from sklearn.metrics import f1_score
from torch import Tensor, nn

from cag_utils.cines.stills import fit_picture
from cag_utils.keyframes.labels import LATERALITY, SIX_CLASSES, f1_scores
from cag_utils.keyframes.network import autocast, build_model, pick_device, prepare, save_model
from cag_utils.keyframes.training import fit
from cag_utils.making.scenes import ANGLE_SCALE_DEG, TARGETS, Drawing, Scenes, map_loss
from cag_utils.phantom.labels import OTHER_OPACIFIED

NETWORK = "convnext_twin"
HELD_OUT_SHARE = 0.1
AVERAGE = 0.998  # decay of the moving average of the weights, which is what is kept
COARSE_SHARE, COARSE_PX = 0.5, 112  # of the epochs, on smaller pictures: a quarter of the time
BATCH = 64  # pictures a step
IS_RCA = torch.tensor([LATERALITY[name] == "RCA" for name in SIX_CLASSES])
ALWAYS = [TARGETS.index(name) for name in TARGETS[1:6]]  # angles, view, opacified, contrast
WITH_CONTRAST = [TARGETS.index(name) for name in ("blur_mm", "foreshortening", "overlap")]
RANDOMISED = 0.33  # share of the frames that are randomised; choice
MAP_WEIGHT = 8.0  # of the drawn tree in the loss; choice


def split_scenes(scenes: Scenes) -> tuple[Scenes, Scenes]:
    """Return (training, held out): the last tenth of the patients is held out."""
    last = int(scenes.patients.max()) + 1
    held_out = scenes.patients >= math.floor(last * (1 - HELD_OUT_SHARE))
    return scenes.pick(~held_out), scenes.pick(held_out)


def scene_loss(outputs: Tensor, targets: Tensor, plain: Tensor) -> Tensor:
    """Return cross-entropy of the side plus smooth L1 of the measures.

    A randomised picture is cut, shrunk and covered: of the facts only its side stays true, so only
    that counts. How vessels lie and move cannot be seen in frames without contrast, which therefore
    have no part in the loss of blur, foreshortening and overlap.

    Args:
        outputs: (n, 9), the first a logit.
        targets: (n, 9), columns `TARGETS`.
        plain: (n,) bool, pictures that are as they were drawn.
    """
    side = nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], targets[:, 0])
    away = nn.functional.smooth_l1_loss(outputs, targets, beta=0.1, reduction="none")
    seen = plain * (targets[:, TARGETS.index("opacified")] >= OTHER_OPACIFIED)
    vessels = (away[:, WITH_CONTRAST].mean(1) * seen).sum() / seen.sum().clamp(min=1)
    always = away[:, ALWAYS].mean(1) * plain
    return side + 4 * (always.mean() + plain.float().mean() * vessels)


def class_loss(outputs: Tensor, labels: Tensor, plain: Tensor, smoothing: float = 0.05) -> Tensor:
    """Return cross-entropy of the six classes, and of the side alone where randomised.

    Cropped, a key frame is none any more; a network told otherwise calls half a tree better.

    Args:
        outputs: (n, 6) logits.
        labels: (n,) int64.
        plain: (n,) bool, pictures that are as they were drawn.
        smoothing: Of the six classes' labels.
    """
    six = {"label_smoothing": smoothing, "reduction": "none"}
    whole = nn.functional.cross_entropy(outputs, labels, **six)
    sides = outputs.log_softmax(1).view(-1, 2, 3).logsumexp(2)
    side = nn.functional.nll_loss(sides, labels // 3, reduction="none")
    return torch.where(plain, whole, side).mean()


def pretrain(
    scenes: Scenes, epochs: int, seed: int, rate: float = 2e-3, checkpoint: Path | None = None
) -> nn.Module:
    """Train the twin to read facts off single frames; no label is shown.

    Besides, it draws where the tree lies, with a head that is thrown away. A third of the frames
    are randomised.

    Args:
        scenes: Training frames.
        epochs: Passes over them.
        seed: Initial weights, order, randomisation.
        rate: Peak learning rate.
        checkpoint: See `fit`.
    """
    torch.manual_seed(seed)
    model = build_model(NETWORK, pretrained=False)
    model.reset_classifier(len(TARGETS))
    data = model, scenes, scenes.targets, scene_loss, epochs, rate, checkpoint
    return _fit_drawing(*data, COARSE_SHARE)


def _fit_drawing(
    model, scenes: Scenes, answers: Tensor, loss, epochs, rate, checkpoint, coarse_share
) -> nn.Module:
    """Train a network on answers while it also draws the tree; return it without that head."""
    count = answers.shape[1]
    wanted = torch.cat([answers, scenes.maps.flatten(1)], 1)
    n_outputs = model.num_classes

    def whole_loss(outputs: Tensor, wanted: Tensor, plain: Tensor) -> Tensor:
        drawn = map_loss(outputs[:, n_outputs:], wanted[:, count:], plain)
        return loss(outputs[:, :n_outputs], wanted[:, :count], plain) + MAP_WEIGHT * drawn

    drawing = Drawing(model).to(pick_device(), memory_format=torch.channels_last)
    data = drawing, scenes, wanted, whole_loss, epochs, rate, checkpoint, coarse_share
    return _fit_pictures(*data).network


def _fit_pictures(
    model: nn.Module,
    scenes: Scenes,
    wanted: Tensor,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    epochs: int,
    rate: float,
    checkpoint: Path | None,
    coarse_share: float,
) -> nn.Module:
    """Train with AdamW, the first epochs on smaller pictures; the average is returned."""
    device, steps = next(model.parameters()).device, math.ceil(len(scenes.pictures) / BATCH)
    n_coarse = math.ceil(coarse_share * epochs) if epochs > 1 else 0
    shrunk = functools.cache(lambda: _shrink(scenes.pictures, COARSE_PX))

    def batches(epoch: int):
        source = shrunk() if epoch < n_coarse else scenes.pictures
        for index in torch.randperm(len(source)).split(BATCH):
            yield len(index), (*_look(source[index], RANDOMISED), wanted[index])

    def cost(seen: Tensor, plain: Tensor, answers: Tensor) -> dict[str, Tensor]:
        with autocast(device):
            outputs = model(prepare(seen.to(device), NETWORK))
        return {"loss": loss(outputs.float(), answers.to(device), plain.to(device))}

    return fit(
        model,
        batches,
        cost,
        [torch.optim.AdamW(model.parameters(), rate, weight_decay=0.05)],
        steps,
        epochs,
        warmup=min(300, steps * epochs // 10),
        average=AVERAGE,
        checkpoint=checkpoint,
        name="epochs",
    ).model


def _look(pictures: Tensor, randomised: float) -> tuple[Tensor, Tensor]:
    """Pictures of which that share is randomised, float32; and which are not."""
    seen, changed = pictures.float(), torch.rand(len(pictures)) < randomised
    if changed.any():
        seen[changed] = randomise(pictures[changed])
    return seen, ~changed


def _shrink(pictures: Tensor, px: int) -> Tensor:
    """Pictures of at most `px` a side."""
    if pictures.shape[-1] <= px:
        return pictures
    small = np.stack([fit_picture(grey, px) for grey in pictures[:, 0].numpy()])
    return torch.from_numpy(small)[:, None]


def teach_classes(
    trunk: nn.Module,
    scenes: Scenes,
    epochs: int,
    seed: int,
    rate: float = 6e-4,
    checkpoint: Path | None = None,
) -> nn.Module:
    """Give a pretrained trunk a six-way head, or let it keep its own, and teach it the label rule.

    The facts stay asked beside the classes, by a head that is thrown away: how much of a tree is
    seen says more than on which side of the rule's limit that lies; so does where the tree lies. A
    third of the frames are randomised. A network that knows classes already sees all pictures in
    full size.

    Args:
        trunk: From `pretrain`, or a network that has learnt classes before; not changed.
        scenes: Training frames.
        epochs: Passes over the frames.
        seed: Head, order, randomisation.
        rate: Peak learning rate.
        checkpoint: See `fit`.
    """
    torch.manual_seed(seed)
    model, count = copy.deepcopy(trunk), len(SIX_CLASSES)
    goes_on = model.num_classes == count
    model.reset_classifier(count + len(TARGETS))
    if goes_on:
        with torch.no_grad():
            model.head.fc.weight[:count] = trunk.head.fc.weight
            model.head.fc.bias[:count] = trunk.head.fc.bias
    answers = torch.cat([scenes.labels[:, None].float(), scenes.targets], dim=1)

    def loss(outputs: Tensor, wanted: Tensor, plain: Tensor) -> Tensor:
        classes = class_loss(outputs[:, :count], wanted[:, 0].long(), plain)
        return classes + scene_loss(outputs[:, count:], wanted[:, 1:], plain)

    coarse_share = 0.0 if goes_on else COARSE_SHARE
    model = _fit_drawing(model, scenes, answers, loss, epochs, rate, checkpoint, coarse_share)
    weight, bias = model.head.fc.weight.detach(), model.head.fc.bias.detach()
    model.reset_classifier(count)
    with torch.no_grad():
        model.head.fc.weight.copy_(weight[:count])
        model.head.fc.bias.copy_(bias[:count])
    return model.eval()


@torch.inference_mode()
def _outputs(model: nn.Module, pictures: Tensor) -> Tensor:
    device = next(model.parameters()).device
    batches = pictures.split(128)
    return torch.cat([model(prepare(b.to(device), NETWORK)).float().cpu() for b in batches])


def assess(model: nn.Module, scenes: Scenes) -> dict[str, float]:
    """Return the share of sides right and the mean absolute error of every measure.

    Angles in degrees; blur, foreshortening and overlap over frames with contrast alone.
    """
    out = _outputs(model.eval(), scenes.pictures)
    right = ((out[:, 0] > 0) == (scenes.targets[:, 0] > 0.5)).float().mean()
    errors = (out - scenes.targets).abs()
    seen = scenes.targets[:, TARGETS.index("opacified")] >= OTHER_OPACIFIED
    report = {"held_out_side_accuracy": round(right.item(), 4)}
    for column, name in enumerate(TARGETS[1:], start=1):
        rows = errors[seen, column] if column in WITH_CONTRAST else errors[:, column]
        unit = ANGLE_SCALE_DEG if name.endswith("_angle") else 1.0
        report[f"held_out_error_{name}"] = round(unit * rows.mean().item(), 4)
    return report


def calibrate(model: nn.Module, scenes: Scenes, seed: int) -> dict[str, float]:
    """Fit a temperature and an offset of the right side on held-out phantoms alone.

    Each frame is seen as drawn, with its class, and randomised as in training, with its side; so
    the threshold between the sides stands where unfamiliar pictures leave it, too.

    Args:
        model: From `teach_classes`.
        scenes: Held-out frames.
        seed: Of the randomisation.

    Returns:
        temperature (> 0), rca_logit_offset, and before any of it the held-out F1s of frames as
        drawn (`labels.f1_scores`) and of the sides of randomised ones (macro average).
    """
    generator = torch.Generator().manual_seed(seed)
    changed = torch.cat([randomise(b, generator) for b in scenes.pictures.split(256)])
    scores = torch.cat([_outputs(model, scenes.pictures), _outputs(model, changed)])
    labels, plain = scenes.labels.repeat(2), torch.arange(len(scores)) < len(changed)

    def cost(free: np.ndarray) -> float:
        moved = scores * math.exp(-free[0]) + free[1] * IS_RCA
        return float(class_loss(moved, labels, plain, smoothing=0.0))

    best = minimize(cost, np.zeros(2), method="Nelder-Mead").x
    share = pd.DataFrame(scores.softmax(1).numpy(), columns=list(SIX_CLASSES))
    truth = [SIX_CLASSES[i] for i in scenes.labels]
    found = f1_scores(truth, share[plain.numpy()])
    side = share[~plain.numpy()].to_numpy()[:, IS_RCA].sum(1) > 0.5
    found["randomised_laterality_f1"] = f1_score(IS_RCA[scenes.labels], side, average="macro")
    return {
        "temperature": round(math.exp(best[0]), 4),
        "rca_logit_offset": round(float(best[1]), 4),
    } | {f"held_out_{name}": round(float(value), 4) for name, value in found.items()}


def save_predictor(model: nn.Module, folder: Path, facts: Mapping[str, object]) -> Path:
    """Write the six-class network, in 16 bit, as `checkpoints.load_model` reads it.

    Args:
        model: From `teach_classes`.
        folder: Gets `best.safetensors` and `model.json`; made if missing.
        facts: JSON-ready; at least `image_px`, `temperature`, `rca_logit_offset`.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_model(copy.deepcopy(model).half(), folder, {**facts, "model": NETWORK})
    return folder


# All ranges: choice, wider than what public angiograms show.
ZOOM, ASPECT, SHIFT = (0.72, 1.30), 0.08, 0.12  # factor, log spread, share of the side
TURN_DEG = 9.0
GAMMA, CONTRAST, BRIGHTNESS = 0.35, 0.30, 18.0  # log spread, log spread, grey levels
NOISE_GREY = 9.0
MARKS = 6  # strokes of a burnt-in text


def randomise(pictures: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Change every picture of a batch on its own.

    Crop or shrink, turn and shift; shading; display curve; blur or sharpening; noise; collimator;
    burnt-in text and an occluding patch in some.

    Args:
        pictures: (n, 1, px, px) uint8.
        generator: Torch's global one if None.

    Returns:
        (n, 1, px, px) float32 in [0, 255].
    """
    draw = _Draw(len(pictures), generator)
    grey = _warp(pictures.float(), draw)
    grey = _shade(grey, draw)
    grey = _focus(grey, draw)
    grey = grey + _noise(grey, draw)
    grey = _collimate(grey, draw)
    grey = _overlay(grey, draw)
    return grey.clamp(0, 255)


class _Draw:
    """Random numbers, one column a picture, shaped to broadcast over (n, 1, px, px)."""

    def __init__(self, count: int, generator: torch.Generator | None):
        self.count, self.generator = count, generator

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        u = torch.rand(self.count, *(shape or (1, 1, 1)), generator=self.generator)
        return low + (high - low) * u

    def normal(self, spread: float, *shape: int) -> Tensor:
        return spread * torch.randn(self.count, *(shape or (1, 1, 1)), generator=self.generator)

    def chance(self, share: float) -> Tensor:
        """(n, 1, 1, 1) ones in that share of the pictures, else zeros."""
        return (self.uniform(0, 1) < share).float()


def _warp(grey: Tensor, draw: _Draw) -> Tensor:
    """Zoom, stretch, turn and shift; what comes in from outside is black or the border's grey."""
    zoom = draw.uniform(math.log(ZOOM[0]), math.log(ZOOM[1]), 1).exp()
    stretch = draw.normal(ASPECT, 1).exp()
    angle = draw.normal(math.radians(TURN_DEG), 1)
    across, down = zoom * stretch, zoom / stretch
    move = 2 * draw.uniform(-SHIFT, SHIFT, 2)
    rows = [
        torch.cat([across * angle.cos(), -down * angle.sin(), move[:, :1]], 1),
        torch.cat([across * angle.sin(), down * angle.cos(), move[:, 1:]], 1),
    ]
    grid = nn.functional.affine_grid(torch.stack(rows, 1), list(grey.shape), align_corners=False)
    inside = nn.functional.grid_sample(grey, grid, padding_mode="border", align_corners=False)
    seen = (grid.abs().amax(-1) <= 1).float()[:, None]
    return inside * (1 - draw.chance(0.4) * (1 - seen))


def _shade(grey: Tensor, draw: _Draw) -> Tensor:
    """A smooth field of brightness, then another display curve, contrast and level."""
    field = nn.functional.interpolate(
        draw.normal(14.0, 1, 4, 4), size=grey.shape[-2:], mode="bicubic", align_corners=False
    )
    grey = (grey + draw.chance(0.5) * field).clamp(0, 255)
    grey = 255 * (grey / 255).clamp(min=1e-4) ** draw.normal(GAMMA).exp()
    mean = grey.mean((2, 3), keepdim=True)
    return mean + (grey - mean) * draw.normal(CONTRAST).exp() + draw.normal(BRIGHTNESS)


def _focus(grey: Tensor, draw: _Draw) -> Tensor:
    """Blur some pictures, sharpen others."""
    soft = grey
    for _ in range(2):
        soft = nn.functional.avg_pool2d(nn.functional.pad(soft, (1, 1, 1, 1), "replicate"), 3, 1)
    return grey + draw.uniform(-0.9, 1.3) * draw.chance(0.6) * (grey - soft)


def _noise(grey: Tensor, draw: _Draw) -> Tensor:
    """Fine or coarse grain."""
    height, width = grey.shape[-2:]
    fine = draw.normal(1.0, 1, height, width)
    coarse = draw.normal(1.5, 1, height // 2, width // 2)
    coarse = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    share = draw.uniform(0, 1)
    return draw.chance(0.6) * draw.uniform(0, NOISE_GREY) * (share * fine + (1 - share) * coarse)


def _collimate(grey: Tensor, draw: _Draw) -> Tensor:
    """Shut the picture from some sides, dark or grey."""
    size = grey.shape[-1]
    at = (torch.arange(size) + 0.5) / size
    edges = draw.uniform(0, 0.12, 4) * (draw.uniform(0, 1, 4) < 0.5)
    open_ = [
        torch.sigmoid((position - edges[:, i : i + 1]) * size)
        for i, position in enumerate((at, 1 - at, at, 1 - at))
    ]
    light = (open_[2] * open_[3])[:, None, :, None] * (open_[0] * open_[1])[:, None, None, :]
    shut = draw.chance(0.25)
    return grey * (1 - shut) + shut * (grey * light + draw.uniform(0, 70) * (1 - light))


def _overlay(grey: Tensor, draw: _Draw) -> Tensor:
    """Burnt-in strokes near a border, and a flat patch somewhere, in some pictures."""
    grey, size = grey.clone(), grey.shape[-1]
    written, patched = draw.uniform(0, 1, 1)[:, 0] < 0.15, draw.uniform(0, 1, 1)[:, 0] < 0.15
    # per picture: line, first stroke, light, then a length and a height for each stroke
    strokes = draw.uniform(0, 1, 3 + 2 * MARKS)
    patches = draw.uniform(0, 1, 5)
    for i in written.nonzero()[:, 0].tolist():
        line, start, light, *sizes = strokes[i].tolist()
        top = int(size * (0.2 * line if line < 0.5 else 0.8 + 0.2 * line - 0.02))
        for k in range(MARKS):
            left = int(size * (0.7 * start + 0.06 * k))
            wide, high = (
                1 + int(0.045 * size * sizes[2 * k]),
                1 + int(0.03 * size * sizes[2 * k + 1]),
            )
            grey[i, 0, top : top + high, left : left + wide] = 150 + 105 * light
    for i in patched.nonzero()[:, 0].tolist():
        top, left, high, wide, light = patches[i].tolist()
        top, left = int(0.85 * size * top), int(0.85 * size * left)
        high, wide = (int(size * (0.05 + 0.17 * extent)) for extent in (high, wide))
        grey[i, 0, top : top + high, left : left + wide] = 255 * light
    return grey
