"""Marks of answers given during training."""

import pandas as pd
import pytest
import torch

from cag_utils.scores.entities import read_entities
from cag_utils.scores.rubric import truth_entities
from cag_utils.vlm import sft
from cag_utils.vlm.loading import load_backbone
from cag_utils.vlm.sft import SCORES, AnswerScorer, mark, run_job
from tests.vlm.sft_world import examples_of, job_for, make_world

TRUTH = truth_entities("LCA", [{"segment": 11, "percent": 75}], "pci")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    yield from make_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize(
    ("text", "segment", "grade", "laterality", "plan"),
    [
        ("LCX #11 shows 75% stenosis. Consider PCI.", 1, 1, 1, 1),
        ("LCX #11 shows 90% stenosis. Consider PCI.", 1, 1, 1, 1),  # one AHA step
        ("LCX #11 shows 99% stenosis. Consider PCI.", 1, 0, 1, 1),  # two
        ("LCX #13 shows 75% stenosis. Consider PCI.", 0, 0, 1, 1),
        ("RCA #1 shows 75% stenosis.", 0, 0, 0, 0),
        ("la la la", 0, 0, 0, 0),
    ],
)
def test_marks_by_hand(text, segment, grade, laterality, plan):
    found = mark(read_entities(text, "en"), TRUTH)
    assert found | {"overall": 0} == {
        "segment": segment,
        "grade": grade,
        "laterality": laterality,
        "plan": plan,
        "overall": 0,
    }
    assert tuple(found) == SCORES


def test_an_unknown_truth_is_no_mark():
    found = mark(read_entities("LCX #11 shows 75% stenosis.", "en"), read_entities("Hello.", "en"))
    assert found["segment"] is None and found["grade"] is None and found["plan"] is None


def test_a_model_that_says_the_truth_gets_full_marks(world, tmp_path, monkeypatch):
    model, processor = load_backbone("gemma3", "tiny", "cpu")
    job = job_for(world, tmp_path, eval_cases=2)
    scorer = AnswerScorer(job, processor)
    answers = examples_of(world).set_index("image")["answer"]
    monkeypatch.setattr(
        sft, "generate_answers", lambda _, __, images, *_a, **_k: {"output": answers[images]}
    )
    model.train()
    found = scorer(model)
    assert model.training
    assert found["segment"] == found["laterality"] == found["grade"] == 1
    assert set(scorer.cases["split"]) == {"val"} and len(scorer.cases) == 2


def test_no_more_cases_than_there_are(world, tmp_path):
    _, processor = load_backbone("gemma3", "tiny", "cpu")
    scorer = AnswerScorer(job_for(world, tmp_path, eval_cases=9), processor)
    assert scorer.n_cases == 2 and scorer.cases["case_id"].is_unique


def test_a_run_writes_its_marks_and_tensorboards_log(world, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    job = job_for(world, tmp_path, "paligemma2", "ja", epochs=1.0, eval_cases=1)
    torch.manual_seed(0)
    run_job(job)
    table = pd.read_csv(job.path / "eval_history.csv")
    assert table["step"].tolist() == [0, 2] and list(table.columns[2:]) == list(SCORES)
    assert table["segment"].between(0, 1).all()
    log = EventAccumulator(str(job.path / "tensorboard")).Reload()
    tags = set(log.Tags()["scalars"])
    assert {"train/loss", "eval/loss", "eval/answers_segment"} <= tags
    history = pd.read_csv(job.path / "history.csv")
    logged = [event.value for event in log.Scalars("eval/loss")]
    val = history.loc[history["split"] == "val", "loss"]
    assert logged == pytest.approx(val.tolist(), rel=1e-5)
