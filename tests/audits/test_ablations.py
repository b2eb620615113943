"""The linear reader: it reads the right state, and finds what lies in it and no more."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from cag_utils.audits import ablations
from cag_utils.audits.ablations import answer_states, fit_reader, tell_pairs
from cag_utils.corpus.examples import encode_prompts, open_picture
from cag_utils.vlm import loading
from cag_utils.vlm.loading import load_backbone
from tests.vlm.world import NAMES, examples_of, pairs_in, write_pairs, write_twins


@pytest.fixture(scope="module")
def world(once):
    """Twins on disk and a corpus; yields the path of `pairs.csv`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "WEIGHTS", once("twins", write_twins))
        yield pairs_in(once("corpus", write_pairs))


@pytest.mark.parametrize("name", NAMES)
def test_the_state_is_what_the_first_word_is_written_from(name, world, monkeypatch):
    monkeypatch.setattr(ablations, "BATCH", 2)
    model, processor = load_backbone(name, "tiny", device="cpu")
    cases = examples_of(world).head(5)
    images, prompts = cases["image"].tolist(), cases["prompt"].tolist()
    states = answer_states(model, processor, images, prompts)
    assert states.shape == (5, model.config.get_text_config().hidden_size)
    alone = answer_states(model, processor, images[3:4], prompts[3:4])
    np.testing.assert_allclose(states[3], alone[0], atol=1e-4)  # batch and padding are no matter
    batch = encode_prompts(processor, [open_picture(images[3], processor)], prompts[3:4])
    with torch.inference_mode():
        first = model.generate(**batch, max_new_tokens=1, do_sample=False)[0, -1]
    words = model.get_output_embeddings().weight.detach().numpy()
    assert int((words @ states[3]).argmax()) == int(first)


def test_a_reader_finds_what_is_there_and_no_more():
    rng = np.random.default_rng(0)
    segments = rng.integers(5, 9, 200)
    noise = rng.standard_normal((200, 20))
    told = noise + 3 * np.eye(20)[segments]
    readers = [fit_reader(states[:150], segments[:150]) for states in (told, noise)]
    assert readers[0].score(told[150:], segments[150:]) > 0.85
    assert readers[1].score(noise[150:], segments[150:]) < 0.5
    with pytest.raises(ValueError, match="2 classes"):  # one segment is nothing to tell
        fit_reader(np.zeros((3, 2)), [7, 7, 7])


def test_segment_and_grade_follow_the_report_in_words_and_no_number_or_plan(tmp_path):
    lesion, pairs = json.dumps([{"segment": 6, "percent": 90}]), tmp_path / "pairs.csv"
    rows = [("1", "LCA", lesion, "pci", "70M.", "70歳男性。")]
    rows += [("2", "RCA", "[]", "none", "60F.", "60歳女性。")]
    names = "patient_id truth_laterality truth_lesions truth_plan report_en report_ja".split()
    table = pd.DataFrame(rows, columns=names)
    table.to_csv(pairs, index=False)
    told = pd.read_csv(tell_pairs(pairs, "en", tmp_path / "told.csv", seed=0))
    assert told["report_en"].tolist() == ["70M.\nproximal LAD: severe.", "60F.\nnone."]
    assert told["report_ja"].tolist() == ["70歳男性。", "60歳女性。"]  # the other one stays
    told = pd.read_csv(tell_pairs(pairs, "ja", tmp_path / "told.csv", seed=0))
    added = told["report_ja"].iloc[0].split("\n")[1]
    assert "高度" in added and not any(c.isdigit() for c in added) and "PCI" not in added
    with pytest.raises(ValueError, match="language"):
        tell_pairs(pairs, "de", tmp_path / "told.csv", seed=0)
    table.assign(truth_laterality="RCA").to_csv(pairs, index=False)
    with pytest.raises(ValueError, match="does not show"):
        tell_pairs(pairs, "en", tmp_path / "told.csv", seed=0)
