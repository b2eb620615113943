import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from cag_utils.making import embedders
from cag_utils.scores.embedders import load_embedder
from tests.making.world import no_points


def flat_stills(n=12, size=60):
    """Left coronaries dark with a lesion of #7, right ones bright with one of #2."""
    rng = np.random.default_rng(0)
    lca = np.arange(n) % 2 == 0
    images = np.where(lca, 60, 190)[:, None, None] + rng.integers(-9, 9, (n, size, size))
    grades = np.zeros((n, 15), np.uint8)
    grades[lca, 6], grades[~lca, 1] = 4, 3  # 90 and 75 percent
    return no_points(images.astype(np.uint8), grades, lca)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random twins, built once."""
    folder, rng, stills = tmp_path_factory.mktemp("twins"), np.random.default_rng(1), flat_stills()
    texts = [embedders.write_text(rng, stills, i % 12) for i in range(400)]
    for name in ("medclip", "siglip2"):
        embedders.build_embedder(name, folder / name, texts)
    return folder


@pytest.fixture
def twin(folder):
    return lambda name: load_embedder(name, "tiny", "cpu", folder)


def test_losses_by_hand():
    logits, same = torch.zeros(4, 4), torch.eye(4, dtype=torch.bool)  # nothing is known
    assert embedders.softmax_loss(logits, same).item() == pytest.approx(math.log(4))
    assert embedders.sigmoid_loss(logits, same).item() == pytest.approx(4 * math.log(2))
    logits, same = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.eye(2, dtype=torch.bool)
    assert embedders.softmax_loss(logits, same).item() == pytest.approx(math.log(1 + math.exp(-2)))
    wanted = math.log(1 + math.exp(-2)) + math.log(2)  # a pair's own and the other's, per picture
    assert embedders.sigmoid_loss(logits, same).item() == pytest.approx(wanted)
    logits, same = torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool)  # equal findings
    assert embedders.softmax_loss(logits, same).item() == pytest.approx(math.log(2))  # its minimum
    assert embedders.softmax_loss(logits + 9 * torch.eye(2), same) > math.log(2)


def test_texts_tell_the_stills_facts_and_no_others():
    rng, stills = np.random.default_rng(0), flat_stills()
    left = [embedders.write_text(rng, stills, 0) for _ in range(60)]
    right = [embedders.write_text(rng, stills, 1) for _ in range(60)]
    assert any(text.startswith("LAD #7 shows 90% stenosis.") for text in left)
    assert any("left" in text for text in left) and not any("right" in text for text in left)
    assert any("RCA #2 shows 75% stenosis." in text for text in right)
    assert len(set(left)) > 10


@pytest.mark.parametrize("name, n_steps", [("medclip", 40), ("siglip2", 10)])
def test_training_brings_pictures_and_their_texts_together(name, n_steps, twin):
    stills, trained = flat_stills(), twin(name)
    before = embedders.side_accuracy(trained, list(stills.images), stills.lca)
    losses = embedders.train_embedder(trained, stills, n_steps, seed=3, batch_size=6)
    assert len(losses) == n_steps and np.mean(losses[-5:]) < np.mean(losses[:3])
    after = embedders.side_accuracy(trained, list(stills.images), stills.lca)
    assert after > 0.9 and after >= before and not trained.towers.module.training
    with pytest.raises(ValueError, match="fewer than one batch"):
        embedders.train_embedder(trained, flat_stills(4), 1, batch_size=8)


def test_the_same_seed_trains_the_same_weights_killed_or_not(twin, tmp_path, monkeypatch):
    files, written = [], []

    def dies(*arguments):
        written.append(1)
        if len(written) == 9:  # of 4 pictures with two texts, in the second of two steps
            raise KeyboardInterrupt
        return write(*arguments)

    write, checkpoint = embedders.write_text, tmp_path / "half.pt"
    halves = {"seed": 5, "batch_size": 4, "parts": 2, "checkpoint": checkpoint}
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("cag_utils.making.embedders.write_text", dies)
        embedders.train_embedder(twin("medclip"), flat_stills(), 2, **halves)
    for kept in (checkpoint, None):
        trained = twin("medclip")
        embedders.train_embedder(trained, flat_stills(), 2, **halves | {"checkpoint": kept})
        folder = embedders.save_weights("medclip", trained.towers.module, tmp_path)
        files.append((folder / "model.safetensors").read_bytes())
    assert files[0] == files[1]


def test_places_by_hand_and_their_task(twin):
    points, ones = np.array([[45, 15], [5, 59]], np.float32), np.ones(2, np.float32)
    stills = replace(  # the second picture shows two points: one narrowed, one not
        flat_stills(2), counts=np.array([0, 2]), points=points, width_px=ones,
        segments=np.array([7, 8], np.uint8), narrowed=np.array([0.5, 0.0], np.float32),
    )  # fmt: skip
    found = embedders.place_targets(stills, np.array([0, 1]), 2)
    assert found.shape == (2, 4, 16)  # upper right: #7, narrowed; lower left: #8
    assert found.nonzero().tolist() == [[1, 1, 6], [1, 1, 15], [1, 2, 7]] and found.sum() == 3
    finer = embedders.place_targets(stills, np.array([1]), 3)
    assert finer[0, 2].nonzero().flatten().tolist() == [6, 15]
    # the task listens until it is closed
    found, stills = twin("medclip"), flat_stills(2)
    task = embedders.PlaceTask(found, stills)
    fitted = embedders.fit_stills(found, stills)
    assert fitted.shape == (2, 224, 224)
    assert np.array_equal(fitted[1], np.asarray(found.pixels.fit(stills.images[1]))[..., 0])
    pixels = found.pixels.tensor(fitted)
    found.towers.image(pixels)
    assert task.tokens.shape == (2, 49, 128)
    task.head.weight.data.zero_()
    task.head.bias.data.zero_()
    assert task.loss(np.array([0, 1])).item() == pytest.approx(math.log(2))  # nothing there, 50:50
    task.close()
    task.tokens = None
    found.towers.image(pixels)
    assert task.tokens is None


class Known:
    """Pictures are numbers; a text's vector is its length."""

    def images(self, pictures):
        return np.array([[math.cos(x), math.sin(x)] for x in pictures])

    def texts(self, texts):
        return self.images([len(text) / 10 for text in texts])


def test_retrieval_by_hand():
    # distinct texts at 0.1, 0.2, 0.3; the second picture is nearest to the wrong one
    found = embedders.retrieval(Known(), [0.11, 0.29, 0.31], ["a", "bb", "ccc"])
    assert found["top1"] == pytest.approx(2 / 3) and found["top5"] == 1
    assert found["chance_top1"] == pytest.approx(1 / 3) and found["n_texts"] == 3
    twice = embedders.retrieval(Known(), [0.1, 0.1, 0.3], ["a", "a", "ccc"])
    assert twice["top1"] == 1 and twice["n_texts"] == 2
    with pytest.raises(ValueError, match="one text a picture"):
        embedders.retrieval(Known(), [0.1], ["a", "b"])
