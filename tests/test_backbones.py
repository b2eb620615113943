"""The registry, its twins, and how a checkpoint that cannot be loaded says so."""

import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from transformers import Gemma3ForConditionalGeneration, PaliGemmaForConditionalGeneration

from cag_utils import backbones
from cag_utils.backbones import (
    BACKBONES,
    Checkpoint,
    check_access,
    check_layout,
    fetch_weights,
    get_backbone,
    load_backbone,
    locate,
)
from cag_utils.settings import load_profile
from cag_utils.twins import IMAGE_PX, PATCH_PX, POOLED_TOKENS
from tests.vlm_world import timm_twin, write_twins

NOWHERE = Checkpoint("nobody/nothing", "main", "https://example.org/licence", "gemma3")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_twins(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def twins(weights, monkeypatch):
    monkeypatch.setattr(backbones, "WEIGHTS", weights)


@pytest.fixture
def hub():
    """A hub that answers every request with the status set on it."""

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):  # noqa: N802 - the name http.server calls
            self.send_response(server.status)
            self.end_headers()

        def log_message(self, *_):
            """Keep the test's output clean."""

    server = HTTPServer(("127.0.0.1", 0), Hub)
    server.status = 200
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


@pytest.mark.parametrize("profile", ["smoke", "phantom", "paper"])
def test_profiles_name_only_known_backbones_and_the_papers_ranks(profile):
    settings = load_profile(profile).finetune
    for name in settings.backbones:
        rank = get_backbone(name).lora_rank
        assert (settings.lora[name].rank, settings.lora[name].alpha) == (rank, rank)
    assert {n: b.lora_rank for n, b in BACKBONES.items()} == {
        "paligemma2": 16,
        "gemma3": 8,
        "conceptclip_gemma3": 8,
    }


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


def test_swapped_twin_and_processor_survive_saving(twins, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, processor = load_backbone("conceptclip_gemma3", "tiny", device="cpu")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    back = AutoProcessor.from_pretrained(tmp_path)
    assert back.image_seq_length == processor.image_seq_length
    assert back.image_processor.size == processor.image_processor.size
    assert back.chat_template == processor.chat_template
    state = again.state_dict()
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


def test_a_missing_twin_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(backbones, "WEIGHTS", tmp_path)
    with pytest.raises(FileNotFoundError, match="git checkout -- cag_utils/weights"):
        locate(BACKBONES["gemma3"].checkpoint, "tiny")


def test_a_gated_checkpoint_names_licence_login_and_twin(hub):
    for hub.status in (401, 403):
        with pytest.raises(PermissionError) as caught:
            check_access(NOWHERE, hub.url)
        for part in ("gated", NOWHERE.licence_url, "hf auth login", "-p size tiny", "'gemma3'"):
            assert part in str(caught.value)


def test_an_open_checkpoint_passes_and_a_lost_one_does_not(hub):
    check_access(NOWHERE, hub.url)
    hub.status = 404
    with pytest.raises(ConnectionError, match="answered 404 for revision main"):
        check_access(NOWHERE, hub.url)


def test_no_hub_at_all_fails_within_seconds():
    began = time.monotonic()
    with pytest.raises(ConnectionError, match="did not answer") as caught:
        check_access(NOWHERE, "http://127.0.0.1:9")  # the discard port: nobody listens
    assert time.monotonic() - began < 10
    assert "hf auth login" in str(caught.value)


def test_offline_mode_is_said_at_once(monkeypatch):
    monkeypatch.setattr(backbones.constants, "is_offline_mode", lambda: True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE"):
        load_backbone("paligemma2", "real")


def test_a_cached_checkpoint_needs_no_hub(monkeypatch):
    monkeypatch.setattr(backbones, "try_to_load_from_cache", lambda *_, **__: "/cache/config.json")
    check_access(NOWHERE, "http://127.0.0.1:9")
    assert locate(NOWHERE, "real")["revision"] == "main"


def test_weights_of_a_tower_come_from_a_folder_or_the_hub(monkeypatch, tmp_path):
    assert fetch_weights(str(tmp_path)) == tmp_path
    asked = []

    def download(repo, name, revision):
        asked.append(name)
        if name == "model.safetensors":
            raise backbones.EntryNotFoundError("not there")
        return f"/cache/{name}"

    monkeypatch.setattr(backbones, "hf_hub_download", download)
    assert fetch_weights("a/b", "main").name == "pytorch_model.bin"
    assert asked == ["model.safetensors", "pytorch_model.bin"]


def test_another_resolution_than_the_registrys_is_noticed(twins):
    _, processor = load_backbone("gemma3", "tiny", device="cpu")
    side = processor.image_processor.size["height"]
    check_layout(processor, side, processor.image_seq_length)
    with pytest.raises(ValueError, match="registry says 896 x 896 and 256"):
        check_layout(processor, 896, 256)


def test_real_and_tiny_differ_by_name_only(twins, monkeypatch):
    """The published checkpoint runs the same lines: here it is served from the twin's folder."""
    seen = []
    monkeypatch.setattr(backbones, "check_access", lambda checkpoint: seen.append(checkpoint.repo))
    served = {
        name: locate(BACKBONES[name].checkpoint, "tiny")["pretrained_model_name_or_path"]
        for name in BACKBONES
    }
    entry = BACKBONES["gemma3"]
    _, processor = load_backbone("gemma3", "tiny", device="cpu")
    side = processor.image_processor.size["height"]
    twin = Checkpoint(served["gemma3"], "main", entry.checkpoint.licence_url, "gemma3")
    as_real = backbones.Backbone(twin, 8, side, processor.image_seq_length)
    monkeypatch.setitem(BACKBONES, "gemma3", as_real)
    model, _ = load_backbone("gemma3", "real", device="cpu")
    assert seen == [served["gemma3"]] and type(model) is Gemma3ForConditionalGeneration
