"""The registry, its twins, and how a checkpoint that cannot be loaded says so."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Gemma3ForConditionalGeneration, PaliGemmaForConditionalGeneration

from cag_utils.backbones import BACKBONES, get_backbone
from cag_utils.corpus.examples import encode_prompts
from cag_utils.making.twins import IMAGE_PX, PATCH_PX, POOLED_TOKENS
from cag_utils.profiles import load_profile
from cag_utils.vlm import loading
from cag_utils.vlm.loading import (
    check_layout,
    find_sources,
    load_backbone,
    locate,
    model_layout,
    quantisation,
)
from tests.vlm.twins_world import timm_twin, write_twins

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_twins(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def twins(weights, monkeypatch):
    monkeypatch.setattr(loading, "WEIGHTS", weights)


@pytest.mark.parametrize("profile", ["smoke", "phantom", "paper"])
def test_profiles_name_only_known_backbones_and_the_papers_ranks(profile):
    settings = load_profile(profile).finetune
    assert set(settings.backbones) == set(BACKBONES) and settings.lora == {}
    ranks = {"paligemma2": (16, 16), "gemma3": (8, 8), "conceptclip_gemma3": (8, 8)}
    assert {n: (b.lora_rank, b.lora_alpha) for n, b in BACKBONES.items()} == ranks


def test_an_unknown_backbone_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'gemma3'"):
        get_backbone("gema3")
    with pytest.raises(ValueError, match="unknown size 'tini'"):
        load_backbone("gemma3", "tini")


@pytest.mark.parametrize(
    ("name", "kind", "tokens"),
    [
        ("gemma3", Gemma3ForConditionalGeneration, POOLED_TOKENS),
        ("conceptclip_gemma3", Gemma3ForConditionalGeneration, POOLED_TOKENS),
        ("paligemma2", PaliGemmaForConditionalGeneration, (IMAGE_PX // PATCH_PX) ** 2),
    ],
)
def test_twins_load_as_the_published_classes(twins, name, kind, tokens):
    model, processor = load_backbone(name, "tiny", device="cpu")
    assert type(model) is kind and model.dtype == torch.float32 and not model.training
    assert processor.image_seq_length == tokens


def test_the_swapped_twin_is_gemma3_with_the_other_tower(twins):
    plain, _ = load_backbone("gemma3", "tiny", device="cpu")
    model, processor = load_backbone("conceptclip_gemma3", "tiny", device="cpu")
    side = model.config.vision_config.image_size
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got = model.model.vision_tower(pixels).last_hidden_state
        want = timm_twin(seed=0).eval().forward_features(pixels)
        other = plain.model.vision_tower(pixels).last_hidden_state
    assert (got - want).abs().max() <= 1e-5 < (got - other).abs().max()
    for (name, a), (_, b) in zip(
        model.model.language_model.named_parameters(),
        plain.model.language_model.named_parameters(),
        strict=True,
    ):
        assert torch.equal(a, b), name
    assert processor.image_processor.resample == 3


def test_a_missing_twin_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "WEIGHTS", tmp_path)
    with pytest.raises(FileNotFoundError, match="git checkout -- cag_utils/weights"):
        locate(BACKBONES["gemma3"].checkpoint, "tiny")


def test_another_resolution_than_the_registrys_is_noticed(twins):
    _, processor = load_backbone("gemma3", "tiny", device="cpu")
    side = processor.image_processor.size["height"]
    check_layout(processor, side, processor.image_seq_length)
    with pytest.raises(ValueError, match="says 896 x 896 and 256"):
        check_layout(processor, 896, 256)


def test_real_and_tiny_differ_by_name_only(twins, monkeypatch):
    """The published checkpoint runs the same lines: here it is served from the twin's folder."""
    folder = locate(BACKBONES["gemma3"].checkpoint, "tiny")["pretrained_model_name_or_path"]
    tiny, processor = load_backbone("gemma3", "tiny", device="cpu")
    real, same = load_backbone("gemma3", "real", device="cpu", checkpoint=folder)
    assert type(real) is type(tiny) and same.image_seq_length == processor.image_seq_length
    state = real.state_dict()
    assert all(torch.equal(state[k], v) for k, v in tiny.state_dict().items())


def test_the_registrys_own_checkpoint_must_have_the_registrys_layout(twins, weights, monkeypatch):
    served = replace(BACKBONES["gemma3"].checkpoint, repo=str(weights / "gemma3"))
    as_is = replace(BACKBONES["gemma3"], checkpoint=served)
    monkeypatch.setitem(BACKBONES, "gemma3", as_is)
    with pytest.raises(ValueError, match="says 896 x 896 and 256"):
        load_backbone("gemma3", "real", device="cpu")
    fitting = replace(as_is, image_px=IMAGE_PX, image_tokens=POOLED_TOKENS)
    monkeypatch.setitem(BACKBONES, "gemma3", fitting)
    assert load_backbone("gemma3", "real", device="cpu")[1].image_seq_length == POOLED_TOKENS


def test_a_swapped_model_loads_from_folders_and_comes_back_as_it_was_saved(weights, tmp_path):
    parts = {
        "checkpoint": str(weights / "gemma3"),
        "tower_checkpoint": str(weights / "conceptclip"),
    }
    model, processor = load_backbone("conceptclip_gemma3", "real", device="cpu", **parts)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert find_sources("conceptclip_gemma3", "real", str(tmp_path))[1] is None
    again, back = load_backbone("conceptclip_gemma3", "real", "cpu", checkpoint=str(tmp_path))
    state = again.state_dict()
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    layout = (back.image_processor.size["height"], back.image_seq_length)
    assert layout == model_layout(again.config) == model_layout(model.config)


def test_a_folder_whose_processor_is_another_models_is_refused(weights, tmp_path):
    folder = Path(shutil.copytree(weights / "gemma3", tmp_path / "mixed"))
    config = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    config["image_seq_length"] = 7
    (folder / "processor_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match="and 7 image tokens"):
        load_backbone("gemma3", "real", device="cpu", checkpoint=str(folder))


def test_a_folder_of_pickles_is_never_read(weights, tmp_path):
    folder = Path(shutil.copytree(weights / "gemma3", tmp_path / "pickled"))
    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        load_backbone("gemma3", "real", device="cpu", checkpoint=str(folder))


def test_a_tower_of_a_width_nobody_knows_is_refused(weights, tmp_path):
    from safetensors.torch import save_file

    save_file({"patch_embed.proj.weight": torch.zeros(96, 3, 2, 2)}, tmp_path / "model.safetensors")
    parts = {"checkpoint": str(weights / "gemma3"), "tower_checkpoint": str(tmp_path)}
    with pytest.raises(ValueError, match=r"96 wide.*\[128, 1152\]"):
        load_backbone("conceptclip_gemma3", "real", device="cpu", **parts)


def test_checkpoints_that_go_nowhere_are_refused(tmp_path):
    with pytest.raises(ValueError, match="goes with size real"):
        load_backbone("gemma3", "tiny", checkpoint="org/model")
    with pytest.raises(ValueError, match="gemma3 keeps its own image tower"):
        load_backbone("gemma3", "real", tower_checkpoint=str(tmp_path))


def test_four_bits_need_a_gpu_and_bitsandbytes(monkeypatch):
    assert quantisation("none", "cpu") == {}
    with pytest.raises(ValueError, match="unknown quantise '8bit'"):
        quantisation("8bit", "cuda")
    with pytest.raises(ValueError, match="needs a CUDA GPU"):
        load_backbone("gemma3", "tiny", device="cpu", quantise="4bit")
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        quantisation("4bit", "cuda")


def test_four_bits_are_nf4_with_double_quantisation_outside_tower_and_projector(monkeypatch):
    made = {}
    monkeypatch.setattr(loading, "find_spec", lambda name: True)
    monkeypatch.setattr(loading, "BitsAndBytesConfig", lambda **kwargs: made.update(kwargs))
    assert quantisation("4bit", "cuda:1")["device_map"] == {"": "cuda:1"}
    assert made.pop("bnb_4bit_compute_dtype") is torch.bfloat16
    kept = made.pop("llm_int8_skip_modules")
    assert {"vision_tower", "multi_modal_projector"} <= set(kept)
    assert made == {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    }


@pytest.mark.parametrize("name", BACKBONES)
def test_the_prompt_style_is_what_the_processor_gets(twins, name):
    from PIL import Image

    _, processor = load_backbone(name, "tiny", device="cpu")
    ids = encode_prompts(processor, [Image.new("RGB", (IMAGE_PX,) * 2)], ["Report?"])["input_ids"]
    text = processor.tokenizer.decode(ids[0])
    expected = "chat" if "<start_of_turn>" in text else "prefix"
    assert get_backbone(name).prompt == expected
    with pytest.raises(ValueError, match="unknown prompt 'poem'"):
        replace(get_backbone(name), prompt="poem")


def test_no_backbone_runs_code_or_unpickles():
    package = Path(loading.__file__).parents[1]
    for path in package.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert "pickle.load" not in source and "trust_remote_code" not in source, path
    loads = {
        path.name: re.findall(r"torch\.load\([^)]*\)", path.read_text(encoding="utf-8"))
        for path in package.rglob("*.py")
    }
    assert all("weights_only=True" in call for calls in loads.values() for call in calls), loads


def cached(cache, repo, folder):
    """Lay a folder into a hub cache, as a download of its main branch would."""
    at = cache / f"models--{repo.replace('/', '--')}"
    shutil.copytree(folder, at / "snapshots" / COMMIT)
    (at / "refs").mkdir()
    (at / "refs" / "main").write_text(COMMIT, encoding="utf-8")


OFFLINE = """
from dataclasses import replace
from cag_utils.backbones import BACKBONES
from cag_utils.vlm.loading import load_backbone
from cag_utils.hub import resolved_commit
from cag_utils.vlm.preflight import preflight, sources_table

print(preflight("gemma3", "real", checkpoint="org/twin", device="cpu")["ok"].all())
model, processor = load_backbone("gemma3", "real", "cpu", checkpoint="org/twin")
print(processor.image_seq_length, resolved_commit("org/twin"))
parts = {"checkpoint": "org/twin", "tower_checkpoint": "org/tower"}
load_backbone("conceptclip_gemma3", "real", "cpu", **parts)
print(list(sources_table("conceptclip_gemma3", "real", **parts)["commit"]))
entry, side = BACKBONES["gemma3"], processor.image_processor.size["height"]
fit = replace(entry, image_px=side, image_tokens=processor.image_seq_length)
BACKBONES["gemma3"] = fit
print(type(load_backbone("gemma3", "real", "cpu")[0]).__name__)
try:
    load_backbone("paligemma2", "real", "cpu")
except ConnectionError as error:
    print(error)
"""


def test_what_is_cached_loads_offline(weights, tmp_path):
    cached(tmp_path, "org/twin", weights / "gemma3")
    cached(tmp_path, "google/gemma-3-4b-it", weights / "gemma3")
    cached(tmp_path, "org/tower", weights / "conceptclip")
    env = os.environ | {
        "HF_HUB_CACHE": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "HF_ENDPOINT": "http://127.0.0.1:9",  # nobody listens, were it asked
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OFFLINE],
        env=env,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "True" and lines[1] == f"{POOLED_TOKENS} {COMMIT}"
    assert lines[2] == str([COMMIT, COMMIT])
    assert lines[3] == "Gemma3ForConditionalGeneration"
    assert "offline mode is on" in lines[4] and "hf auth login" in done.stdout
