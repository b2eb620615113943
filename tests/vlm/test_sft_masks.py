"""Who sees whom: the models' own attention masks against masks built by hand, entry by entry."""

import pytest
import torch

from tests.vlm.sft_world import batch_of, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    yield from make_world(tmp_path_factory.mktemp("world"))


def mask_by_hand(name, batch, model) -> torch.Tensor:
    """(B, 1, T, T), True where a row's token sees a column's.

    All see what came before them. Besides, Gemma3's image tokens see each other, and PaliGemma's
    whole prefix (picture and prompt) sees itself. Nobody sees padding; a row of padding sees all,
    so that no softmax is over nothing.
    """
    n = batch["input_ids"].shape[1]
    seen = torch.zeros(len(batch["input_ids"]), 1, n, n, dtype=torch.bool)
    for b, ids in enumerate(batch["input_ids"].tolist()):
        real = batch["attention_mask"][b].tolist()
        image = [i == model.config.image_token_index for i in ids]
        prefix = [k == 0 for k in batch["token_type_ids"][b].tolist()]
        block = image if name == "gemma3" else prefix
        for i in range(n):
            for j in range(n):
                both = block[i] and block[j]
                seen[b, 0, i, j] = (bool(real[j]) and (j <= i or both)) or not real[i]
    return seen


@pytest.mark.parametrize("name", ["gemma3", "paligemma2"])
def test_logits_are_those_of_a_mask_built_by_hand(world, name):
    model, _, batch = batch_of(name, world, n=2)
    batch.pop("labels")
    kept = batch["attention_mask"].bool()
    assert not kept.all()  # the rows differ in length: padding is part of the test
    # the twins' and the real models' sliding window, 1,024 tokens, is longer than any case here
    assert batch["input_ids"].shape[1] < model.config.text_config.sliding_window
    by_hand = mask_by_hand(name, batch, model)
    rest = {k: batch[k] for k in ("input_ids", "pixel_values")}
    with torch.no_grad():
        own = model(**batch).logits[kept]
        hand = model(**rest, attention_mask=_as_the_model_takes_it(name, by_hand)).logits[kept]
        causal = by_hand.tril() | ~kept[:, None, :, None]
        wrong = model(**rest, attention_mask=_as_the_model_takes_it(name, causal)).logits[kept]
    torch.testing.assert_close(own, hand, rtol=0, atol=1e-5)
    assert (own - wrong).abs().max() > 1e-3  # and a plain causal mask is another model


def _as_the_model_takes_it(name, seen):
    """Gemma3 takes one mask a kind of layer, PaliGemma one for all."""
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    return {"full_attention": mask, "sliding_attention": mask} if name == "gemma3" else mask
