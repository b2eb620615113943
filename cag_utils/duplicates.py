"""Near-duplicate frames: two fingerprints, nearest neighbours, and how near is too near."""

import imagehash
import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize
from torch import Tensor

from cag_utils.network import autocast, build_model, pick_device, prepare
from cag_utils.params import check_choice

HASHES = {"phash": imagehash.phash, "dhash": imagehash.dhash}
METRICS = ("hamming", "cosine")
IDS = ("patient_id", "video_id")
RELATIONS = ("same video", "same patient, other video", "one other patient", "any other patient")
COMPONENTS = (
    64  # of an embedding after whitening, choice: more are noise with a few thousand frames
)


def hash_frames(pictures: Tensor, kind: str = "phash") -> np.ndarray:
    """Compute a 64-bit perceptual hash a frame.

    `phash` keeps the signs of the lowest cosine frequencies of the picture shrunk to 32 px,
    `dhash` those of the differences between neighbours at 9 x 8 px. Both see the backdrop, the
    shutters and the view; a vessel is too thin for them.

    Args:
        pictures: (n, 1, px, px) uint8.
        kind: "phash" or "dhash".

    Returns:
        (n, 64) bool.

    Raises:
        ValueError: The kind is unknown.

    Source:
        Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010; computed
        by the library imagehash.
    """
    compute = HASHES[check_choice("kind", kind, list(HASHES))]
    hashes = [compute(Image.fromarray(grey[0])).hash.ravel() for grey in pictures.numpy()]
    return np.array(hashes, bool).reshape(-1, 64)


@torch.inference_mode()
def embed_frames(pictures: Tensor, name: str, batch_size: int = 128) -> np.ndarray:
    """Compute the pooled features of a network that was not trained on these frames.

    The network is the trunk that trainings start from: one trained in the comparison would have
    seen some of the frames and not others, and its features could tell them apart for that reason.
    A few directions (side, view, contrast) carry most of such features' variance and would hide all
    else, so the features are whitened: each principal component counts alike.

    Args:
        pictures: (n, 1, px, px) uint8.
        name: See `network.network`; its published weights are used.
        batch_size: Pictures at a time, memory only.

    Returns:
        (n, d) float32, rows of length 1; d is 64, or a tenth of n (at least 2) if that is less.

    Raises:
        ValueError: Fewer than two pictures.

    Source:
        Whitening for retrieval: Jegou and Chum, ECCV 2012.
    """
    if len(pictures) < 2:
        raise ValueError(f"{len(pictures)} pictures: nothing to compare")
    device = pick_device()
    model = build_model(name, pretrained=True).to(device).eval()
    rows = []
    for batch in pictures.split(batch_size):
        with autocast(device):
            features = model.forward_features(prepare(batch.to(device), name))
            pooled = model.forward_head(features, pre_logits=True)
        rows.append(pooled.float().flatten(1).cpu())
    pooled = torch.cat(rows).numpy().astype(np.float64)
    n_components = min(COMPONENTS, max(2, len(pooled) // 10), *pooled.shape)
    whitened = PCA(n_components, whiten=True, svd_solver="full").fit_transform(pooled)
    return normalize(whitened).astype(np.float32)


def find_nearest(
    queries: np.ndarray, references: np.ndarray, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """Find each query's nearest reference.

    Args:
        queries: (n, d), bool for "hamming", float for "cosine".
        references: (m, d), likewise, m >= 1.
        metric: "hamming" or "cosine".

    Returns:
        Distances (n,), in bits for "hamming", in [0, 2] for "cosine"; and row numbers (n,) of the
        references.

    Raises:
        ValueError: There is no reference, or the metric is unknown.
    """
    check_choice("metric", metric, list(METRICS))
    if not len(references):
        raise ValueError("no frames to compare with: the other split is empty")
    model = NearestNeighbors(n_neighbors=1, algorithm="brute", metric=metric).fit(references)
    distance, index = model.kneighbors(queries)
    return distance[:, 0] * _unit(metric, references), index[:, 0]


def nearest_by_relation(
    features: np.ndarray, frames: pd.DataFrame, metric: str, seed: int = 0
) -> pd.DataFrame:
    """Find how near each frame's nearest relative of each kind is.

    The nearest of a hundred is nearer than the nearest of ten, whoever they are. So the fair
    counterpart of *same patient, other video* is *one other patient*: each patient gets another
    one at random, who leaves out one video as well.

    Args:
        features: (n, d), see `find_nearest`.
        frames: n rows with patient_id and video_id.
        metric: "hamming" or "cosine".
        seed: Of the choice of the one other patient.

    Returns:
        n rows, columns `RELATIONS`, distances as `find_nearest` gives them; missing where a frame
        has no such relative. Same index as `frames`.

    Raises:
        ValueError: Lengths differ, an id column is missing, or the metric is unknown.
    """
    check_choice("metric", metric, list(METRICS))
    if missing := set(IDS) - set(frames.columns):
        raise ValueError(f"frames lack {sorted(missing)}: who is related to whom?")
    if len(features) != len(frames):
        raise ValueError(f"{len(features)} rows of features for {len(frames)} frames")
    patient, video = (pd.factorize(frames[column])[0] for column in IDS)
    ring = np.random.default_rng(seed).permutation(patient.max() + 1)
    partner = np.empty_like(ring)
    partner[ring] = np.roll(ring, 1)
    first = pd.Series(video).groupby(patient).transform("min").to_numpy() == video

    def nearest(block: np.ndarray, start: int) -> np.ndarray:
        rows = np.arange(start, start + len(block))
        kin = patient[rows][:, None] == patient
        twin = video[rows][:, None] == video
        self_ = rows[:, None] == np.arange(len(patient))
        one = (partner[patient[rows]][:, None] == patient) & ~first & ~kin
        masks = (twin & ~self_, kin & ~twin, one, ~kin)
        return np.stack([np.where(mask, block, np.inf).min(1) for mask in masks], axis=1)

    blocks = pairwise_distances_chunked(features, metric=metric, reduce_func=nearest)
    table = np.concatenate(list(blocks)) * _unit(metric, features)
    table[np.isinf(table)] = np.nan
    return pd.DataFrame(table, columns=list(RELATIONS), index=frames.index)


def chance_threshold(strangers: np.ndarray, rate: float) -> float:
    """Return how near a frame must be to count as a near duplicate.

    The null is the distance to the *nearest* frame of any other patient, not to a random one:
    among thousands of candidates some stranger is always nearer than the first percentile of all
    pairs. Frames strictly below the threshold are then at most `rate` of all frames if nobody
    but strangers is searched; fewer, if fewer strangers are searched.

    Args:
        strangers: (n,) distances to the nearest frame of another patient; missing ones are left
            out.
        rate: Share of frames that may be near duplicates by chance, in (0, 1).

    Returns:
        The threshold: a pair is a near duplicate if its distance is below it.

    Raises:
        ValueError: `rate` is out of range or there is no distance.
    """
    if not 0 < rate < 1:
        raise ValueError(f"rate must lie between 0 and 1, got {rate}")
    known = np.asarray(strangers, float)
    known = known[~np.isnan(known)]
    if not len(known):
        raise ValueError("no distances between patients: one patient has no stranger")
    return float(np.quantile(known, rate, method="lower"))


def describe_relations(kin: pd.DataFrame, limit: float) -> pd.DataFrame:
    """Sum up how near relatives are.

    Args:
        kin: Of `nearest_by_relation`.
        limit: Of `chance_threshold`.

    Returns:
        One row a relation: nearest (its name), frames (that have such a relative), median
        distance, limit, share near (of those frames, in [0, 1]).
    """
    rows = []
    for relation, distance in kin.items():
        known = distance.dropna()
        row = {"nearest": relation, "frames": len(known), "median distance": known.median()}
        rows.append(row | {"limit": limit, "share near": (known < limit).mean()})
    return pd.DataFrame(rows)


def find_twins(
    features: np.ndarray,
    metric: str,
    split: pd.Series,
    limit: float,
    within: pd.Series | None = None,
) -> pd.DataFrame:
    """Find the nearest training frame of each test frame.

    Args:
        features: (n, d), see `find_nearest`.
        metric: "hamming" or "cosine".
        split: (n,) train, val or test.
        limit: Of `chance_threshold`.
        within: (n,) group of each frame, such as the patient, to search no training frames but
            those of the same group; test frames of a group without any are left out.

    Returns:
        One row a test frame: row and twin (row numbers of the test frame and of the nearest
        training frame), distance, near (whether below the limit).

    Raises:
        ValueError: No test frame has a training frame to be compared with.
    """
    group = np.zeros(len(split), int) if within is None else pd.factorize(within)[0]
    train, test = (np.flatnonzero(split == name) for name in ("train", "test"))
    parts = []
    for one in np.intersect1d(group[train], group[test]):
        mine, theirs = test[group[test] == one], train[group[train] == one]
        distance, index = find_nearest(features[mine], features[theirs], metric)
        parts.append(pd.DataFrame({"row": mine, "twin": theirs[index], "distance": distance}))
    if not parts:
        raise ValueError("no test frame has a training frame to be compared with")
    table = pd.concat(parts).sort_values("row", ignore_index=True)
    return table.assign(near=table["distance"] < limit)


def _unit(metric: str, features: np.ndarray) -> int:
    """What scikit-learn's distance is multiplied by: its Hamming distance is a share of bits."""
    return features.shape[1] if metric == "hamming" else 1
