"""Labels: merges and F1s worked by hand, readers settled, and errors that say where and why."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from cag_utils.identity import pseudonym
from cag_utils.keyframes import labels as rules
from cag_utils.keyframes.predict import describe

UID, KEY = "1.2.840.1", b"test"
TRUTH = ["LCA_better", "LCA_better", "LCA_bad", "RCA_better", "RCA_bad", "RCA_other"]
GUESS = ["LCA_better", "LCA_bad", "LCA_bad", "RCA_better", "LCA_bad", "RCA_bad"]


def sure(labels, p=0.9):
    """Probabilities that put `p` on each label and share the rest."""
    rows = [[p if c == label else (1 - p) / 5 for c in rules.SIX_CLASSES] for label in labels]
    return pd.DataFrame(rows, columns=list(rules.SIX_CLASSES))


def test_f1s_and_sums_by_hand_and_what_cannot_be_scored_is_refused():
    got = rules.f1_scores(TRUTH, sure(GUESS))
    # six: LCA_better 2 true, 1 right, 1 guessed: 2/3. LCA_bad: 1 right, 3 guessed, 1 true: 1/2.
    # RCA_better: 1. RCA_bad and RCA_other: 0. Weighted (2*2/3 + 1/2 + 1) / 6
    assert got["six_class_f1"] == pytest.approx((4 / 3 + 1 / 2 + 1) / 6)
    # side: LCA 3 right, 4 guessed, 3 true: 6/7. RCA 2 right, 2 guessed, 3 true: 4/5. Equal weights
    assert got["laterality_f1"] == pytest.approx((6 / 7 + 4 / 5) / 2)
    # three: LCA_better 2/3 (weight 2), RCA_better 1 (1), others 3 right, 4 guessed, 3 true: 6/7 (3)
    assert got["three_class_f1"] == pytest.approx((2 * 2 / 3 + 1 + 3 * 6 / 7) / 6)
    for truth, p, match in (
        (TRUTH[:2], sure(GUESS), "2 labels for 6"),
        ([], sure([]), "0 labels"),
        (["LCA_good"], sure(GUESS[:1]), "LCA_good"),
        (TRUTH, sure(GUESS).drop(columns="RCA_bad"), "lack.*RCA_bad"),
    ):
        with pytest.raises(ValueError, match=match):
            rules.f1_scores(truth, p)
    p = pd.DataFrame([[0.05, 0.4, 0.0, 0.25, 0.3, 0.0]], columns=list(rules.SIX_CLASSES))
    assert rules.decide(p, rules.SIX) == ["LCA_bad"]
    assert rules.decide(p, rules.LATERALITY) == ["RCA"]  # 0.55 against 0.45
    assert rules.decide(p, rules.THREE) == ["others"]
    sums = {"LCA_better": 0.05, "others": 0.7, "RCA_better": 0.25}
    assert rules.merge_probabilities(p, rules.THREE).iloc[0].to_dict() == pytest.approx(sums)
    got = describe(p).iloc[0]  # the side comes before the quality
    assert got[["laterality", "quality", "confidence"]].tolist() == ["RCA", "bad", 0.3]
    assert got["p_LCA_bad"] == 0.4


@settings(max_examples=15, deadline=None)  # a loaded machine is no failure
@given(st.lists(st.sampled_from(rules.SIX_CLASSES), min_size=1, max_size=30), st.data())
def test_agrees_with_scikit_learn_and_is_1_when_right(truth, data):
    n = len(truth)
    guess = data.draw(st.lists(st.sampled_from(rules.SIX_CLASSES), min_size=n, max_size=n))
    for merge in rules.MERGES.values():  # merging keeps the total
        merged = rules.merge_probabilities(sure(guess), merge)
        assert merged.sum(axis=1).to_numpy() == pytest.approx(1)
    assert set(rules.f1_scores(truth, sure(truth)).values()) == {1.0}
    got = rules.f1_scores(truth, sure(guess))["six_class_f1"]
    assert got == pytest.approx(f1_score(truth, guess, average="weighted"))


def write(path, rows, header="video,frame,reader,label"):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_reads_labels_and_ignores_more_columns_but_needs_its_own(tmp_path):
    path = write(tmp_path / "l.csv", [f"{UID},7,a,RCA_bad,x"], "video,frame,reader,label,note")
    wanted = {"video": UID, "frame": 7, "reader": "a", "label": "RCA_bad"}
    assert rules.read_frame_labels(path).to_dict("records") == [wanted]
    with pytest.raises(ValueError, match=r"no column \['reader'\]"):
        rules.read_frame_labels(write(path, [f"{UID},1,LCA_bad"], "video,frame,label"))


@pytest.mark.parametrize("row, match", [
    (f"{UID},3,a,LCA_good", r"row 3: label must be one of LCA_better"),
    (f"{UID},-1,a,LCA_bad", r"row 3: frame must be a whole number"),
    (f"{UID},x,a,LCA_bad", r"row 3: frame must be a whole number"),
    ("cine one,3,a,LCA_bad", r"row 3: video must be a SOPInstanceUID"),
    (f"{UID},3,,LCA_bad", r"row 3: reader must name"),
    (f"{UID},1,a,RCA_bad", r"row 3: this reader labelled this frame twice"),
])  # fmt: skip
def test_errors_name_file_row_and_rule(tmp_path, row, match):
    path = write(tmp_path / "l.csv", [f"{UID},1,a,LCA_bad", row])
    with pytest.raises(ValueError, match=rf"l\.csv: .*{match}"):
        rules.read_frame_labels(path)


def votes(*labels, frame=0):
    rows = [(UID, frame, f"r{i}", label) for i, label in enumerate(labels)]
    return pd.DataFrame(rows, columns=["video", "frame", "reader", "label"])


@pytest.mark.parametrize("labels, expected, agreement", [
    (["LCA_better"], "LCA_better", 1),
    (["LCA_better", "LCA_better", "LCA_bad"], "LCA_better", 2 / 3),
    (["LCA_better", "LCA_bad"], "LCA_bad", 1 / 2),
    (["RCA_bad", "RCA_other"], "RCA_other", 1 / 2),
    (["LCA_better", "LCA_bad", "RCA_bad"], "LCA_bad", 1 / 3),  # left 2 to 1, then caution
])  # fmt: skip
def test_readers_are_settled_by_side_then_quality_then_caution(labels, expected, agreement):
    got = rules.settle_readers(votes(*labels)).iloc[0]
    got = (got.label, got.n_readers, got.agreement)
    assert got == (expected, len(labels), pytest.approx(agreement))


def test_a_tie_between_sides_is_left_out_aloud_and_labels_join_frames():
    both = pd.concat([votes("LCA_bad", "RCA_bad"), votes("LCA_bad", frame=5)])
    with pytest.warns(UserWarning, match="1 frames left out"):
        got = rules.settle_readers(both)
    assert list(got["frame"]) == [5]
    video_id = pseudonym("video", UID, KEY)
    frames = pd.DataFrame({"video_id": [video_id] * 3, "frame": [0, 5, 11], "png": list("abc")})
    for video in (UID, video_id):
        two = [votes("LCA_bad", frame=11), votes("LCA_bad", frame=12)]
        labels = rules.settle_readers(pd.concat(two))
        got = rules.label_frames(frames, labels.assign(video=video), KEY)
        assert got[["frame", "png", "label"]].to_numpy().tolist() == [[11, "c", "LCA_bad"]]
    with pytest.raises(ValueError, match="none of 3 sampled frames"):
        rules.label_frames(frames.assign(video_id="vi-000000000000"), labels, KEY)
