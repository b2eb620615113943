"""The registry, its twins and their attention, and how what cannot be loaded says so."""

import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText

from cag_utils.backbones import BACKBONES, get_backbone
from cag_utils.corpus.examples import encode_prompts
from cag_utils.making.twins import IMAGE_PX, PATCH_PX, POOLED_TOKENS
from cag_utils.profiles import load_profile
from cag_utils.vlm import loading
from cag_utils.vlm.loading import FUSED, load_backbone, quantisation
from tests.conftest import ROOT
from tests.vlm.test_preflight import GEMMA3_4B
from tests.vlm.world import output_of, timm_twin

COMMIT = "0123456789abcdef0123456789abcdef01234567"
load_gemma3 = partial(load_backbone, "gemma3")
# Of Gemma3-4B only the configuration is there; 8.6 GB are still to come and fit into 9 GB, not 8.
OFFLINE = """
from dataclasses import replace
from cag_utils.backbones import BACKBONES
from cag_utils.vlm.loading import load_backbone
from cag_utils.hub import resolved_commit
from cag_utils.vlm.preflight import Machine, preflight, sources_table

def told(call, *args, **kwargs):
    try:
        print(call(*args, **kwargs))
    except (ConnectionError, RuntimeError) as error:
        print(type(error).__name__, str(error).replace(chr(10), " "))

print(preflight("gemma3", "real", checkpoint="org/twin")["ok"].all())
model, processor = load_backbone("gemma3", "real", "cpu", checkpoint="org/twin")
print(processor.image_seq_length, resolved_commit("org/twin"))
parts = {"checkpoint": "org/twin", "tower_checkpoint": "org/tower"}
load_backbone("conceptclip_gemma3", "real", "cpu", **parts)
print(list(sources_table("conceptclip_gemma3", "real", **parts)["commit"]))
room = Machine("cuda", "A GPU", memory_gb=80, disk_gb=9, bfloat16=True)
print(preflight("gemma3", "real", machine=room, batch_size=4).to_dict("records"))
told(preflight, "gemma3", "real", machine=replace(room, disk_gb=8))
told(load_backbone, "conceptclip_gemma3", "real", "cpu")
twin = model.config.vision_config.image_size, processor.image_seq_length
fit = replace(BACKBONES["paligemma2"], image_px=twin[0], image_tokens=(twin[0] // 16) ** 2)
BACKBONES["paligemma2"] = fit
print(type(load_backbone("paligemma2", "real", "cpu")[0]).__name__)
"""


def test_profiles_name_only_known_backbones_and_the_papers_ranks():
    for profile in ("smoke", "phantom", "paper"):
        settings = load_profile(profile).finetune
        assert set(settings.backbones) == set(BACKBONES) and settings.lora == {}
    ranks = {"paligemma2": (16, 16), "gemma3": (8, 8), "conceptclip_gemma3": (8, 8)}
    assert {n: (b.lora_rank, b.lora_alpha) for n, b in BACKBONES.items()} == ranks


@pytest.mark.parametrize("call, match", [
    (lambda: get_backbone("gema3"), "did you mean 'gemma3'"),
    (lambda: load_gemma3("tini"), "unknown size 'tini'"),
    (lambda: load_gemma3("tiny", checkpoint="org/model"), "goes with size real"),
    (lambda: load_gemma3("real", tower_checkpoint="x"), "gemma3 keeps its own image tower"),
    (lambda: quantisation("8bit", "cuda"), "unknown quantise '8bit'"),
    (lambda: load_gemma3("tiny", "cpu", quantise="4bit"), "needs a CUDA GPU"),
    (lambda: replace(get_backbone("gemma3"), prompt="poem"), "unknown prompt 'poem'"),
])  # fmt: skip
def test_what_does_not_exist_or_go_together_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize(("name", "kind", "tokens"), [
    ("gemma3", "Gemma3", POOLED_TOKENS),
    ("conceptclip_gemma3", "Gemma3", POOLED_TOKENS),
    ("paligemma2", "PaliGemma", (IMAGE_PX // PATCH_PX) ** 2),
])  # fmt: skip
def test_twins_load_as_the_published_classes_with_their_prompts(twins, name, kind, tokens):
    model, processor = load_backbone(name, "tiny", device="cpu")
    assert type(model) is getattr(transformers, f"{kind}ForConditionalGeneration")
    assert model.dtype == torch.float32 and not model.training
    assert processor.image_seq_length == tokens
    with pytest.raises(ValueError, match="says 896 x 896 and 256"):
        loading.check_layout(processor, 896, 256)
    ids = encode_prompts(processor, [Image.new("RGB", (IMAGE_PX,) * 2)], ["Report?"])["input_ids"]
    chats = "<start_of_turn>" in processor.tokenizer.decode(ids[0])
    assert get_backbone(name).prompt == ("chat" if chats else "prefix")


def test_the_swapped_twin_is_gemma3_with_the_other_tower(twins):
    plain, _ = load_backbone("gemma3", "tiny", device="cpu")
    model, processor = load_backbone("conceptclip_gemma3", "tiny", device="cpu")
    side = model.config.vision_config.image_size
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got = model.model.vision_tower(pixels).last_hidden_state
        want = timm_twin(plain.config.vision_config).eval().forward_features(pixels)
        other = plain.model.vision_tower(pixels).last_hidden_state
    assert (got - want).abs().max() <= 1e-5 < (got - other).abs().max()
    kept, own = (x.model.language_model.state_dict() for x in (plain, model))
    torch.testing.assert_close(own, kept, rtol=0, atol=0)
    assert processor.image_processor.resample == 3


def test_the_registrys_own_checkpoint_must_be_there_with_its_layout(twins, monkeypatch, tmp_path):
    served = replace(BACKBONES["gemma3"].checkpoint, repo=str(twins / "gemma3"))
    as_is = replace(BACKBONES["gemma3"], checkpoint=served)
    monkeypatch.setitem(BACKBONES, "gemma3", as_is)
    with pytest.raises(ValueError, match="says 896 x 896 and 256"):
        load_backbone("gemma3", "real", device="cpu")
    fitting = replace(as_is, image_px=IMAGE_PX, image_tokens=POOLED_TOKENS)
    monkeypatch.setitem(BACKBONES, "gemma3", fitting)
    assert load_backbone("gemma3", "real", device="cpu")[1].image_seq_length == POOLED_TOKENS
    monkeypatch.setattr(loading, "WEIGHTS", tmp_path)
    with pytest.raises(FileNotFoundError, match="git checkout -- cag_utils/weights"):
        loading.locate(served, "tiny")


def test_a_swapped_model_loads_from_folders_and_comes_back_as_it_was_saved(twins, tmp_path):
    parts = {"checkpoint": str(twins / "gemma3"), "tower_checkpoint": str(twins / "conceptclip")}
    model, processor = load_backbone("conceptclip_gemma3", "real", device="cpu", **parts)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert loading.find_sources("conceptclip_gemma3", "real", str(tmp_path))[1] is None
    assert loading.find_sources("conceptclip_gemma3", "real", parts["checkpoint"])[1] is not None
    again, back = load_backbone("conceptclip_gemma3", "real", "cpu", checkpoint=str(tmp_path))
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    layout = (back.image_processor.size["height"], back.image_seq_length)
    assert layout == loading.model_layout(again.config) == loading.model_layout(model.config)


def test_pickles_another_models_processor_and_unknown_widths_are_refused(weights, tmp_path):
    folder = Path(shutil.copytree(weights / "gemma3", tmp_path / "mixed"))
    told, load = folder / "processor_config.json", partial(load_gemma3, "real", "cpu")
    config = json.loads(told.read_text(encoding="utf-8")) | {"image_seq_length": 7}
    told.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match="and 7 image tokens"):
        load(checkpoint=str(folder))
    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        load(checkpoint=str(folder))
    save_file({"patch_embed.proj.weight": torch.zeros(96, 3, 2, 2)}, tmp_path / "model.safetensors")
    parts = {"checkpoint": str(weights / "gemma3"), "tower_checkpoint": str(tmp_path)}
    with pytest.raises(ValueError, match=r"96 wide.*\[128, 1152\]"):
        load_backbone("conceptclip_gemma3", "real", device="cpu", **parts)


def test_four_bits_are_nf4_with_double_quantisation_outside_tower_and_projector(monkeypatch):
    assert quantisation("none", "cpu") == {}
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        quantisation("4bit", "cuda")
    made = {}
    monkeypatch.setattr(loading, "find_spec", lambda name: True)
    monkeypatch.setattr(loading, "BitsAndBytesConfig", lambda **kwargs: made.update(kwargs))
    assert quantisation("4bit", "cuda:1")["device_map"] == {"": "cuda:1"}
    assert made.pop("bnb_4bit_compute_dtype") is torch.bfloat16
    assert {"vision_tower", "multi_modal_projector"} <= set(made.pop("llm_int8_skip_modules"))
    told = "load_in_4bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant"
    assert made == dict(zip(told, (True, "nf4", True), strict=True))


def test_no_backbone_runs_code_or_unpickles():
    for path in (ROOT / "cag_utils").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert "trust_remote_code" not in source, path
        # cloudpickle is how the study's own processes are told their work
        assert not re.search(r"(?<!cloud)pickle\.load", source), path
        loads = re.findall(r"torch\.load\([^)]*\)", source)
        assert all("weights_only=True" in call for call in loads), path


def cached(cache, repo):
    """Return the folder of a hub cache in which a download of the main branch would lie."""
    at = cache / f"models--{repo.replace('/', '--')}"
    (at / "refs").mkdir(parents=True)
    (at / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    return at / "snapshots" / COMMIT


def test_what_is_cached_loads_offline_and_what_is_not_needs_disk(weights, tmp_path):
    shutil.copytree(weights / "gemma3", cached(tmp_path, "org/twin"))
    shutil.copytree(weights / "conceptclip", cached(tmp_path, "org/tower"))
    shutil.copytree(weights / "paligemma2", cached(tmp_path, "google/paligemma2-3b-pt-448"))
    GEMMA3_4B.save_pretrained(cached(tmp_path, "google/gemma-3-4b-it"))
    env = {"HF_ENDPOINT": "http://127.0.0.1:9"}  # nobody listens there, were it asked
    told = output_of(OFFLINE, HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE="1", **env)
    lines = told.splitlines()
    assert lines[:3] == ["True", f"{POOLED_TOKENS} {COMMIT}", str([COMMIT, COMMIT])]
    assert "8.6 GB" in lines[3] and "A GPU" in lines[3]
    assert "RuntimeError" in lines[4] and "free disk: needs 8.6 GB, there is 8.0 GB" in lines[4]
    assert "offline mode is on" in lines[5] and "hf auth login" in lines[5]
    assert lines[6] == "PaliGemmaForConditionalGeneration"


def test_the_twin_answers_and_learns_as_with_the_slow_attention(twins):
    model, processor = load_backbone("paligemma2", "tiny", "cpu")
    assert model.config.get_text_config()._attn_implementation == FUSED
    noise = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    prompts = ["RCA", "a " * 40 + "LCA"]  # the short one is padded on the left
    batch = encode_prompts(processor, list(map(Image.fromarray, noise)), prompts)
    seen = batch["attention_mask"].bool()
    assert not seen.all()
    taught = dict(batch) | {"labels": batch["input_ids"].masked_fill(~seen, -100)}
    taught["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    taught["token_type_ids"][:, -3:] = 1
    weight = model.model.language_model.layers[0].self_attn.q_proj.weight

    def run():
        with torch.no_grad():
            logits = model.eval()(**batch).logits[seen]
        weight.grad = None
        model.train()(**taught).loss.backward()
        return logits, weight.grad

    fused = run()
    model.set_attn_implementation({"text_config": "eager"})
    slow = run()
    torch.testing.assert_close(fused[0], slow[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(fused[1], slow[1], atol=1e-5, rtol=1e-3)


def test_a_saved_model_names_no_attention_of_ours_and_others_are_left_alone(twins, tmp_path):
    capped, _ = load_backbone("paligemma2", "tiny", "cpu")
    capped.save_pretrained(tmp_path)
    assert FUSED not in (tmp_path / "config.json").read_text()
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert again.config.get_text_config()._attn_implementation == "eager"
    capped.set_attn_implementation({"text_config": "eager"})
    capped.config.text_config.attn_logit_softcapping = 50.0
    assert not loading.fuse_attention(capped)
    assert capped.config.get_text_config()._attn_implementation == "eager"
    gemma3, _ = load_backbone("gemma3", "tiny", "cpu")
    assert not loading.fuse_attention(gemma3)
    assert gemma3.config.get_text_config()._attn_implementation == "sdpa"
