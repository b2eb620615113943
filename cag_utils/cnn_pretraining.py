"""Pretrain the key-frame twin on other phantom patients, and finish the network that is shipped.

A network is shown facts, then the six classes of the same strangers. It is shipped as
`weights/keyframe_cnn/`: the network of `python -m cag_utils.keyframes predict`, from which notebook
01 starts as the paper started from ImageNet. Notebook A2 makes it.
"""

import copy
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize
from sklearn.metrics import f1_score
from torch import Tensor, nn

from cag_utils import checkpoints
from cag_utils.checkpoints import save_model
from cag_utils.fitting import COARSE_SHARE, fit
from cag_utils.labels import SIX_CLASSES, f1_scores
from cag_utils.networks import build_model, pick_device, prepare
from cag_utils.phantom.labels import OTHER_OPACIFIED
from cag_utils.randomise import randomise
from cag_utils.scenes import ANGLE_SCALE_DEG, TARGETS, Scenes
from cag_utils.tree_maps import Drawing, map_loss

NETWORK = "convnext_twin"
HELD_OUT_SHARE = 0.1
IS_RCA = torch.tensor(checkpoints.IS_RCA, dtype=torch.bool)
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
    return _fit_drawing(model, scenes, scenes.targets, scene_loss, epochs, rate, checkpoint)


def _fit_drawing(
    model, scenes: Scenes, answers: Tensor, loss, epochs: int, rate: float, checkpoint, **how
) -> nn.Module:
    """Train a network on answers while it also draws the tree; return it without that head."""
    count = answers.shape[1]
    wanted = torch.cat([answers, scenes.maps.flatten(1)], 1)
    n_outputs = model.num_classes

    def whole_loss(outputs: Tensor, wanted: Tensor, plain: Tensor) -> Tensor:
        drawn = map_loss(outputs[:, n_outputs:], wanted[:, count:], plain)
        return loss(outputs[:, :n_outputs], wanted[:, :count], plain) + MAP_WEIGHT * drawn

    drawing = Drawing(model).to(pick_device(), memory_format=torch.channels_last)
    data = scenes.pictures, wanted
    how |= {"randomised": RANDOMISED, "checkpoint": checkpoint}
    return fit(drawing, *data, whole_loss, epochs, rate, **how).network


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
    data = model, scenes, answers, loss, epochs, rate, checkpoint
    model = _fit_drawing(*data, coarse_share=coarse_share)
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
