"""What a split that leaks adds to an F1, for notebook A3.

Exams on both sides of a split, ours and the paper's; near-duplicate frames; trainings that differ
in nothing but what they know of the patients they are tested on; their F1s compared; the figures.

One meaning everywhere: `frames` has a row a frame (patient_id, video_id, exam_id, frame, label) and
is numbered from 0 whatever its index; `features` are its fingerprints (n, d), bool bits of hashes
or float embeddings; a `split` names train, val or test for each row; `limit` comes from
`chance_threshold`, `answers` from `run_trainings`; `stats` and `seed` are the bootstrap's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import imagehash
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.lines import Line2D
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize
from torch import Tensor

from cag_utils.keyframes import network
from cag_utils.keyframes.evaluation import class_f1s, confusions
from cag_utils.keyframes.labels import LATERALITY, MERGES, SIX_CLASSES, decide
from cag_utils.keyframes.network import FrameSet, pick_device
from cag_utils.keyframes.training import train_cnn
from cag_utils.profiles import Cnn, Stats
from cag_utils.splits import split_counts, split_groups
from cag_utils.stats import Estimate, cluster_bootstrap

RELATIONS = ("same video", "same patient, other video", "one other patient", "any other patient")
COMPONENTS = 64  # of an embedding after whitening; choice: more are noise with few thousand frames
TESTED_SHARE = 0.4  # of a patient's videos; choice: a video split leaves more siblings in train
BATCH = 128  # pictures at a time: memory only, no influence on the result
IDS = ["patient_id", "video_id", "frame", "label"]
BASE = "patient"  # the arm without a leak, which the others are compared with
Drawn = tuple[plt.Figure, pd.DataFrame]  # a figure, and the rows behind it for `save_figure`
AXIS = {"hash": "Bits that differ, of 64", "embedding": "Cosine distance of embeddings"}


def least_shared_cases(cases: Mapping[str, int], n_exams: int) -> dict[str, int]:
    """Return how many of each split's exams must also be in train, knowing only the counts.

    Two sets of exams drawn from `n_exams` share at least the sum of their sizes less `n_exams`.

    Args:
        cases: Split name to number of exams, with the key "train".

    Raises:
        ValueError: A split has more exams than there are.
    """
    if max(cases.values()) > n_exams:
        raise ValueError(f"a split of {max(cases.values())} exams out of {n_exams}")
    shared = {name: max(0, cases["train"] + n - n_exams) for name, n in cases.items()}
    return shared | {"train": cases["train"]}


def tabulate_cases(
    frames: pd.DataFrame, splits: Mapping[str, pd.Series], paper: Mapping[str, int], n_exams: int
) -> pd.DataFrame:
    """Put the exams that cross our splits beside those that must cross the paper's.

    Args:
        splits: What was kept together (patient, video, frame) to its split.
        paper: Cases of the paper's train, val and test.
        n_exams: Exams the paper had in all.

    Returns:
        One row a split by one rule: split by, split, cases, also in train (of the paper's, the
        least that its counts allow).
    """
    least, rule = least_shared_cases(paper, n_exams), "video (paper; at least)"
    rows = [(rule, name, paper[name], shared) for name, shared in least.items()]
    for by, split in splits.items():
        exams = frames.groupby(split)["exam_id"].agg(set)
        for name in ("train", "val", "test"):
            rows.append((by, name, len(exams[name]), len(exams[name] & exams["train"])))
    return pd.DataFrame(rows, columns=["split by", "split", "cases", "also in train"])


def split_rows(frames: pd.DataFrame, by: str, cnn: Cnn, seed: int) -> pd.Series:
    """Split as notebook 01 does (`cnn`'s shares), by "patient" or "video", or by "frame".

    Raises:
        ValueError: As `splits.split_groups`.
    """
    frame = frames["video_id"] + "/" + frames["frame"].astype(str)
    groups = frame if by == "frame" else frames[f"{by}_id"]
    shares = {"train": 1 - cnn.val_share - cnn.test_share, "val": cnn.val_share}
    return groups.map(split_groups(groups, shares | {"test": cnn.test_share}, seed))


def hash_frames(pictures: Tensor) -> np.ndarray:
    """Compute (n, 64) bool of (n, 1, px, px) uint8: the signs of the lowest cosine frequencies.

    Such a hash sees the backdrop, the shutters and the view; a vessel is too thin for it.

    Source:
        Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010; computed
        by the library imagehash.
    """
    hashes = [imagehash.phash(Image.fromarray(grey[0])).hash.ravel() for grey in pictures.numpy()]
    return np.array(hashes, bool).reshape(-1, 64)


@torch.inference_mode()
def embed_frames(pictures: Tensor, name: str) -> np.ndarray:
    """Compute the pooled features of a network that was not trained on these frames.

    The network is the trunk that trainings start from: one trained in the comparison would have
    seen some of the frames and not others, and its features could tell them apart for that reason.
    A few directions (side, view, contrast) carry most of such features' variance and would hide all
    else, so the features are whitened: each principal component counts alike.

    Args:
        pictures: (n, 1, px, px) uint8, two or more.
        name: See `network.network`; its published weights are used.

    Returns:
        (n, d) float32, rows of length 1; d is 64, or a tenth of n (at least 2) if that is less.

    Source:
        Whitening for retrieval: Jegou and Chum, ECCV 2012.
    """
    device = pick_device()
    model = network.build_model(name, pretrained=True).to(device).eval()
    rows = []
    for batch in pictures.split(BATCH):
        with network.autocast(device):
            features = model.forward_features(network.prepare(batch.to(device), name))
            pooled = model.forward_head(features, pre_logits=True)
        rows.append(pooled.float().flatten(1).cpu())
    pooled = torch.cat(rows).numpy().astype(np.float64)
    n_components = min(COMPONENTS, max(2, len(pooled) // 10), *pooled.shape)
    whitened = PCA(n_components, whiten=True, svd_solver="full").fit_transform(pooled)
    return normalize(whitened).astype(np.float32)


def find_nearest(queries: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find each query's nearest reference.

    Args:
        queries: (n, d) features.
        references: (m, d) features, m >= 1.

    Returns:
        Distances (n,), of hashes in bits that differ, of embeddings one less their cosine; and row
        numbers (n,) of the references.
    """
    metric, unit = _metric(references)
    model = NearestNeighbors(n_neighbors=1, algorithm="brute", metric=metric).fit(references)
    distance, index = model.kneighbors(queries)
    return distance[:, 0] * unit, index[:, 0]


def _metric(features: np.ndarray) -> tuple[str, int]:
    """Scikit-learn's metric and what to multiply it by: its Hamming distance is a share of bits."""
    return ("hamming", features.shape[1]) if features.dtype == bool else ("cosine", 1)


def nearest_by_relation(features: np.ndarray, frames: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Find how near each frame's nearest relative of each kind is.

    The nearest of a hundred is nearer than the nearest of ten, whoever they are. So the fair
    counterpart of *same patient, other video* is *one other patient*: each patient gets another
    one at random, who leaves out one video as well.

    Returns:
        `frames`' index, columns `RELATIONS`, distances as `find_nearest` gives them; missing where
        a frame has no such relative.
    """
    metric, unit = _metric(features)
    patient, video = (pd.factorize(frames[column])[0] for column in ("patient_id", "video_id"))
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
    table = np.concatenate(list(blocks)) * unit
    table[np.isinf(table)] = np.nan
    return pd.DataFrame(table, columns=list(RELATIONS), index=frames.index)


def chance_threshold(strangers: np.ndarray, rate: float) -> float:
    """Return how near a frame must be to count as a near duplicate.

    The null is the *nearest* frame of any other patient, not a random one: among thousands some
    stranger is always nearer than the first percentile of all pairs. At most `rate` of all frames
    then lie strictly below the threshold if nobody but strangers is searched.

    Args:
        strangers: (n,) distances to the nearest frame of another patient; missing ones do not
            count.
        rate: Share of frames that may be near duplicates by chance, in (0, 1).

    Raises:
        ValueError: `rate` is out of range or there is no distance.
    """
    if not 0 < rate < 1:
        raise ValueError(f"rate must lie between 0 and 1, got {rate}")
    known = pd.Series(strangers, dtype=float).dropna()
    if known.empty:
        raise ValueError("no distances between patients: one patient has no stranger")
    return float(np.quantile(known, rate, method="lower"))


def describe_relations(kin: pd.DataFrame, limit: float) -> pd.DataFrame:
    """Sum up how near relatives are, of `nearest_by_relation`.

    Returns:
        One row a relation: nearest (its name), frames (that have such a relative), median
        distance, limit, share near (of those frames, in [0, 1]).
    """
    near = (kin < limit).sum() / kin.count()
    found = {"frames": kin.count(), "median distance": kin.median(), "limit": limit}
    return pd.DataFrame(found | {"share near": near}).rename_axis("nearest").reset_index()


def find_twins(
    features: np.ndarray, split: pd.Series, limit: float, within: pd.Series | None = None
) -> pd.DataFrame:
    """Find the nearest training frame of each test frame.

    Args:
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
        distance, index = find_nearest(features[mine], features[theirs])
        parts.append(pd.DataFrame({"row": mine, "twin": theirs[index], "distance": distance}))
    if not parts:
        raise ValueError("no test frame has a training frame to be compared with")
    table = pd.concat(parts).sort_values("row", ignore_index=True)
    return table.assign(near=table["distance"] < limit)


class Training(NamedTuple):
    """One network of the crossover. All arrays hold row numbers of the frames table."""

    name: str  # folder name, e.g. `repeat0_fold1_a_video`
    repeat: int  # which deal of the patients, from 0
    train: np.ndarray  # frames it learns from
    val: np.ndarray  # frames of patients who are in no other part, which pick the checkpoint
    # test frames by arm. "patient": nothing of the patient is in `train`; "video": other videos of
    # the patient are; "frame": other frames of the same videos are
    test: dict[str, np.ndarray]


def plan_splits(splits: Mapping[str, pd.Series]) -> list[Training]:
    """Plan one training a split (name to train, val or test a row); its one arm has that name."""
    plan = []
    for name, split in splits.items():
        train, val, test = (np.flatnonzero(split == part) for part in ("train", "val", "test"))
        plan.append(Training(f"by_{name}", 0, train, val, {name: test}))
    return plan


def plan_crossover(
    frames: pd.DataFrame, n_folds: int, val_share: float, seed: int, repeat: int
) -> list[Training]:
    """Plan trainings that differ only in what they know of the test patients.

    Validation patients are set apart. The others are dealt into `n_folds` pairs of groups, a and
    b, and each patient's videos into *tested* and *lent*. Of a tested video every other frame is
    tested, the rest are *spare*. In each fold four networks learn from all patients of the other
    folds, and in addition from equally many frames:

    - lent by a, or lent by b: tested on a and on b, once with and once without the leak of a split
      by video;
    - spare of a, or spare of b, filled up with lent ones: tested on the same group, with the leak
      of a split by frame.

    So each test frame is answered in three ways, by networks that saw as many frames of as many
    patients. Patients with a single video have nothing to lend: they only ever train.

    Args:
        n_folds: Pairs of groups, 2 or more.
        val_share: Share of the patients set apart for validation.
        seed: Of the deal; `repeat` is added.

    Returns:
        4 * `n_folds` trainings.

    Raises:
        ValueError: `n_folds` is below 2, too few patients have two videos, or too few videos two
            frames.
    """
    if n_folds < 2:
        raise ValueError(f"n_folds must be 2 or more, got {n_folds}: one fold trains on no others")
    seed += repeat
    role = _deal_patients(frames, n_folds, val_share, seed)
    part = _deal_frames(frames, seed)
    val = np.flatnonzero(role == "val")
    rng, plan = np.random.default_rng(seed), []
    for fold in range(n_folds):
        groups = {side: role == f"{fold}{side}" for side in "ab"}
        others = np.flatnonzero((role != "val") & ~groups["a"] & ~groups["b"])
        parts = {
            (name, side): rng.permutation(np.flatnonzero(own & (part == name)))
            for name in ("tested", "lent", "spare")
            for side, own in groups.items()
        }
        extra, tested = _share_out(frames, parts)
        for (side, arm), rows in extra.items():
            other = "b" if side == "a" else "a"
            test = {arm: tested[side]} | ({"patient": tested[other]} if arm == "video" else {})
            name = f"repeat{repeat}_fold{fold}_{side}_{arm}"
            train = np.sort(np.concatenate([others, rows]))
            plan.append(Training(name, repeat, train, val, test))
    return plan


def _share_out(
    frames: pd.DataFrame, parts: dict[tuple[str, str], np.ndarray]
) -> tuple[dict[tuple[str, str], np.ndarray], dict[str, np.ndarray]]:
    """Return what each side and arm adds to train, equally many frames, and each side's test.

    A tested frame is kept if its patient did lend and its video did spare a frame: otherwise it
    would be as unknown in the leaky arms as in the other.
    """
    patient, video = (frames[column].to_numpy() for column in ("patient_id", "video_id"))
    n_extra = min(len(parts["lent", side]) for side in "ab")
    extra, kept = {}, {}
    for side in "ab":
        lent, near = parts["lent", side][:n_extra], parts["spare", side][:n_extra]
        extra[side, "video"] = lent
        extra[side, "frame"] = np.concatenate([near, lent[: n_extra - len(near)]])
        tested = parts["tested", side]
        known = np.isin(patient[tested], patient[lent]) & np.isin(video[tested], video[near])
        if not known.any():
            raise ValueError("no test frame is left: too few frames a video, or too few patients")
        kept[side] = np.sort(tested[known])
    return extra, kept


def _deal_patients(frames: pd.DataFrame, n_folds: int, val_share: float, seed: int) -> np.ndarray:
    """Return each row's role: "val", a fold and side such as "0a", or "rest"."""
    n_videos = frames.groupby("patient_id")["video_id"].nunique()
    n_val = split_counts(len(n_videos), {"rest": 1 - val_share, "val": val_share})["val"]
    order = np.random.default_rng(seed).permutation(n_videos.index)
    lenders = [patient for patient in order[n_val:] if n_videos[patient] > 1]
    names = [f"{fold}{side}" for fold in range(n_folds) for side in "ab"]
    if len(lenders) < len(names):
        raise ValueError(
            f"{len(lenders)} patients outside validation have two videos or more, and {n_folds} "
            f"folds need {len(names)}; add patients or lower n_folds"
        )
    strata = {patient: f"{n_videos[patient]:06d}" for patient in lenders}
    groups = split_groups(lenders, dict.fromkeys(names, 1 / len(names)), seed, strata)
    roles = dict.fromkeys(order[:n_val], "val") | groups
    return frames["patient_id"].map(roles).fillna("rest").to_numpy(str)


def _deal_frames(frames: pd.DataFrame, seed: int) -> np.ndarray:
    """Return each row's part: tested and spare take turns in tested videos, the rest is lent.

    A patient's videos are dealt left and right alike; a lone video is lent.
    """
    side = frames["label"].map(LATERALITY)
    of_video = side.groupby(frames["video_id"]).agg(lambda labels: labels.mode()[0])
    shares = {"lent": 1 - TESTED_SHARE, "tested": TESTED_SHARE}
    dealt: dict[str, str] = {}
    for _, videos in frames.groupby("patient_id")["video_id"]:
        strata = {video: of_video[video] for video in videos.unique()}
        if len(strata) > 1:
            dealt |= split_groups(strata, shares, seed, strata)
    part = frames["video_id"].map(dealt).fillna("lent").to_numpy(object)
    turn = frames.groupby("video_id")["frame"].rank().to_numpy() % 2
    return np.where((part == "tested") & (turn == 0), "spare", part)


def describe_plan(plan: Sequence[Training], frames: pd.DataFrame) -> pd.DataFrame:
    """Count what each training holds, and check that no leak is there but the one meant.

    Returns:
        One row a training of `plan_crossover`: training, train frames, train patients, val frames,
        and for each arm the number of test frames.

    Raises:
        ValueError: A tested frame is in train, a tested patient is in val, or a network knows
            more or less of the tested patients than its arm says.
    """
    rows = []
    for t in plan:
        train, val = frames.iloc[t.train], frames.iloc[t.val]
        for arm, test in ((arm, frames.iloc[rows]) for arm, rows in t.test.items()):
            known = {k: test[k].isin(train[k]) for k in ("patient_id", "video_id")}
            meant = known["patient_id"].all() if arm != "patient" else not known["patient_id"].any()
            wrong = {"video": known["video_id"].any(), "frame": not known["video_id"].all()}
            if not meant or wrong.get(arm) or test["patient_id"].isin(val["patient_id"]).any():
                raise ValueError(f"{t.name}: what it knows of its test patients is not {arm!r}")
            if len(np.intersect1d(t.test[arm], t.train)):
                raise ValueError(f"{t.name} trains on frames that it is tested on")
        row = {"training": t.name, "train frames": len(train)}
        row |= {"train patients": train["patient_id"].nunique(), "val frames": len(val)}
        rows.append(row | {f"tested: {arm}": len(test) for arm, test in t.test.items()})
    return pd.DataFrame(rows)


def flag_twins(plan: Sequence[Training], features: np.ndarray, limit: float) -> pd.DataFrame:
    """Say of each test frame and arm whether its network saw a near duplicate.

    Returns:
        One row a deal, arm and test frame: repeat, arm, row, near (below the limit).
    """
    parts = []
    for t in plan:
        for arm, rows in t.test.items():
            near = find_nearest(features[rows], features[t.train])[0] < limit
            found = {"repeat": t.repeat, "arm": arm, "row": rows, "near": near}
            parts.append(pd.DataFrame(found))
    return pd.concat(parts, ignore_index=True)


def run_trainings(
    plan: Sequence[Training],
    frames: pd.DataFrame,
    data: FrameSet,
    cnn: Cnn,
    folder: Path,
    seed: int,
    epochs: int,
) -> pd.DataFrame:
    """Train every network of a plan and collect the answers to each test frame.

    Args:
        plan: Of `plan_splits`, or of `plan_crossover`, one deal or more.
        data: Its pictures and classes, in the same order.
        folder: A folder a training is made in it.
        seed: Initial weights, order, augmentation; the number of the deal is added.

    Returns:
        One row an arm, deal and test frame: patient_id, video_id, frame, label, row (number in
        `frames`), for each of `MERGES` the class decided for, arm, repeat. Each test frame of a
        crossover's deal has one row in each of the arms "patient", "video" and "frame".

    Raises:
        ValueError: A part of a training has no frames.
    """
    parts = []
    for t in plan:
        said = _fit_predict(data, t, cnn, folder / t.name, seed + t.repeat, epochs)
        arm = np.repeat(list(t.test), [len(part) for part in t.test.values()])
        parts.append(said.assign(arm=arm, repeat=t.repeat))
    answers = pd.concat(parts).rename_axis("row").reset_index()
    return pd.concat([frames[IDS].iloc[answers["row"]].reset_index(drop=True), answers], axis=1)


def _fit_predict(
    data: FrameSet, t: Training, cnn: Cnn, folder: Path, seed: int, epochs: int
) -> pd.DataFrame:
    """Train one network and return its classes, for each of `MERGES`, of the test rows.

    Its weights are removed: an audit makes a dozen of them, and only the answers count.
    """
    test = np.concatenate(list(t.test.values()))
    rows = {"train": t.train, "val": t.val, "test": test}
    if empty := [name for name, own in rows.items() if not len(own)]:
        raise ValueError(f"no frames in {empty}: label more patients or change the shares")
    folder.mkdir(parents=True, exist_ok=True)
    sets = {k: FrameSet(data.pictures[rows[k]], data.targets[rows[k]]) for k in ("train", "val")}
    train_cnn(sets, cnn, folder, seed, epochs)
    device = pick_device()
    model, facts = network.load_model(folder, device)
    pictures = data.pictures[test]
    found = network.probabilities(model, facts["model"], pictures, BATCH, device, facts)
    p = pd.DataFrame(np.concatenate(list(found)), columns=list(SIX_CLASSES))
    for name in ("best.safetensors", "model.json"):
        (folder / name).unlink()
    return pd.DataFrame({name: decide(p, merge) for name, merge in MERGES.items()}, test)


def estimate_f1(
    answers: pd.DataFrame, name: str, stats: Stats, seed: int, less: pd.DataFrame | None = None
) -> Estimate:
    """Estimate a weighted F1, or by how much it lies above another, with a bootstrap over patients.

    A drawn patient brings the answers of both sides: on the same test frames that is a paired
    comparison, and two test sets that share some patients keep what they share.

    Args:
        name: One of `MERGES`.
        less: Answers like the first, whose F1 is taken off; None for nothing.

    Returns:
        The F1 or the gain; the interval covers the choice of patients, not chance in a training.
    """
    sides = [answers] if less is None else [answers, less]
    rows = pd.concat(sides)
    is_of = np.repeat(np.eye(len(sides)), [len(own) for own in sides], axis=0)
    cells = is_of[:, :, None, None] * confusions(rows, name)[1][:, None]

    def gain(sums: np.ndarray) -> np.ndarray:
        f1s = class_f1s(sums)[..., -1]
        return f1s[..., 0] - f1s[..., 1:].sum(-1)

    return cluster_bootstrap(rows["patient_id"], cells, gain, *stats.draws(seed))[0]


def tabulate_f1(answers: pd.DataFrame, stats: Stats, seed: int) -> pd.DataFrame:
    """Put the three F1s of each arm beside their gains over the arm `BASE`.

    Returns:
        One row an F1 and arm, the base first: f1_name, arm, f1, low, high, gain, gain_low,
        gain_high (0 for the base itself), frames, patients.

    Raises:
        KeyError: No answers of the base.
    """
    names = sorted(answers["arm"].unique(), key=lambda arm: arm != BASE)  # else as they come
    arms = {arm: answers[answers["arm"] == arm] for arm in names}
    rows = []
    for name in MERGES:
        for arm, own in arms.items():
            f1 = estimate_f1(own, name, stats, seed)
            gain = estimate_f1(own, name, stats, seed, less=arms[BASE])
            rows.append((name, arm, *f1, *gain, len(own), own["patient_id"].nunique()))
    columns = "f1_name arm f1 low high gain gain_low gain_high frames patients".split()
    return pd.DataFrame(rows, columns=columns)


def tabulate_by_twin(
    answers: pd.DataFrame, twins: pd.DataFrame, stats: Stats, seed: int
) -> pd.DataFrame:
    """Put the gains of frames with and without a near duplicate in train side by side.

    Returns:
        Rows of `tabulate_f1` for the other arms, with the columns near_duplicate ("yes", "no"; only
        one of them if `flag_twins` found all frames of one kind) and base_f1, the F1 of the same
        frames in the base arm.

    Raises:
        ValueError: A frame of the answers has no flag.
    """
    parts = []
    for arm in sorted(set(answers["arm"]) - {BASE}):
        flags = twins[twins["arm"] == arm].set_index(["repeat", "row"])["near"]
        both = answers[answers["arm"].isin([BASE, arm])].join(flags, on=["repeat", "row"])
        if both["near"].isna().any():
            raise ValueError(f"{both['near'].isna().sum()} answers have no flag in arm {arm!r}")
        for near, rows in both.groupby("near"):
            table = tabulate_f1(rows, stats, seed)
            base_f1 = table[table["arm"] == BASE].set_index("f1_name")["f1"]
            gains = table[table["arm"] == arm].assign(near_duplicate="yes" if near else "no")
            parts.append(gains.assign(base_f1=gains["f1_name"].map(base_f1)))
    return pd.concat(parts, ignore_index=True)


def draw_distances(kin: Mapping[str, pd.DataFrame], limits: Mapping[str, float]) -> Drawn:
    """Draw how near frames' nearest relatives are, one panel a fingerprint.

    Args:
        kin: Fingerprint ("hash", "embedding") to the table of `nearest_by_relation`.
        limits: Fingerprint to its limit, a dotted line.
    """
    fig, axes = plt.subplots(1, len(kin), figsize=(6.9, 2.6), layout="constrained", sharey=True)
    colours = dict(zip(RELATIONS, sns.color_palette("colorblind"), strict=False))
    tidy = []
    for ax, (kind, table) in zip(axes, kin.items(), strict=True):
        long = table.melt(var_name="nearest", value_name="distance").dropna()
        sns.ecdfplot(long, x="distance", hue="nearest", palette=colours, ax=ax, legend=False)
        ax.axvline(limits[kind], color="0.4", linestyle=":")
        ax.set(xlabel=AXIS[kind], ylabel="Share of frames")
        tidy.append(long.assign(fingerprint=kind))
    lines = [Line2D([], [], color=colour, label=name) for name, colour in colours.items()]
    lines.append(Line2D([], [], color="0.4", linestyle=":", label="limit"))
    fig.legend(handles=lines, loc="outside upper center", ncol=5, fontsize=7)
    return fig, pd.concat(tidy)


def draw_pairs(twins: pd.DataFrame, frames: pd.DataFrame, folder: Path, title: str) -> Drawn:
    """Draw the six closest pairs of a test and a training frame, one pair a patient.

    Args:
        twins: Of `find_twins`, searched within patients.
        frames: patient_id, video_id, frame, label, png (relative to `folder`).
        folder: Run folder of notebook 00.
    """
    sides = [frames.iloc[twins[k]][[*IDS, "png"]].reset_index(drop=True) for k in ("row", "twin")]
    pairs = sides[0].join(sides[1], lsuffix="_test", rsuffix="_train")
    pairs["distance"] = twins["distance"].to_numpy()
    shown = pairs.sort_values("distance").drop_duplicates("patient_id_test").head(6)
    fig, axes = plt.subplots(2, 6, figsize=(6.9, 2.9), layout="constrained")
    for ax in axes.flat:
        ax.axis("off")
    for column, (_, pair) in zip(axes.T, shown.iterrows(), strict=False):
        for ax, side in zip(column, ("test", "train"), strict=True):
            ax.imshow(plt.imread(folder / pair[f"png_{side}"]), cmap="gray", vmin=0, vmax=1)
            ax.set_title(f"{side}: {pair[f'label_{side}']}", fontsize=6)
        style = {"fontsize": 6, "ha": "center", "va": "top", "transform": column[1].transAxes}
        column[1].text(0.5, -0.1, f"distance {pair['distance']:.3f}", **style)
    fig.suptitle(title, fontsize=8)
    kept = shown.rename(columns={"patient_id_test": "patient_id"})
    return fig, kept.drop(columns=["patient_id_train", "png_test", "png_train"])


def draw_gains(resplit: pd.DataFrame, fair: pd.DataFrame, deals: pd.DataFrame) -> Drawn:
    """Draw gains in F1 over the patient split with their intervals, one panel an F1.

    Args:
        resplit: Of `tabulate_f1`, a new split each with its own test frames.
        fair: Likewise, of the same test frames.
        deals: As `fair`, deal by deal, with the column repeat: small upright strokes.
    """
    named = {"new split": resplit, "same frames": fair, "one deal": deals}
    drawn = pd.concat([table.assign(design=name) for name, table in named.items()])
    drawn = drawn[drawn["arm"] != BASE]
    drawn["where"] = drawn["design"].replace("one deal", "same frames") + ", " + drawn["arm"]
    fig, axes = plt.subplots(1, len(MERGES), figsize=(6.9, 2.1), layout="constrained", sharey=True)
    for ax, name in zip(axes, MERGES, strict=True):
        own = drawn[drawn["f1_name"] == name]
        whole, single = own[own["design"] != "one deal"], own[own["design"] == "one deal"]
        span = [whole["gain"] - whole["gain_low"], whole["gain_high"] - whole["gain"]]
        ax.errorbar(whole["gain"], whole["where"], xerr=span, fmt="o", markersize=4, capsize=2)
        ax.plot(single["gain"], single["where"], "|", color="0.2", markersize=12)
        ax.axvline(0, color="0.4", linewidth=0.8)
        ax.set(title=name.replace("_f1", " F1").replace("_", "-"), ylim=(-0.5, len(whole) - 0.5))
    axes[1].set(xlabel="Gain in weighted F1 over the patient split")
    return fig, drawn
