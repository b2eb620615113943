"""Six classes by several readers: what stands, how far they agree, and Label Studio's JSON."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from cag_utils.desk import labelling
from cag_utils.keyframes.labels import SIX_CLASSES, read_frame_labels
from cag_utils.profiles import load_profile

STATS = load_profile("smoke").stats
LABEL_STUDIO = Path(__file__).parents[2] / ".label_studio" / "bin" / "python"


def marks(*rows):
    """Marks from `reader item label` in order of time, `*` for a frame that came back."""
    table = pd.DataFrame([row.split() for row in rows], columns=["reader", "item", "label"])
    at = [f"2026-01-01T00:00:{i:02d}" for i in range(len(table))]
    repeat = table["item"].str.endswith("*").astype(int).astype(str)
    return table.assign(at=at, item=table["item"].str.rstrip("*"), repeat=repeat, seconds="1.5")


READ = marks(
    "AB vi-a/0001 LCA_bad", "CD vi-a/0001 LCA_bad", "AB vi-a/0007 LCA_bad", "CD vi-a/0007 RCA_bad",
    "AB vi-b/0002 unsure", "CD vi-b/0002 RCA_bad", "CD vi-b/0003 RCA_other",
    "AB vi-a/0001* LCA_other", "AB vi-b/0004 unsure",
)  # fmt: skip


def test_what_stands_who_decided_and_what_is_still_open(tmp_path):
    assert labelling.disagreements(READ) == ["vi-a/0007", "vi-b/0002"]
    decided = marks("EF vi-a/0007 LCA_bad", "EF vi-b/0002 unsure", "GH vi-a/0007 RCA_better")
    final = labelling.final_labels(READ, decided)
    assert final.to_numpy().tolist() == [
        ["vi-a", 1, "AB+CD", "LCA_bad", "agreed"],
        ["vi-a", 7, "GH", "RCA_better", "adjudicated"],
        ["vi-b", 3, "CD", "RCA_other", "single"],
    ]
    assert len(labelling.final_labels(READ, decided[:0])) == 2
    assert labelling.final_labels(READ[:0], decided[:0]).empty
    final.assign(video="vi-0123456789ab").to_csv(tmp_path / "frame_labels.csv", index=False)
    read = read_frame_labels(tmp_path / "frame_labels.csv")
    assert read["label"].tolist() == final["label"].tolist()


def test_kappas_are_scikit_learns_and_the_weighted_one_hand_worked():
    rng = np.random.default_rng(0)
    a = rng.choice(SIX_CLASSES, 60)
    b = np.where(rng.random(60) < 0.7, a, rng.choice(SIX_CLASSES, 60))
    a, b = [*a, "unsure"], [*b, "LCA_bad"]
    table = labelling.agreement_table(a, b, [str(i // 6) for i in range(61)], STATS, 0)
    value = table.set_index("measure")["value"]
    a, b = a[:60], b[:60]
    assert value["kappa"] == pytest.approx(cohen_kappa_score(a, b))
    assert value["agreement"] == pytest.approx(np.mean(np.array(a) == b))
    assert value["sure"] == pytest.approx(60 / 61)
    for name in SIX_CLASSES:
        plain = cohen_kappa_score([x == name for x in a], [x == name for x in b])
        assert value[f"kappa_{name}"] == pytest.approx(plain)
    assert (table["low"] <= table["value"]).all() and (table["value"] <= table["high"]).all()
    # one step of quality costs half a side: (0 + .5) / 2 seen, and by chance (0 + .5 + .5 + 1) / 4
    three = ["LCA_better", "LCA_bad"], ["LCA_better", "LCA_other"]
    sums = np.zeros((6, 6))
    sums[0, 0] = sums[1, 2] = 1
    assert labelling.kappa(sums, labelling.WEIGHTS) == pytest.approx(1 - 0.25 / 0.5)
    found = labelling.agreement_table(*three, ["x", "y"], STATS, 0).set_index("measure")["value"]
    assert found["kappa_weighted"] == pytest.approx(0.5)


def test_agreement_of_pairs_and_of_a_reader_with_himself_needs_frames_in_common():
    exam_of = {item: item[:4] for item in READ["item"]}
    table = labelling.all_agreements(READ, exam_of, STATS, 0).set_index(["readers", "measure"])
    assert table.loc[("AB / CD", "agreement"), "value"] == 0.5  # of the two that both were sure of
    assert table.loc[("AB / CD", "sure"), "frames"] == 3
    assert table.loc[("AB again", "agreement"), "value"] == 0
    assert "CD again" not in table.index.get_level_values(0)
    assert labelling.all_agreements(READ[:0], {}, STATS, 0).empty


PNG_OF = {item: f"frames/{item}.png" for item in READ["item"]}


def test_label_studios_json_goes_there_and_back():
    tasks = json.loads(json.dumps(labelling.to_label_studio(READ, PNG_OF)))
    back = labelling.from_label_studio(tasks)
    assert back.to_numpy().tolist() == [
        ["vi-a", 1, "AB", "LCA_bad"], ["vi-a", 1, "CD", "LCA_bad"], ["vi-a", 7, "AB", "LCA_bad"],
        ["vi-a", 7, "CD", "RCA_bad"], ["vi-b", 2, "CD", "RCA_bad"], ["vi-b", 3, "CD", "RCA_other"],
    ]  # fmt: skip
    tasks[0]["annotations"][0]["was_cancelled"] = True
    tasks[0]["annotations"][1]["completed_by"] = 7  # as its plain export has it
    assert labelling.from_label_studio(tasks)["reader"].tolist()[0] == "7"


@pytest.mark.parametrize("change, match", [
    (lambda data, result: data.pop("item"), "task 0: data.item"),
    (lambda data, result: result.clear(), "task 0: .* is not one of"),
    (lambda data, result: result[0]["value"]["choices"].append("LCA_bad"), "task 0"),
    (lambda data, result: result[0]["value"].update(choices=["dog"]), "dog"),
])  # fmt: skip
def test_label_studios_json_that_cannot_be_read_is_refused_by_task(change, match):
    tasks = labelling.to_label_studio(READ, PNG_OF)
    change(tasks[0]["data"], tasks[0]["annotations"][0]["result"])
    with pytest.raises(ValueError, match=match):
        labelling.from_label_studio(tasks)


def test_label_studios_own_validator_and_converter_take_what_is_written(tmp_path):
    if not LABEL_STUDIO.exists():
        pytest.skip("no label-studio-sdk: `make label-studio` installs it beside, for this test")
    tasks = labelling.to_label_studio(READ, PNG_OF)
    (tmp_path / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
    (tmp_path / "config.xml").write_text(labelling.LABEL_STUDIO_CONFIG, encoding="utf-8")
    code = Path(__file__).with_name("label_studio_check.py")
    command = [LABEL_STUDIO, code, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    table = pd.read_csv(tmp_path / "out" / "result.csv")
    assert sorted(table["label"]) == sorted(labelling.first_marks(READ)["label"])
    assert json.loads(done.stdout.splitlines()[-1]) == {"valid": 8, "a wrong choice": False}
