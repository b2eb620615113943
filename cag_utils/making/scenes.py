"""Single phantom frames with what the phantom knows of them: food for the key-frame network.

Drawn from a stream of random numbers of their own, so that no patient of the study is among them.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from joblib import Parallel, delayed
from timm.models import ConvNeXt
from torch import Tensor, nn
from tqdm import tqdm

from cag_utils.cines.stills import fit_picture
from cag_utils.keyframes.labels import SIX_CLASSES
from cag_utils.phantom.anatomy.tree import Tree
from cag_utils.phantom.cohort import LESION_SHARES
from cag_utils.phantom.imaging.pose import Pose, pose_tree
from cag_utils.phantom.imaging.render import film
from cag_utils.phantom.imaging.shot import draw_kind, draw_shot
from cag_utils.phantom.streams import VERSION
from cag_utils.phantom.subject import diseased_tree, draw_subject
from cag_utils.segments import LATERALITIES

STREAM = 5  # cohorts draw from streams 1 and 2, stills from 3: no study patient is among these
RENDER_PX, IMAGE_PX = 512, 224  # the study's own matrix, and what its network sees of it
CINES_A_SIDE = 3  # three views a side
N_FRAMES, FRAME_RATES = 5, (1.0, 1.7)  # sparse cines: before, during and after the bolus, for less
EARLY_SHARE = 0.35  # of the first frames, which show no contrast yet, that are kept
TARGETS = (
    "is_rca", "primary_angle", "secondary_angle", "standard_view", "opacified", "contrast",
    "blur_mm", "foreshortening", "overlap",
)  # fmt: skip
ANGLE_SCALE_DEG = 45.0
LARGEST_BLUR_MM = 1.5  # more than enough to call a frame blurred; choice


@dataclass(frozen=True)
class Scenes:
    """Frames with what the phantom knows of them.

    Attributes:
        pictures: (n, 1, px, px) uint8.
        targets: (n, 9) float32, columns `TARGETS`: side (0 LCA, 1 RCA), positioner angles divided
            by 45 degrees, then what the label rule reads and the contrast (see `phantom.labels`),
            blur at most 1.5.
        labels: (n,) int64, index into SIX_CLASSES by the phantom's written rule.
        patients: (n,) int64, number of the patient, rising.
        maps: (n, 2, 28, 28) float16, where the tree lies, seen and unseen: see `map_tree`.
    """

    pictures: Tensor
    targets: Tensor
    labels: Tensor
    patients: Tensor
    maps: Tensor

    def pick(self, chosen: Tensor) -> "Scenes":
        """Return some of the frames: (n,) bool or indices."""
        return Scenes(*(column[chosen] for column in vars(self).values()))


def shoot_scenes(number: int) -> dict[str, np.ndarray]:
    """Film both sides of one patient from several views, a few frames each.

    Args:
        number: Of the patient, 0 or more; the same number gives the same frames.

    Returns:
        pictures (n, px, px) uint8, targets (n, 9) float32, labels (n,) int64,
        maps (n, 2, 28, 28) float16: see `Scenes`.

    Raises:
        ValueError: `number` is negative.
    """
    if number < 0:
        raise ValueError(f"a patient's number must be 0 or more, got {number}")
    cv2.setNumThreads(1)  # one core a worker
    rng = np.random.default_rng([STREAM, number])
    subject = draw_subject(rng, LESION_SHARES["cnn"])
    found = {"pictures": [], "targets": [], "labels": [], "maps": []}
    for is_rca, side in enumerate(LATERALITIES):
        tree, _ = diseased_tree(rng, subject, side)
        for _ in range(CINES_A_SIDE):
            kind = draw_kind(rng, "cnn")
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
                found["pictures"].append(fit_picture(frames[i], IMAGE_PX))
                facts = [measured[name][i] for name in TARGETS[3:]]
                found["targets"].append([is_rca, *angles, *facts])
                found["labels"].append(SIX_CLASSES.index(labels[i]))
                found["maps"].append(maps[i])
    kinds = {
        "pictures": np.uint8, "targets": np.float32, "labels": np.int64, "maps": np.float16
    }  # fmt: skip
    return {name: np.array(values, kinds[name]) for name, values in found.items()}


def collect_scenes(n_patients: int, cache: Path, n_workers: int = 2) -> Scenes:
    """Film many patients, or read them from the cache.

    Args:
        n_patients: At least 1; numbers 0 to n - 1.
        cache: Folder for one .npz a number of patients, version of the phantom and size.
        n_workers: Processes.

    Returns:
        Their frames, patient by patient, about 25 each.
    """
    path = cache / f"scenes_v{VERSION}_{n_patients}_{IMAGE_PX}.npz"
    if not path.is_file():
        jobs = (delayed(shoot_scenes)(number) for number in range(n_patients))
        done = Parallel(n_jobs=n_workers, return_as="generator")(jobs)
        done = list(tqdm(done, total=n_patients, desc="patients", mininterval=30))
        parts = {name: np.concatenate([one[name] for one in done]) for name in done[0]}
        parts["patients"] = np.repeat(np.arange(n_patients), [len(one["labels"]) for one in done])
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(path, **parts)
    stored = np.load(path)
    return Scenes(
        torch.from_numpy(stored["pictures"])[:, None],
        *(torch.from_numpy(stored[name]) for name in ("targets", "labels", "patients", "maps")),
    )


CELLS = 28  # a side; 8 pixels of 224
STAGE = 2  # of the network's four: 16 pixels a step, drawn twice as fine
FULL = 80.0  # a cell with 1/80 of the tree counts as 1 - 1/e full; choice


def map_tree(tree: Tree, pose: Pose, seen: np.ndarray, size_px: int) -> np.ndarray:
    """Share out the open main tree, by calibre, over the cells of a picture.

    Args:
        tree: The tree of n points.
        pose: Positions in t frames; taken in the middle of the pulse.
        seen: (t, n) bool, from `grading.FrameTruth`.
        size_px: Side of the picture, pixels.

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
    """A ConvNeXt that answers and, beside its answer, draws the tree.

    `forward` gives (n, answers + 2 * cells * cells): the network's own outputs, then the map's
    logits, flattened; cells is an eighth of the picture's side.
    """

    def __init__(self, network: ConvNeXt):
        """Put a drawing head, 1 x 1, on the network's third stage; the network is not copied."""
        super().__init__()
        self.network = network
        width = network.feature_info[STAGE]["num_chs"]
        self.draw = nn.Sequential(nn.Conv2d(width, 8, 1), nn.PixelShuffle(2))

    def forward(self, pictures: Tensor) -> Tensor:
        """Answer and draw."""
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
        wanted = nn.functional.interpolate(wanted, shape, mode="area") * (CELLS / cells) ** 2
    full = 1 - torch.exp(-FULL * wanted)
    away = nn.functional.binary_cross_entropy_with_logits(
        drawn, full.flatten(1), reduction="none"
    ).mean(1)
    return (away * plain).sum() / plain.sum().clamp(min=1)
