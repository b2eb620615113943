"""Pretrain the key-frame twin on other phantom patients, and finish the network that is shipped.

Single frames are drawn from a stream of random numbers of their own, so that no patient of the
study is among them. A network is shown facts, then the six classes of the same strangers. It is
shipped as `weights/keyframe_cnn/`: the network of `python -m cag_utils.keyframes predict`, from
which notebook 01 starts as the paper started from ImageNet. Notebook A2 makes it.
"""

import copy
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from scipy.optimize import minimize
from sklearn.metrics import f1_score
from timm.models import ConvNeXt
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from cag_utils.cines.stills import fit_picture
from cag_utils.keyframes.labels import LATERALITY, QUALITY, SIX_CLASSES, f1_scores
from cag_utils.keyframes.network import autocast, build_model, pick_device, prepare, save_model
from cag_utils.keyframes.training import fit
from cag_utils.phantom.anatomy.tree import Tree
from cag_utils.phantom.cohort import LESION_SHARES
from cag_utils.phantom.imaging.pose import Pose, pose_tree
from cag_utils.phantom.imaging.render import film
from cag_utils.phantom.imaging.shot import draw_shot
from cag_utils.phantom.labels import OTHER_OPACIFIED
from cag_utils.phantom.streams import VERSION
from cag_utils.phantom.subject import diseased_tree, draw_subject
from cag_utils.segments import LATERALITIES

STREAM = 5  # cohorts draw from streams 1 and 2, stills from 3: no study patient is among these
RENDER_PX, IMAGE_PX = 512, 224  # the study's own matrix, and what its network sees of it
CINES_A_SIDE = 3  # three views a side
N_FRAMES, FRAME_RATES = 5, (1.0, 1.7)  # sparse cines: before, during and after the bolus, for less
EARLY_SHARE = 0.7  # of the first frames, which show no contrast yet, that are kept
# More of what is `other` for other reasons than time: catheters and wires alone, ventriculograms,
# aortograms, empty fields. Real archives are full of them, the study's cohorts are not. Choice.
KIND_SHARES = {
    "normal": 0.40, "weak": 0.07, "slow": 0.04, "short": 0.06, "noninjected": 0.12, "cropped": 0.07,
    "panned": 0.03, "blurred": 0.02, "oddview": 0.04, "empty": 0.03, "ventriculogram": 0.06,
    "aortogram": 0.06,
}  # fmt: skip
TARGETS = (
    "is_rca", "primary_angle", "secondary_angle", "standard_view", "opacified", "contrast",
    "blur_mm", "foreshortening", "overlap",
)  # fmt: skip
COLUMNS = {"pictures": np.uint8, "targets": np.float32, "labels": np.int64, "maps": np.float16}
ANGLE_SCALE_DEG = 45.0
LARGEST_BLUR_MM = 1.5  # more than enough to call a frame blurred; choice
CELLS = 28  # a side; 8 pixels of 224
STAGE = 2  # of the network's four: 16 pixels a step, drawn twice as fine
FULL = 80.0  # a cell with 1/80 of the tree counts as 1 - 1/e full; choice
NETWORK = "convnext_twin"
HELD_OUT_SHARE = 0.1
AVERAGE = 0.998  # decay of the moving average of the weights, which is what is kept
COARSE_SHARE, COARSE_PX = 0.5, 112  # of the epochs, on smaller pictures: a quarter of the time
BATCH = 64  # pictures a step
IS_RCA = torch.tensor([LATERALITY[name] == "RCA" for name in SIX_CLASSES])
IS_VESSEL = torch.tensor([QUALITY[name] != "other" for name in SIX_CLASSES])
ALWAYS = [TARGETS.index(name) for name in TARGETS[1:6]]  # angles, view, opacified, contrast
WITH_CONTRAST = [TARGETS.index(name) for name in ("blur_mm", "foreshortening", "overlap")]
RANDOMISED = 0.33  # share of the frames that are randomised; choice
MAP_WEIGHT = 8.0  # of the drawn tree in the loss; choice


@dataclass(frozen=True)
class Scenes:
    """Frames with what the phantom knows of them."""

    pictures: Tensor  # (n, 1, px, px) uint8
    # (n, 9) float32, columns `TARGETS`: side (0 LCA, 1 RCA), positioner angles divided by 45
    # degrees, then what the label rule reads and the contrast (see `phantom.labels`), blur at most
    # 1.5
    targets: Tensor
    labels: Tensor  # (n,) int64, index into SIX_CLASSES by the phantom's written rule
    patients: Tensor  # (n,) int64, number of the patient, rising
    maps: Tensor  # (n, 2, 28, 28) float16, where the tree lies, seen and unseen: see `map_tree`


def shoot_scenes(number: int) -> dict[str, np.ndarray]:
    """Film both sides of patient `number` from several views, a few frames each.

    Returns:
        pictures (n, px, px) uint8, targets, labels and maps: see `Scenes`.

    Raises:
        ValueError: `number` is negative.
    """
    cv2.setNumThreads(1)  # one core a worker
    rng = np.random.default_rng([STREAM, number])
    subject = draw_subject(rng, LESION_SHARES["cnn"])
    rows = []
    for is_rca, side in enumerate(LATERALITIES):
        tree, _ = diseased_tree(rng, subject, side)
        for _ in range(CINES_A_SIDE):
            kind = str(rng.choice(list(KIND_SHARES), p=list(KIND_SHARES.values())))
            rate = rng.uniform(*FRAME_RATES)
            shot = draw_shot(rng, subject, tree, kind, N_FRAMES, rate, RENDER_PX)
            pose = pose_tree(tree, shot)
            frames, truth = film(rng, subject, tree, shot, pose)
            maps = map_tree(tree, pose, truth.seen, RENDER_PX)
            first = 0 if rng.random() < EARLY_SHARE else 1
            angles = np.array([shot.arm.primary_deg, shot.arm.secondary_deg]) / ANGLE_SCALE_DEG
            labels, measured = truth.labels(side), truth.measured() | {"contrast": truth.contrast}
            measured["blur_mm"] = np.minimum(measured["blur_mm"], LARGEST_BLUR_MM)
            for i in range(first, N_FRAMES):
                facts = [is_rca, *angles, *(measured[name][i] for name in TARGETS[3:])]
                label = SIX_CLASSES.index(labels[i])
                rows.append((fit_picture(frames[i], IMAGE_PX), facts, label, maps[i]))
    columns = zip(COLUMNS.items(), zip(*rows, strict=True), strict=True)
    return {name: np.array(values, kind) for (name, kind), values in columns}


def collect_scenes(n_patients: int, cache: Path, n_workers: int = 2, first: int = 0) -> Scenes:
    """Film n patients from number `first` on, about 27 frames each, or read them from `cache`.

    That folder gets one .npz a number of patients, version of the phantom and size.
    """
    path = cache / f"scenes_v{VERSION}_{first}_{n_patients}_{IMAGE_PX}.npz"
    if not path.is_file():
        jobs = (delayed(shoot_scenes)(first + number) for number in range(n_patients))
        done = Parallel(n_jobs=n_workers, return_as="generator")(jobs)
        done = list(tqdm(done, total=n_patients, desc="patients", mininterval=30))
        parts = {name: np.concatenate([one[name] for one in done]) for name in done[0]}
        parts["patients"] = np.repeat(np.arange(n_patients), [len(one["labels"]) for one in done])
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(path, **parts)
    stored = np.load(path)
    scenes = Scenes(**{name: torch.from_numpy(stored[name]) for name in stored})
    return replace(scenes, pictures=scenes.pictures[:, None])


def map_tree(tree: Tree, pose: Pose, seen: np.ndarray, size_px: int) -> np.ndarray:
    """Share out the open main tree, by calibre, over the cells of a picture.

    Args:
        tree: Of n points.
        pose: In t frames; taken in the middle of the pulse.
        seen: (t, n) bool, from `grading.FrameTruth`.

    Returns:
        (t, 2, 28, 28) float16: the share that can be seen in each cell, and the share that lies
        there unseen. Together at most 1 a frame; less if the tree reaches beyond the picture.
    """
    weight = np.where(tree.main & tree.open, tree.radius, 0.0)
    weight = weight / weight.sum()
    maps = np.empty((len(seen), 2, CELLS, CELLS), np.float16)
    for i, shown in enumerate(seen):
        u, v = pose.u[i] + 0.5 * pose.du[i], pose.v[i] + 0.5 * pose.dv[i]
        inside = (u >= 0) & (u < size_px) & (v >= 0) & (v < size_px)
        row, column = ((w[inside] / size_px * CELLS).astype(int) for w in (v, u))
        for k, chosen in enumerate((shown[inside], ~shown[inside])):
            sums = np.bincount(row * CELLS + column, weight[inside] * chosen, CELLS**2)
            maps[i, k] = sums.reshape(CELLS, CELLS)
    return maps


class Drawing(nn.Module):
    """A ConvNeXt, not copied, that answers and draws the tree with a head on its third stage."""

    def __init__(self, network: ConvNeXt):
        super().__init__()
        self.network = network
        width = network.feature_info[STAGE]["num_chs"]
        self.draw = nn.Sequential(nn.Conv2d(width, 8, 1), nn.PixelShuffle(2))

    def forward(self, pictures: Tensor) -> Tensor:
        """Return (n, answers + 2 * cells * cells): answers, then logits; a cell is 8 px wide."""
        net = self.network
        x = net.stem(pictures)
        for number, stage in enumerate(net.stages):
            x = stage(x)
            if number == STAGE:
                drawn = self.draw(x)
        answers = net.forward_head(net.norm_pre(x))
        return torch.cat([answers, drawn.flatten(1)], 1)


def map_loss(drawn: Tensor, maps: Tensor, plain: Tensor) -> Tensor:
    """Return the cross-entropy of drawn and true maps.

    A picture that was cropped or turned no longer fits its map and has no part in it.

    Args:
        drawn: (n, 2 * cells * cells) logits, for any number of cells.
        maps: (n, 2 * 28 * 28) shares, from `map_tree`.
        plain: (n,) bool, pictures that are as they were drawn.
    """
    cells = round((drawn.shape[1] / 2) ** 0.5)
    wanted = maps.float().view(-1, 2, CELLS, CELLS)
    if cells != CELLS:
        shape = (cells, cells)
        wanted = functional.interpolate(wanted, shape, mode="area") * (CELLS / cells) ** 2
    full = 1 - torch.exp(-FULL * wanted)
    away = functional.binary_cross_entropy_with_logits(drawn, full.flatten(1), reduction="none")
    return (away.mean(1) * plain).sum() / plain.sum().clamp(min=1)


def split_scenes(scenes: Scenes) -> list[Scenes]:
    """Return (training, held out): the last tenth of the patients is held out."""
    count = int(scenes.patients.max()) + 1
    held_out = scenes.patients >= math.floor(count * (1 - HELD_OUT_SHARE))
    parts = (~held_out, held_out)
    return [Scenes(*(column[part] for column in vars(scenes).values())) for part in parts]


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
    side = functional.binary_cross_entropy_with_logits(outputs[:, 0], targets[:, 0])
    away = functional.smooth_l1_loss(outputs, targets, beta=0.1, reduction="none")
    seen = plain * (targets[:, TARGETS.index("opacified")] >= OTHER_OPACIFIED)
    vessels = (away[:, WITH_CONTRAST].mean(1) * seen).sum() / seen.sum().clamp(min=1)
    always = away[:, ALWAYS].mean(1) * plain
    return side + 4 * (always.mean() + plain.float().mean() * vessels)


def class_loss(outputs: Tensor, labels: Tensor, plain: Tensor, smoothing: float = 0.05) -> Tensor:
    """Return cross-entropy of the six classes, and of less of them where randomised.

    Cropped, a key frame is none any more; a network told otherwise calls half a tree better. So a
    randomised frame with vessels counts with its side, and as any of that side's classes but other;
    one without stays other, however it is cut.

    Args:
        outputs: (n, 6) logits.
        labels: (n,) int64.
        plain: (n,) bool, pictures that are as they were drawn.
    """
    six = {"label_smoothing": smoothing, "reduction": "none"}
    whole = functional.cross_entropy(outputs, labels, **six)
    chances = outputs.log_softmax(1)
    vessels = chances[:, IS_VESSEL].view(-1, 2, 2).logsumexp(2)
    vessels = functional.nll_loss(vessels, labels // 3, reduction="none")
    other = functional.nll_loss(chances, labels, reduction="none")
    return torch.where(plain, whole, torch.where(IS_VESSEL[labels], vessels, other)).mean()


def pretrain(scenes: Scenes, epochs: int, seed: int, checkpoint: Path | None = None) -> nn.Module:
    """Train the twin to read facts off single frames; no label is shown.

    Besides, it draws where the tree lies, with a head that is thrown away. A third of the frames
    are randomised.
    """
    torch.manual_seed(seed)
    model = build_model(NETWORK, pretrained=False)
    model.reset_classifier(len(TARGETS))
    return _fit(model, scenes, scenes.targets, scene_loss, epochs, 2e-3, checkpoint, COARSE_SHARE)


def _fit(
    model, scenes: Scenes, answers: Tensor, loss, epochs, rate, checkpoint, coarse_share
) -> nn.Module:
    """Train with AdamW, the first epochs on smaller pictures; return the moving average.

    Beside the answers the network draws the tree, with a head that is thrown away.
    """
    count, n_outputs = answers.shape[1], model.num_classes
    device, steps = pick_device(), math.ceil(len(scenes.pictures) / BATCH)
    drawing = Drawing(model).to(device, memory_format=torch.channels_last)
    wanted = torch.cat([answers, scenes.maps.flatten(1)], 1)
    n_coarse = math.ceil(coarse_share * epochs) if epochs > 1 else 0
    shrunk = functools.cache(lambda: _shrink(scenes.pictures))

    def batches(epoch: int):
        source = shrunk() if epoch < n_coarse else scenes.pictures
        for index in torch.randperm(len(source)).split(BATCH):
            seen, changed = source[index].float(), torch.rand(len(index)) < RANDOMISED
            if changed.any():
                seen[changed] = randomise(source[index[changed]])
            yield len(index), (seen, ~changed, wanted[index])

    def cost(seen: Tensor, plain: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        with autocast(device):
            outputs = drawing(prepare(seen.to(device), NETWORK)).float()
        wanted, plain = wanted.to(device), plain.to(device)
        drawn = map_loss(outputs[:, n_outputs:], wanted[:, count:], plain)
        told = loss(outputs[:, :n_outputs], wanted[:, :count], plain)
        return {"loss": told + MAP_WEIGHT * drawn}

    optimisers = [torch.optim.AdamW(drawing.parameters(), rate, weight_decay=0.05)]
    plan = {"warmup": min(300, steps * epochs // 10), "average": AVERAGE}
    kept = {"checkpoint": checkpoint, "name": "epochs"}
    return fit(drawing, batches, cost, optimisers, steps, epochs, **plan, **kept).model.network


def _shrink(pictures: Tensor) -> Tensor:
    """Pictures of at most `COARSE_PX` a side."""
    if pictures.shape[-1] <= COARSE_PX:
        return pictures
    small = np.stack([fit_picture(grey, COARSE_PX) for grey in pictures[:, 0].numpy()])
    return torch.from_numpy(small)[:, None]


def teach_classes(
    trunk: nn.Module, scenes: Scenes, epochs: int, seed: int, rate=6e-4, checkpoint=None
) -> nn.Module:
    """Give a pretrained trunk a six-way head, or let it keep its own, and teach it the label rule.

    The facts stay asked beside the classes, by a head that is thrown away: how much of a tree is
    seen says more than on which side of the rule's limit that lies; so does where the tree lies. A
    third of the frames are randomised. A network that knows classes already sees all pictures in
    full size.

    Args:
        trunk: From `pretrain`, or a network that has learnt classes before; not changed.
        rate: Peak learning rate.
    """
    torch.manual_seed(seed)
    model, count = copy.deepcopy(trunk), len(SIX_CLASSES)
    goes_on = model.num_classes == count
    model.reset_classifier(count + len(TARGETS))
    if goes_on:
        _copy_head(trunk.head.fc, model.head.fc)
    answers = torch.cat([scenes.labels[:, None].float(), scenes.targets], dim=1)

    def loss(outputs: Tensor, wanted: Tensor, plain: Tensor) -> Tensor:
        classes = class_loss(outputs[:, :count], wanted[:, 0].long(), plain)
        return classes + scene_loss(outputs[:, count:], wanted[:, 1:], plain)

    coarse_share = 0.0 if goes_on else COARSE_SHARE
    model = _fit(model, scenes, answers, loss, epochs, rate, checkpoint, coarse_share)
    taught = model.head.fc
    model.reset_classifier(count)
    _copy_head(taught, model.head.fc)
    return model.eval()


@torch.no_grad()
def _copy_head(old: nn.Linear, new: nn.Linear) -> None:
    """Copy as many rows as both heads have."""
    count = min(old.out_features, new.out_features)
    new.weight[:count] = old.weight[:count]
    new.bias[:count] = old.bias[:count]


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

    Returns:
        temperature (> 0), rca_logit_offset, and before any of it the held-out F1s of frames as
        drawn (`labels.f1_scores`) and of the sides of randomised ones (macro average).
    """
    generator = torch.Generator().manual_seed(seed)
    changed = torch.cat([randomise(b, generator) for b in scenes.pictures.split(256)])
    as_drawn, as_changed = (_outputs(model, x) for x in (scenes.pictures, changed))
    scores, labels = torch.cat([as_drawn, as_changed]), scenes.labels.repeat(2)
    plain = torch.arange(len(scores)) < len(changed)

    def cost(free: np.ndarray) -> float:
        moved = scores * math.exp(-free[0]) + free[1] * IS_RCA
        return float(class_loss(moved, labels, plain, smoothing=0.0))

    sharper, offset = minimize(cost, np.zeros(2), method="Nelder-Mead").x
    share = pd.DataFrame(as_drawn.softmax(1).numpy(), columns=list(SIX_CLASSES))
    found = f1_scores([SIX_CLASSES[i] for i in scenes.labels], share)
    side = as_changed.softmax(1).numpy()[:, IS_RCA].sum(1) > 0.5
    found["randomised_laterality_f1"] = f1_score(IS_RCA[scenes.labels], side, average="macro")
    fitted = {"temperature": math.exp(sharper), "rca_logit_offset": offset}
    fitted |= {f"held_out_{name}": value for name, value in found.items()}
    return {name: round(float(value), 4) for name, value in fitted.items()}


def save_predictor(model: nn.Module, folder: Path, facts: Mapping[str, object]) -> Path:
    """Write the six-class network, in 16 bit, as `network.load_model` reads it.

    Args:
        model: From `teach_classes`.
        facts: JSON-ready; at least `image_px`, `temperature`, `rca_logit_offset`.
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
    burnt-in text and an occluding patch in some. Never mirrored: a left coronary would look right.

    Args:
        pictures: (n, 1, px, px) uint8; float32 in [0, 255] come back.
        generator: Torch's global one if None.
    """
    draw, grey = _Draw(len(pictures), generator), pictures.float()
    for change in (_warp, _shade, _focus, _grain, _collimate, _overlay):
        grey = change(grey, draw)
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
    column = torch.cat([across * angle.cos(), -down * angle.sin(), move[:, :1]], 1)
    row = torch.cat([across * angle.sin(), down * angle.cos(), move[:, 1:]], 1)
    maps = torch.stack([column, row], 1)
    grid = functional.affine_grid(maps, list(grey.shape), align_corners=False)
    inside = functional.grid_sample(grey, grid, padding_mode="border", align_corners=False)
    seen = (grid.abs().amax(-1) <= 1).float()[:, None]
    return inside * (1 - draw.chance(0.4) * (1 - seen))


def _shade(grey: Tensor, draw: _Draw) -> Tensor:
    """A smooth field of brightness, then another display curve, contrast and level."""
    look = {"size": grey.shape[-2:], "mode": "bicubic", "align_corners": False}
    field = functional.interpolate(draw.normal(14.0, 1, 4, 4), **look)
    grey = (grey + draw.chance(0.5) * field).clamp(0, 255)
    grey = 255 * (grey / 255).clamp(min=1e-4) ** draw.normal(GAMMA).exp()
    mean = grey.mean((2, 3), keepdim=True)
    return mean + (grey - mean) * draw.normal(CONTRAST).exp() + draw.normal(BRIGHTNESS)


def _focus(grey: Tensor, draw: _Draw) -> Tensor:
    """Blur some pictures, sharpen others."""
    soft = grey
    for _ in range(2):
        soft = functional.avg_pool2d(functional.pad(soft, (1, 1, 1, 1), "replicate"), 3, 1)
    return grey + draw.uniform(-0.9, 1.3) * draw.chance(0.6) * (grey - soft)


def _grain(grey: Tensor, draw: _Draw) -> Tensor:
    """Fine or coarse noise."""
    height, width = grey.shape[-2:]
    fine = draw.normal(1.0, 1, height, width)
    coarse = draw.normal(1.5, 1, height // 2, width // 2)
    coarse = functional.interpolate(coarse, size=(height, width), mode="bilinear")
    share = draw.uniform(0, 1)
    noise = share * fine + (1 - share) * coarse
    return grey + draw.chance(0.6) * draw.uniform(0, NOISE_GREY) * noise


def _collimate(grey: Tensor, draw: _Draw) -> Tensor:
    """Shut the picture from some sides, dark or grey."""
    size = grey.shape[-1]
    at = (torch.arange(size) + 0.5) / size
    edges = draw.uniform(0, 0.12, 4) * (draw.uniform(0, 1, 4) < 0.5)
    sides = zip((at, 1 - at, at, 1 - at), edges.split(1, 1), strict=True)
    left, right, top, bottom = (torch.sigmoid((x - edge) * size) for x, edge in sides)
    light = (top * bottom)[:, None, :, None] * (left * right)[:, None, None, :]
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
