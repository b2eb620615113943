"""Near duplicates: fingerprints against worked pictures, neighbours against brute force."""

import imagehash
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from cag_utils import duplicates
from cag_utils.duplicates import (
    RELATIONS,
    chance_threshold,
    describe_relations,
    embed_frames,
    find_nearest,
    find_twins,
    hash_frames,
    nearest_by_relation,
)

FRAMES = pd.DataFrame(
    {"patient_id": list("aaaabbbc"), "video_id": ["a1", "a1", "a2", "a3", "b1", "b1", "b2", "c1"]}
)


def noise(n, px=48, seed=0):
    pictures = np.random.default_rng(seed).integers(0, 256, (n, 1, px, px), dtype=np.uint8)
    return torch.from_numpy(pictures)


def test_the_difference_hash_of_a_ramp_worked_by_hand():
    # brightness rises to the right: each of the 64 neighbours is brighter, so every bit is set
    ramp = torch.arange(0, 180, 20, dtype=torch.uint8).expand(1, 1, 8, 9)
    assert hash_frames(ramp, "dhash").all()
    assert not hash_frames(ramp.flip(3), "dhash").any()


@pytest.mark.parametrize("kind", ["phash", "dhash"])
def test_hashes_are_the_librarys(kind):
    pictures = noise(3)
    got = hash_frames(pictures, kind)
    assert got.shape == (3, 64) and got.dtype == bool
    for row, grey in zip(got, pictures.numpy(), strict=True):
        assert (row == getattr(imagehash, kind)(Image.fromarray(grey[0])).hash.ravel()).all()


def test_a_hash_sees_through_brightness_but_not_through_a_turn():
    smooth = nn.functional.interpolate(noise(1, 8).float() * 0.7, size=96, mode="bicubic")
    one = smooth.clamp(0, 200).to(torch.uint8)
    a, brighter, turned = (hash_frames(x)[0] for x in (one, one + 40, one.transpose(2, 3)))
    assert (a != brighter).sum() <= 2 < 10 < (a != turned).sum()


def test_no_pictures_have_no_hashes():
    assert hash_frames(noise(3)[:0]).shape == (0, 64)


def test_an_unknown_hash_is_refused():
    with pytest.raises(ValueError, match="did you mean 'phash'"):
        hash_frames(noise(1), "phas")


class Pooled(nn.Module):
    """Stands where a network does: its features are the picture's four quadrant means."""

    def forward_features(self, x):
        return nn.functional.adaptive_avg_pool2d(x[:, :1].float(), 2)

    def forward_head(self, features, pre_logits):
        assert pre_logits
        return features.flatten(1)


@pytest.fixture
def pooled(monkeypatch):
    monkeypatch.setattr(duplicates, "build_model", lambda name, pretrained: Pooled())
    monkeypatch.setattr(duplicates, "prepare", lambda pictures, name: pictures)


def test_embeddings_are_whitened_rows_of_length_one(pooled):
    pictures = noise(60, 8)
    got = embed_frames(pictures, "convnext_twin", batch_size=7)
    assert got.shape == (60, 4) and got.dtype == np.float32  # a tenth of 60 is 6, features are 4
    np.testing.assert_allclose((got**2).sum(1), 1, atol=1e-5)
    means = nn.functional.adaptive_avg_pool2d(pictures.float(), 2).flatten(1).numpy()
    centred = (means - means.mean(0)).astype(np.float64)
    inverse = np.linalg.inv(np.cov(centred.T))  # Mahalanobis: what whitening makes of cosines
    scale = np.sqrt(np.einsum("ij,jk,ik->i", centred, inverse, centred))
    cosines = centred @ inverse @ centred.T / scale[:, None] / scale
    np.testing.assert_allclose(got @ got.T, cosines, atol=0.02)  # features come in bfloat16


def test_few_pictures_get_few_components(pooled):
    assert embed_frames(noise(30, 8), "convnext_twin").shape == (30, 3)
    assert embed_frames(noise(5, 8), "convnext_twin").shape == (5, 2)


def test_the_same_picture_twice_is_at_distance_nought(pooled):
    pictures = noise(40, 8)
    features = embed_frames(torch.cat([pictures, pictures[:5]]), "convnext_twin")
    distance, index = find_nearest(features[40:], features[:40], "cosine")
    assert index.tolist() == [0, 1, 2, 3, 4] and np.abs(distance).max() < 1e-5


def test_one_picture_cannot_be_compared():
    with pytest.raises(ValueError, match="nothing to compare"):
        embed_frames(noise(1), "convnext_twin")


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_nearest_is_what_brute_force_finds(n, m, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.random((n, 64)) < 0.5, rng.random((m, 64)) < 0.5
    bits = (a[:, None] != b).sum(2)
    distance, index = find_nearest(a, b, "hamming")
    np.testing.assert_allclose(distance, bits.min(1))
    np.testing.assert_array_equal(bits[np.arange(n), index], bits.min(1))


@pytest.mark.parametrize(
    "references, metric, match", [(0, "hamming", "empty"), (2, "l2", "metric")]
)
def test_nearest_refuses(references, metric, match):
    with pytest.raises(ValueError, match=match):
        find_nearest(np.ones((2, 8), bool), np.ones((references, 8), bool), metric)


def test_relations_against_a_loop_over_all_pairs():
    rng = np.random.default_rng(0)
    patients = rng.integers(0, 5, 40)
    frames = pd.DataFrame({"patient_id": patients.astype(str)})
    frames["video_id"] = frames["patient_id"] + "/" + pd.Series(rng.integers(0, 3, 40).astype(str))
    bits = rng.random((40, 64)) < 0.5
    got = nearest_by_relation(bits, frames, "hamming")
    for i in range(40):
        best = dict.fromkeys(RELATIONS, np.inf)
        for j in set(range(40)) - {i}:
            same = frames.iloc[i] == frames.iloc[j]
            name = RELATIONS[0] if same["video_id"] else RELATIONS[1]
            name = name if same["patient_id"] else RELATIONS[3]
            best[name] = min(best[name], (bits[i] != bits[j]).sum())
        for name in (RELATIONS[0], RELATIONS[1], RELATIONS[3]):
            if np.isinf(best[name]):
                assert np.isnan(got[name][i])
            else:
                assert got[name][i] == pytest.approx(best[name])
    known = got["one other patient"].dropna()
    assert len(known) and (known >= got["any other patient"][known.index] - 1e-9).all()


def test_the_one_other_patient_is_one_and_leaves_a_video_out():
    # each patient shines in dimensions of their own, each video in one of them
    frames = pd.DataFrame(
        {"patient_id": list("aabbcc"), "video_id": ["a1", "a2", "b1", "b2", "c1", "c2"]}
    )
    got = nearest_by_relation(np.eye(6), frames, "cosine")
    assert (got["one other patient"] == 1).all()
    lone = frames[frames["video_id"].str.endswith("1")].reset_index(drop=True)
    assert nearest_by_relation(np.eye(3), lone, "cosine")["one other patient"].isna().all()


def test_one_patient_has_no_strangers():
    frames = FRAMES[FRAMES["patient_id"] == "a"]
    got = nearest_by_relation(np.eye(4), frames, "cosine")
    assert got[["one other patient", "any other patient"]].isna().all(axis=None)
    assert got["same video"].notna().tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    "features, frames, metric, match",
    [
        (np.eye(8), FRAMES.drop(columns="video_id"), "cosine", "video_id"),
        (np.eye(7), FRAMES, "cosine", "7 rows of features for 8"),
        (np.eye(8), FRAMES, "cosin", "did you mean 'cosine'"),
    ],
)
def test_relations_refuse(features, frames, metric, match):
    with pytest.raises(ValueError, match=match):
        nearest_by_relation(features, frames, metric)


def test_the_threshold_worked_by_hand():
    # of 101 distances 0..100, the 5 % quantile is 5; strictly below lie 0..4, five of 101
    assert chance_threshold(np.arange(101.0), 0.05) == 5


@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=60), st.floats(0.01, 0.99), st.integers(0, 3)
)
def test_at_most_the_rate_lies_below_the_threshold(distances, rate, n_missing):
    limit = chance_threshold(np.array([*distances, *[np.nan] * n_missing], float), rate)
    assert limit in distances
    assert np.mean(np.array(distances) < limit) <= rate


@pytest.mark.parametrize("rate, distances, match", [(0, [1], "rate"), (1, [1], "rate")])
def test_the_threshold_refuses_a_rate(rate, distances, match):
    with pytest.raises(ValueError, match=match):
        chance_threshold(np.array(distances, float), rate)


def test_the_threshold_needs_strangers():
    with pytest.raises(ValueError, match="no stranger"):
        chance_threshold(np.array([np.nan]), 0.01)


def test_relations_are_summed_up_without_the_missing():
    kin = pd.DataFrame({"same video": [0.0, 2.0, np.nan], "any other patient": [4.0, 5.0, 9.0]})
    got = describe_relations(kin, 4.5).set_index("nearest")
    assert got.loc["same video", ["frames", "median distance", "share near"]].tolist() == [2, 1, 1]
    assert got.loc["any other patient", "share near"] == pytest.approx(1 / 3)


def test_twins_are_rows_of_the_table_and_never_validation_frames():
    features = np.array([[1, 0], [0.9, 0.1], [0, 1], [1, 0], [0.1, 0.9]], float)
    split = pd.Series(["test", "train", "train", "val", "test"])
    got = find_twins(features, "cosine", split, 0.5)
    assert got["row"].tolist() == [0, 4] and got["twin"].tolist() == [1, 2]
    assert got["near"].all()
    assert not find_twins(features, "cosine", split, 1e-6)["near"].any()


def test_twins_within_a_patient():
    features = np.array([[1, 0], [0.9, 0.1], [0, 1], [0, 1], [0.5, 0.5]], float)
    split = pd.Series(["test", "train", "train", "test", "test"])
    patients = pd.Series(list("abaac"))  # the nearest to frame 0 is b's, but 2 is its own
    got = find_twins(features, "cosine", split, 0.5, patients)
    assert got["row"].tolist() == [0, 3] and got["twin"].tolist() == [2, 2]
    assert got["near"].tolist() == [False, True]


@pytest.mark.parametrize("patients", [None, pd.Series(["a", "b"])])
def test_twins_need_training_frames(patients):
    split = pd.Series(["test", "val" if patients is None else "train"])
    with pytest.raises(ValueError, match="no test frame has a training frame"):
        find_twins(np.eye(2), "cosine", split, 0.5, patients)
