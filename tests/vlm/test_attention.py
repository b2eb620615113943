"""Fused attention for PaliGemma without caps: the same logits, and only where it may."""

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from cag_utils.corpus.examples import encode_prompts
from cag_utils.vlm.loading import FUSED, fuse_attention, load_backbone


def two_cases(processor):
    """A short and a long prompt, the short one padded on the left."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    pictures = [Image.fromarray(one) for one in noise]
    return encode_prompts(processor, pictures, ["RCA", "a " * 40 + "LCA"])


def test_the_twin_answers_as_with_the_slow_attention():
    model, processor = load_backbone("paligemma2", "tiny", "cpu")
    assert model.config.get_text_config()._attn_implementation == FUSED
    batch = two_cases(processor)
    seen = batch["attention_mask"].bool()
    assert not seen.all()
    with torch.no_grad():
        fused = model(**batch).logits[seen]
        model.set_attn_implementation({"text_config": "eager"})
        assert model.config.get_text_config()._attn_implementation == "eager"
        slow = model(**batch).logits[seen]
    torch.testing.assert_close(fused, slow, atol=1e-4, rtol=1e-4)


def test_gradients_agree():
    model, processor = load_backbone("paligemma2", "tiny", "cpu")
    batch = two_cases(processor)
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    batch["token_type_ids"][:, -3:] = 1
    weight = model.model.language_model.layers[0].self_attn.q_proj.weight
    model.train()
    model(**batch).loss.backward()
    fused, weight.grad = weight.grad, None
    model.set_attn_implementation({"text_config": "eager"})
    model(**batch).loss.backward()
    torch.testing.assert_close(fused, weight.grad, atol=1e-5, rtol=1e-3)


def test_capped_and_other_models_are_left_alone():
    capped, _ = load_backbone("paligemma2", "tiny", "cpu")
    capped.set_attn_implementation({"text_config": "eager"})
    capped.config.text_config.attn_logit_softcapping = 50.0
    assert not fuse_attention(capped)
    assert capped.config.get_text_config()._attn_implementation == "eager"
    gemma3, _ = load_backbone("gemma3", "tiny", "cpu")
    assert not fuse_attention(gemma3)
    assert gemma3.config.get_text_config()._attn_implementation == "sdpa"


def test_a_saved_model_names_no_attention_of_ours(tmp_path):
    model, _ = load_backbone("paligemma2", "tiny", "cpu")
    model.save_pretrained(tmp_path)
    assert FUSED not in (tmp_path / "config.json").read_text()
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert again.config.get_text_config()._attn_implementation == "eager"
