import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from cag_utils.calibration import apply_temperature, fit_temperature, read_temperature, reliability
from cag_utils.labels import SIX_CLASSES
from cag_utils.profiles import Stats

STATS = Stats(n_resamples=200, level=0.95)


def test_ece_by_hand():
    # two bins of ten: (0.9, 0.9, 0.9, 0.9) 3 of 4 right: gap 0.15; (0.2) wrong: gap 0.2
    found = reliability([0.9] * 4 + [0.2], [1, 1, 1, 0, 0], list("aabbb"), STATS, 0, n_bins=10)
    assert found.ece.value == pytest.approx((4 * 0.15 + 1 * 0.2) / 5)
    assert found.bins["n"].tolist() == [1, 4]
    assert found.bins["right"].tolist() == [0.0, 0.75]
    assert found.bins["from_confidence"].tolist() == pytest.approx([0.1, 0.8])


def test_the_upper_edge_belongs_to_a_bin():
    found = reliability([0.5, 1.0, 0.0], [1, 1, 0], list("abc"), STATS, 0, n_bins=2)
    assert found.bins["n"].tolist() == [2, 1]


def test_bins_agree_with_scikit_learn():
    rng = np.random.default_rng(3)
    p = rng.random(400)
    right = rng.random(400) < p**1.5
    bins = reliability(p, right, rng.integers(9, size=400).astype(str), STATS, 0).bins
    true, said = calibration_curve(right, p, n_bins=15)
    assert bins["right"].to_numpy() == pytest.approx(true)
    assert bins["confidence"].to_numpy() == pytest.approx(said)
    assert ((bins["low"] <= bins["right"]) & (bins["right"] <= bins["high"])).all()


def test_ece_interval_equals_a_plain_bootstrap_over_patients():
    rng = np.random.default_rng(4)
    p, who = rng.random(60), rng.integers(5, size=60)
    right = rng.random(60) < p

    def plain(rows):
        where = np.ceil(p[rows] * 15)
        own = [where == k for k in np.unique(where)]
        return sum(abs(p[rows][o].sum() - right[rows][o].sum()) for o in own) / len(rows)

    draws = np.random.default_rng(7).integers(5, size=(STATS.n_resamples, 5))
    samples = [plain(np.concatenate([np.flatnonzero(who == k) for k in d])) for d in draws]
    value = plain(np.arange(60))
    low, high = np.quantile(samples, [0.025, 0.975])
    found = reliability(p, right, who.astype(str), STATS, 7).ece
    assert found == pytest.approx((value, min(low, value), max(high, value)))


def test_a_calibrated_network_has_a_small_ece_and_a_boastful_one_a_large():
    rng = np.random.default_rng(5)
    p = rng.uniform(0.3, 1, 6000)
    who = rng.integers(20, size=6000).astype(str)
    fair, boast = rng.random(6000) < p, rng.random(6000) < p - 0.2
    assert reliability(p, fair, who, STATS, 0).ece.high < 0.05
    assert reliability(p, boast, who, STATS, 0).ece.low > 0.15


@pytest.mark.parametrize(
    ("p", "right", "who", "words"),
    [
        ([], [], [], "0 confidences"),
        ([0.5], [1, 0], ["a"], "1 confidences, 2 answers"),
        ([1.2], [1], ["a"], "between 0 and 1"),
        ([float("nan")], [1], ["a"], "between 0 and 1"),
        ([0.5], [1], [None], "needs a patient"),
    ],
)
def test_bad_input_is_refused(p, right, who, words):
    with pytest.raises(ValueError, match=words):
        reliability(p, right, who, STATS, 0)


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@given(st.floats(0.5, 5), st.integers(0, 1000))
def test_temperature_keeps_order_and_can_be_undone(temperature, seed):
    p = softmax(np.random.default_rng(seed).normal(0, 1.5, (8, 6)))
    warmed = apply_temperature(p, temperature)
    assert warmed.sum(1) == pytest.approx(1)
    assert (warmed.argmax(1) == p.argmax(1)).all()
    assert apply_temperature(warmed, 1 / temperature) == pytest.approx(p, abs=1e-6)


def test_temperature_by_hand():
    assert apply_temperature(np.array([[0.2, 0.8]]), 2.0)[0, 1] == pytest.approx(2 / 3)


def test_fit_finds_the_temperature_that_spoilt_the_logits():
    rng = np.random.default_rng(6)
    logits = rng.normal(0, 2, (20000, 6))
    truth = np.array([rng.choice(6, p=p) for p in softmax(logits)])
    assert fit_temperature(softmax(3 * logits), truth) == pytest.approx(3, rel=0.05)


def test_fit_and_temperature_refuse_nonsense():
    with pytest.raises(ValueError, match="need n = n > 0"):
        fit_temperature(np.ones((2, 2)) / 2, np.array([0]))
    with pytest.raises(ValueError, match="above 0"):
        apply_temperature(np.ones((1, 2)) / 2, 0.0)


def test_read_temperature_with_and_without_the_file(tmp_path):
    assert read_temperature(tmp_path / "none.csv") is None
    p = softmax(np.random.default_rng(1).normal(0, 2, (60, 6)))
    truth = np.random.default_rng(2).integers(6, size=60)
    table = pd.DataFrame(p, columns=[f"p_{c}" for c in SIX_CLASSES])
    table.assign(label=[SIX_CLASSES[i] for i in truth]).to_csv(tmp_path / "val.csv", index=False)
    found = read_temperature(tmp_path / "val.csv")
    assert found == pytest.approx(fit_temperature(p, truth))
