"""Pretrain the key-frame twin on other phantom patients, as ImageNet pretrained the real network.

The result is shipped in `cag_utils/weights/convnext_twin/`; notebook A4 makes it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from joblib import Parallel, delayed
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms import v2
from tqdm import tqdm

from cag_utils.networks import autocast, build_model, pick_device, prepare
from cag_utils.phantom.exam import KIND_SHARES, LESION_SHARES
from cag_utils.phantom.render import film
from cag_utils.phantom.shot import KINDS, draw_shot
from cag_utils.phantom.subject import diseased_tree, draw_subject
from cag_utils.segments import LATERALITIES
from cag_utils.study import write_json
from cag_utils.training import augment, rate_factor

STREAM = 5  # cohorts draw from streams 1 and 2, stills from 3: no study patient is among these
RENDER_PX, IMAGE_PX = 256, 128
N_FRAMES, FRAME_RATE = 5, 1.25  # sparse cines: before, during and after the bolus, for less
TARGETS = ("is_rca", "primary_angle", "secondary_angle", "opacified", "contrast")
ANGLE_SCALE_DEG = 45.0
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Scenes:
    """Frames with what the phantom knows of them.

    Attributes:
        pictures: (n, 1, px, px) uint8.
        targets: (n, 5) float32, columns `TARGETS`: side (0 LCA, 1 RCA), positioner angles divided
            by 45 degrees, share of the tree opacified, mean contrast.
        names: Of the columns.
    """

    pictures: Tensor
    targets: Tensor
    names: tuple[str, ...] = TARGETS


def shoot_scenes(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Film both sides of one patient, a few frames each.

    Args:
        number: Of the patient, 0 or more; the same number gives the same frames.

    Returns:
        ((10, px, px) uint8, (10, 5) float32): see `Scenes`.

    Raises:
        ValueError: `number` is negative.
    """
    if number < 0:
        raise ValueError(f"a patient's number must be 0 or more, got {number}")
    rng = np.random.default_rng([STREAM, number])
    subject = draw_subject(rng, LESION_SHARES["cnn"])
    pictures, targets = [], []
    for is_rca, side in enumerate(LATERALITIES):
        tree, _ = diseased_tree(rng, subject, side)
        kind = str(rng.choice(KINDS, p=KIND_SHARES["cnn"]))
        shot = draw_shot(rng, subject, tree, kind, N_FRAMES, FRAME_RATE, RENDER_PX)
        frames, truth = film(rng, subject, tree, shot)
        angles = np.array([shot.arm.primary_deg, shot.arm.secondary_deg]) / ANGLE_SCALE_DEG
        for frame, opacified, contrast in zip(frames, truth.opacified, truth.contrast, strict=True):
            size = (IMAGE_PX, IMAGE_PX)
            pictures.append(cv2.resize(frame, size, interpolation=cv2.INTER_AREA))
            targets.append([is_rca, *angles, opacified, contrast])
    return np.array(pictures), np.array(targets, np.float32)


def collect_scenes(n_patients: int, cache: Path, n_workers: int = 2) -> Scenes:
    """Film many patients, or read them from the cache.

    Args:
        n_patients: At least 1; numbers 0 to n - 1.
        cache: Folder for one .npz a size.
        n_workers: Processes.

    Returns:
        Their frames, patient by patient.
    """
    path = cache / f"cnn_scenes_{n_patients}.npz"
    if not path.is_file():
        jobs = (delayed(shoot_scenes)(number) for number in range(n_patients))
        found = Parallel(n_jobs=n_workers, return_as="generator")(jobs)
        found = tqdm(found, total=n_patients, desc="patients", mininterval=30)
        pictures, targets = zip(*found, strict=True)
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(path, pictures=np.concatenate(pictures), targets=np.concatenate(targets))
    stored = np.load(path)
    return Scenes(
        torch.from_numpy(stored["pictures"])[:, None], torch.from_numpy(stored["targets"])
    )


def scene_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return cross-entropy of the side plus smooth L1 of the four measures.

    Args:
        outputs: (n, 5), the first a logit.
        targets: (n, 5), columns `TARGETS`.
    """
    side = nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], targets[:, 0])
    rest = nn.functional.smooth_l1_loss(outputs[:, 1:], targets[:, 1:], beta=0.1)
    return side + 4 * rest


def pretrain(scenes: Scenes, epochs: int, seed: int, batch_size: int = 64, rate: float = 2e-3):
    """Train the twin to read side, view and contrast off single frames.

    Args:
        scenes: Frames, patient by patient; the last tenth is held out.
        epochs: Passes over the rest.
        seed: Initial weights, order, augmentation.
        batch_size: Frames a step.
        rate: Peak learning rate of AdamW.

    Returns:
        (model, report): the report holds the held-out share of sides right and the mean errors.
    """
    torch.manual_seed(seed)
    device, name = pick_device(), "convnext_twin"
    model = build_model(name, pretrained=False)
    model.reset_classifier(len(TARGETS))
    model.to(device)
    n_train = int(len(scenes.targets) * (1 - HELD_OUT_SHARE))
    n_steps = epochs * math.ceil(n_train / batch_size)
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: rate_factor(step, n_steps, n_steps / epochs, "cosine")
    )
    policy = v2.TrivialAugmentWide()
    for _ in tqdm(range(epochs), desc="epochs", mininterval=30):
        for index in torch.randperm(n_train).split(batch_size):
            pictures = augment(scenes.pictures[index], policy).to(device)
            with autocast(device):
                outputs = model(prepare(pictures, name))
            scene_loss(outputs.float(), scenes.targets[index].to(device)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            schedule.step()
    held_out = Scenes(scenes.pictures[n_train:], scenes.targets[n_train:])
    return model, {"n_frames": n_train, "epochs": epochs, "seed": seed} | assess(model, held_out)


@torch.inference_mode()
def assess(model: nn.Module, scenes: Scenes) -> dict[str, float]:
    """Return the share of sides right and the mean absolute error of every measure."""
    model.eval()
    device = next(model.parameters()).device
    batches = scenes.pictures.split(128)
    out = torch.cat([model(prepare(b.to(device), "convnext_twin")).float().cpu() for b in batches])
    right = ((out[:, 0] > 0) == (scenes.targets[:, 0] > 0.5)).float().mean()
    errors = (out[:, 1:] - scenes.targets[:, 1:]).abs().mean(0)
    scale = [ANGLE_SCALE_DEG, ANGLE_SCALE_DEG, 1.0, 1.0]
    report = {"held_out_side_accuracy": round(right.item(), 4)}
    for target, error, unit in zip(TARGETS[1:], errors.tolist(), scale, strict=True):
        report[f"held_out_error_{target}"] = round(error * unit, 4)
    return report


def save_trunk(model: nn.Module, folder: Path, facts: Mapping[str, object]) -> Path:
    """Write the weights without the last layer, in 16 bit, and what is known of them.

    Args:
        model: From `pretrain`.
        folder: Existing folder; gets `model.safetensors` and `model.json`.
        facts: JSON-ready.

    Returns:
        The folder.
    """
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("head.fc")}
    trunk = {k: v.half().contiguous() for k, v in state.items()}
    save_file(trunk, folder / "model.safetensors")
    write_json(folder / "model.json", dict(facts))
    return folder
