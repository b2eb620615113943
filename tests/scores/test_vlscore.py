import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from cag_utils.profiles import Stats, Vlscore
from cag_utils.report import MODEL_NAMES, paper_table
from cag_utils.scores import vlscore
from cag_utils.scores.vlscore import join_cases, score_cases, score_models, to_unit, triangle_area
from tests.benchmarks.bench_vlscore import plain_area

numbers = st.floats(-10, 10, allow_nan=False, width=32)
triples = st.integers(1, 5).flatmap(
    lambda d: st.integers(1, 4).flatmap(lambda n: hnp.arrays(float, (3, n, d), elements=numbers))
)
UNIT = Vlscore(size="tiny", embedders=["siglip2"], normalise=True, max_area=3 * 3**0.5 / 4)
STATS = Stats(n_resamples=50, level=0.95)
TRUTHS = ["no stenosis", "mild disease", "tight spot", "total occlusion"]
PAIRS = pd.DataFrame({"case_id": [f"case-{k}" for k in range(4)]})
PAIRS = PAIRS.assign(patient_id=["pt-a", "pt-a", "pt-b", "pt-b"], png=list("0123"))
SAID = {"gemma3_lora": TRUTHS, "gemma3_base": TRUTHS[1:] + TRUTHS[:1]}
SAID |= {"paligemma2_base": ["", np.nan, " ", "sorry"]}
ROWS = [(case, m, SAID[m][k], TRUTHS[k]) for m in SAID for k, case in enumerate(PAIRS["case_id"])]
GENERATIONS = pd.DataFrame(ROWS, columns=["case_id", "model", "output", "ground_truth"])
GENERATIONS["status"] = ["ok"] * 8 + ["empty"] * 3 + ["ok"]


@pytest.mark.parametrize("cos_gr, area, score", [
    (0.95, 0.2107, 0.838),
    (0.80, 0.4123, 0.683),
    (0.60, 0.5657, 0.565),
])  # fmt: skip
def test_hand_worked_unit_vectors(cos_gr, area, score):
    # three unit vectors with these cosines
    corners = np.linalg.cholesky([[1, 0.1, 0.1], [0.1, 1, cos_gr], [0.1, cos_gr, 1]])[:, None]
    found = score_cases(*corners).iloc[0]
    assert found["area"] == pytest.approx(area, abs=5e-5)
    assert found["vlscore"] == pytest.approx(score, abs=5e-4)
    doubled = score_cases(*2 * corners, normalise=False, max_area=2)  # now lengths count
    assert doubled["area"][0] == pytest.approx(4 * area, abs=2e-4)
    assert score_cases(*2 * corners)["area"][0] == pytest.approx(area, abs=5e-5)


def test_areas_by_hand_and_the_theoretical_maximum_is_the_equilateral_triangle():
    legs = [[3.0, 0.0]], [[0.0, 0.0]], [[0.0, 4.0]]  # of a right angle
    assert triangle_area(*map(np.array, legs)).tolist() == [6.0]
    angles = np.array([0, 2, 4]) * np.pi / 3
    i, g, r = np.stack([np.cos(angles), np.sin(angles)], 1)[:, None]
    assert triangle_area(i, g, r)[0] == pytest.approx(vlscore.MAX_AREA_UNIT) == 1.299038105676658
    assert score_cases(i, g, r)["vlscore"][0] == pytest.approx(0, abs=1e-12)


@given(triples)
def test_agrees_with_the_plain_loop_whichever_corner_is_which(points):
    plain = [plain_area(*(x.tolist() for x in case)) for case in points.swapaxes(0, 1)]
    scale = 1 + np.abs(points).max() ** 2
    for order in ([0, 1, 2], [2, 0, 1], [1, 0, 2]):
        np.testing.assert_allclose(triangle_area(*points[order]), plain, atol=1e-6 * scale)


@given(triples, st.floats(0.1, 10))
def test_scores_stay_between_0_and_1_and_more_room_never_lowers_them(points, max_area):
    points = points + np.array([20.0, -20.0, 30.0])[:, None, None]  # no zero vectors
    found = score_cases(*points, normalise=True, max_area=max_area)
    assert found["vlscore"].between(0, 1).all()
    assert (found["area"] <= vlscore.MAX_AREA_UNIT + 1e-9).all()
    roomier = score_cases(*points, normalise=True, max_area=2 * max_area)
    assert (roomier["vlscore"] >= found["vlscore"]).all()
    i, g, _ = points  # a report equal to the truth scores 1 whatever the picture
    assert (score_cases(i, g, g, normalise=False)["vlscore"] == 1).all()


def test_float32_in_the_printed_form_is_wrong_where_float64_is_right():
    # Two near-equal reports: the area is half |i-g| times the distance of r from that line.
    rng, true = np.random.default_rng(0), 7e-5
    i, g = (to_unit(rng.normal(size=(1, 512))) for _ in range(2))
    away, along = rng.normal(size=(1, 512)), to_unit(i - g)
    away = to_unit(away - (away @ along.T) * along)
    r = g + away * 2 * true / np.linalg.norm(i - g)
    assert triangle_area(i, g, r)[0] == pytest.approx(true, rel=1e-6)
    a, b = (i - g).astype(np.float32)[0], (i - r).astype(np.float32)[0]
    naive = 0.5 * math.sqrt(max(float((a @ a) * (b @ b) - (a @ b) ** 2), 0.0))
    assert abs(naive - true) > 0.1 * true


def random_space(n, noise, seed):
    """n cases of one model; each report is its truth and as much noise, each picture unrelated."""
    rng = np.random.default_rng(seed)
    i, g = rng.normal(size=(2, n, 64))
    r = g + noise(rng) * rng.normal(size=g.shape)
    texts = {f"{kind}{k}": x for kind, rows in (("g", g), ("r", r)) for k, x in enumerate(rows)}
    cases = pd.DataFrame({"case_id": [str(k) for k in range(n)], "empty": False, "model": "m"})
    cases = cases.assign(ground_truth="g" + cases["case_id"], output="r" + cases["case_id"])
    images = dict(zip(cases["case_id"], i, strict=True))
    return cases, vlscore.Space(images, texts, frozenset(), np.ones(64))


def test_controls_fall_with_the_wrong_report_and_hardly_with_the_wrong_picture():
    cases, space = random_space(40, lambda rng: 0.5, 1)
    found = vlscore.score_controls(cases, space, "siglip2", UNIT)
    mean = found.set_index("control")["vlscore"]
    assert mean["as written"] - mean["shuffled reports"] > 0.1
    assert abs(mean["as written"] - mean["shuffled images"]) < 0.05
    assert abs(mean["as written"] - mean["blank image"]) < 0.05
    i, g, r = space.corners(cases)
    wrong = score_cases(np.roll(i, 20, axis=0), g, r)["vlscore"].mean()
    assert mean["shuffled images"] == pytest.approx(wrong)
    # it is moved by the texts and not by the picture
    cases, space = random_space(200, lambda rng: rng.uniform(0.1, 1.5, (200, 1)), 2)
    found = vlscore.side_correlations(cases, space)
    assert found["text_text"] < -0.9 and abs(found["image_truth"]) < 0.5
    for few in (0, 2):
        assert all(map(math.isnan, vlscore.side_correlations(cases[:few], space).values()))


class Letters:
    """An embedder that can be followed by hand: grey level and letter counts."""

    def images(self, pictures):
        levels = [float(np.asarray(x).mean()) for x in pictures]
        return np.array([[level, 255 - level, *[1.0] * 26] for level in levels])

    def texts(self, texts):
        assert all(texts) and len(set(texts)) == len(texts)
        return np.array([[0, 0] + [t.count(chr(97 + k)) for k in range(26)] for t in texts], float)

    def truncated(self, texts):
        return np.array([len(t) > 12 for t in texts])


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Four cases of two patients; one model repeats the truth, one is wrong, one is silent."""
    folder, cases = tmp_path_factory.mktemp("study"), join_cases(GENERATIONS, PAIRS)
    for k in range(4):
        Image.new("L", (8, 8), 40 * k + 20).save(folder / str(k), "PNG")
    space = vlscore.embed(Letters(), cases, folder)
    return cases, space, score_models(cases, space, "siglip2", UNIT)


def test_each_text_is_embedded_once_the_truth_scores_1_an_error_less_and_silence_0(study):
    cases, space, scores = study
    assert len(cases) == 12 and cases["patient_id"].tolist() == ["pt-a", "pt-a", "pt-b", "pt-b"] * 3
    assert cases["empty"].sum() == 3 and cases["output"].map(type).eq(str).all()
    assert list(space.texts) == sorted({*TRUTHS, "sorry"})
    assert space.truncated == {"total occlusion"} and len(space.images) == 4
    by_model = scores.groupby("model")["vlscore"]
    assert (by_model.get_group("gemma3_lora") == 1).all()
    assert by_model.get_group("gemma3_base").lt(1).all()
    silent = scores[scores["model"] == "paligemma2_base"]
    assert silent["vlscore"].tolist()[:3] == [0, 0, 0] and silent["vlscore"].iloc[3] > 0
    assert silent["area"].isna().tolist() == [True, True, True, False]
    # a case counts as truncated when its output or its truth is
    cut = scores[scores["truncated"]].groupby("model")["case_id"].agg("".join)
    base = {"gemma3_base": "case-2case-3", "gemma3_lora": "case-3", "paligemma2_base": "case-3"}
    assert cut.to_dict() == base


def test_right_angles_worked_by_hand(study):
    # unit vectors along three axes: an equilateral triangle of side sqrt 2, area sqrt(3)/2
    image, truth, report = np.eye(3)
    case = study[0].iloc[[5]]  # says "tight spot", and "mild disease" is true
    texts = {"mild disease": truth, "tight spot": report}
    space = vlscore.Space({"case-1": image}, texts, frozenset(), image)
    [got] = score_models(case, space, "siglip2", UNIT).to_dict("records")
    assert got["area"] == pytest.approx(3**0.5 / 2) and got["vlscore"] == pytest.approx(1 / 3)


def test_controls_leave_out_a_model_with_one_answer(study):
    found = vlscore.score_controls(*study[:2], "siglip2", UNIT)
    found = found.set_index(["model", "control"])["vlscore"]
    assert set(found.index.levels[0]) == {"gemma3_lora", "gemma3_base"}
    lora = found["gemma3_lora"]
    assert lora["as written"] == lora["shuffled images"] == lora["blank image"] == 1
    assert lora["shuffled reports"] < 1


def test_summary_counts_silence_and_table3_keeps_what_was_not_run_and_the_papers_figures(study):
    scores, titles = study[2], {"siglip2": "SigLIP2-so400m"}
    summary = vlscore.summarise_vlscores(scores, STATS, seed=0)
    rows = summary.set_index("model")
    assert rows.loc["paligemma2_base", "empty"] == 0.75
    assert rows.loc["gemma3_lora", ["mean", "low", "high", "sd"]].tolist() == [1, 1, 1, 0]
    base = scores[scores["model"] == "gemma3_base"]
    assert rows["area_mean"]["gemma3_base"] == pytest.approx(base["area"].mean())
    assert rows["sd"]["gemma3_base"] == pytest.approx(base["vlscore"].std(ddof=1))
    assert ((rows["low"] <= rows["mean"]) & (rows["mean"] <= rows["high"])).all()
    table = vlscore.table3(summary, paper_table("table3_vlscore"), titles).set_index("Model")
    assert list(table.index) == list(MODEL_NAMES.values())
    assert table["VLScore (interval)"]["o4-mini"] == "not run"
    assert table["Paper mean"]["o4-mini"] == 0.3116
    assert math.isnan(table["Paper mean"]["PaliGemma2 (unfine-tuned)"])
    assert table["VLScore (interval)"]["Gemma3 w/LoRA"] == "1.000 (1.000 to 1.000)"
    assert table["Cases"]["Gemma3 w/LoRA"] == 4


@pytest.mark.parametrize("call, match", [
    (lambda: triangle_area(np.ones((2, 3)), np.ones((2, 3)), np.ones((1, 3))), "one shape"),
    (lambda: triangle_area(*np.full((3, 1, 2), np.nan)), "NaN"),
    (lambda: to_unit(np.zeros((1, 2))), "1 vectors are zero"),
    (lambda: vlscore.vlscore(np.ones(1), 0), "max_area"),
    (lambda: vlscore.vlscore(np.array([-1.0])), "cannot be negative"),
    (lambda: join_cases(GENERATIONS.iloc[:0], PAIRS), "no generations to score"),
    (lambda: join_cases(GENERATIONS, PAIRS.iloc[:3]), "1 .*cases are not in pairs.csv, .*.case-3"),
    (lambda: join_cases(GENERATIONS.assign(ground_truth=""), PAIRS), "no ground truth"),
])  # fmt: skip
def test_refuses_what_it_cannot_score(call, match):
    with pytest.raises(ValueError, match=match):
        call()
