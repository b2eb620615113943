import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import BertConfig, SiglipVisionConfig, SiglipVisionModel, SwinConfig

from cag_utils import embedder_entries, embedders
from cag_utils.conceptclip import convert_tower, pooling_side
from cag_utils.embedder_entries import check_reachable
from cag_utils.embedders import EMBEDDERS, load_embedder
from cag_utils.making_embedders import TEXT, VISION, build_embedder, start_from_tower
from cag_utils.pixels import Pixels
from cag_utils.two_towers import (
    ConceptClip,
    MedClip,
    load_published,
    masked_mean,
    published_state,
)

TEXTS = [
    "LCX #11 shows 75% stenosis.",
    "No significant stenosis in the RCA. No revascularization is needed; continue risk control.",
    "LAD 7: 90%.",
]
NAMES = list(EMBEDDERS)


@pytest.fixture(scope="module")
def twins():
    return {name: load_embedder(name, "tiny", "cpu") for name in NAMES}


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (side, side), dtype=np.uint8) for side in (240, 300, 512)]


@pytest.mark.parametrize("name", NAMES)
def test_pictures_and_texts_land_in_one_space(name, twins, pictures):
    twin = twins[name]
    images, texts = twin.images(pictures), twin.texts(TEXTS)
    assert images.shape == texts.shape and images.dtype == texts.dtype == np.float64
    assert np.isfinite(images).all() and len(np.unique(texts.round(6), axis=0)) == 3
    if name != "siglip2":  # as published: two of the three come normalised
        np.testing.assert_allclose(np.linalg.norm([*images, *texts], axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_vector_does_not_depend_on_its_neighbours(name, twins, pictures):
    twin = twins[name]
    alone = np.concatenate([twin.texts([text]) for text in TEXTS])
    np.testing.assert_allclose(twin.texts(TEXTS), alone, atol=2e-5)
    alone = np.concatenate([twin.images([picture]) for picture in pictures])
    np.testing.assert_allclose(twin.images(pictures, batch_size=2), alone, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_cut_texts_are_told(name, twins):
    twin = twins[name]
    words = "LCX #11 shows 75% stenosis. " * 30
    assert twin.truncated([*TEXTS, words]).tolist() == [False, False, False, True]
    # what is beyond the context has no influence, which is why it has to be told
    np.testing.assert_array_equal(twin.texts([words]), twin.texts([words + "Nothing else."]))
    context = twin.entry.context
    ids, mask = twin.tokens([twin.towers.clean(words)])
    assert ids.shape == mask.shape == (1, context)


def test_siglip2_texts_are_padded_to_64_as_open_clip_does(twins):
    folder = embedder_entries.WEIGHTS / "siglip2"
    theirs = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    ours, _ = twins["siglip2"].tokens([twins["siglip2"].towers.clean(t) for t in TEXTS])
    assert theirs.shape == (3, 64)
    torch.testing.assert_close(ours, theirs)


def test_squashing_agrees_with_open_clip():
    rng = np.random.default_rng(1)
    picture = Image.fromarray(rng.integers(0, 256, (90, 130, 3), dtype=np.uint8))
    look = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    cfg = open_clip.transform.PreprocessCfg(
        size=64, interpolation="bicubic", resize_mode="squash", **look
    )
    theirs = open_clip.transform.image_transform_v2(cfg, is_train=False)(picture)
    ours = Pixels(64)
    torch.testing.assert_close(ours.tensor([ours.fit(picture)])[0], theirs)


def test_medclip_pads_black_and_drops_colour():
    pixels = EMBEDDERS["medclip"].pixels["real"]
    assert pixels.side == 224
    red = np.zeros((100, 448, 3), np.uint8)
    red[..., 0] = 255  # luminance 0.299: level 76
    tensor = pixels.tensor([pixels.fit(red)])[0]
    assert torch.equal(tensor[0], tensor[1]) and torch.equal(tensor[0], tensor[2])
    assert tensor[0, 0, 0] == pytest.approx(-0.58628 / 0.27950, abs=1e-5)
    assert tensor[0, 112, 112] == pytest.approx((76 / 255 - 0.58628) / 0.27950, abs=1e-5)
    small = np.full((100, 100), 255, np.uint8)  # padded, not enlarged
    assert int((pixels.tensor([pixels.fit(small)])[0, 0] > 0).sum()) == 100 * 100


def test_grey_arrays_and_rgb_images_are_the_same_picture():
    grey = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
    pixels = Pixels(32)
    both = [pixels.fit(grey), pixels.fit(Image.fromarray(grey).convert("RGB"))]
    assert np.array_equal(*map(np.asarray, both))
    fitted = np.asarray(both[0])
    torch.testing.assert_close(pixels.tensor([fitted[..., 0]]), pixels.tensor(both[:1]))


def test_the_real_conceptclip_has_the_published_sizes():
    with torch.device("meta"):
        state = ConceptClip().state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert shapes["visual.trunk.pos_embed"] == (1, 729, 1152)
    assert shapes["visual.trunk.patch_embed.proj.weight"] == (1152, 3, 14, 14)
    assert "visual.trunk.blocks.26.attn.qkv.weight" in shapes
    assert "visual.trunk.blocks.27.attn.qkv.weight" not in shapes
    assert shapes["visual.trunk.attn_pool.latent"] == (1, 1, 1152)
    assert shapes["text.proj.weight"] == (1152, 768)
    assert shapes["text.transformer.embeddings.word_embeddings.weight"] == (30522, 768)
    assert shapes["text.transformer.encoder.layer.11.output.dense.weight"] == (768, 3072)


def test_the_real_siglip2_has_the_registrys_sizes():
    name = "ViT-SO400M-14-SigLIP2-378"
    config = open_clip.get_model_config(name)
    entry = EMBEDDERS["siglip2"]
    assert config["text_cfg"]["context_length"] == entry.context == 64
    assert config["vision_cfg"]["image_size"] == entry.pixels["real"].side == 378
    assert config["embed_dim"] == 1152 and (
        "webli" in open_clip.list_pretrained_tags_by_model(name)
    )


def test_the_real_medclip_has_the_published_names_and_sizes():
    with torch.device("meta"):
        state = published_state(MedClip())
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    swin = "vision_model.model.encoder.layers"
    assert shapes[f"{swin}.0.blocks.0.attention.self.query.weight"] == (96, 96)
    assert shapes[f"{swin}.2.blocks.5.intermediate.dense.weight"] == (1536, 384)
    assert shapes[f"{swin}.3.blocks.1.output.dense.weight"] == (768, 3072)
    assert shapes[f"{swin}.0.blocks.0.attention.self.relative_position_bias_table"] == (169, 3)
    assert shapes["vision_model.projection_head.weight"] == (512, 768)
    assert shapes["text_model.projection_head.weight"] == (512, 768)
    assert shapes["text_model.model.embeddings.word_embeddings.weight"] == (28996, 768)
    assert not [name for name in shapes if "q_proj" in name or "mlp.fc" in name]


def small_medclip() -> MedClip:
    torch.manual_seed(0)
    return MedClip(SwinConfig(**VISION), BertConfig(**TEXT | {"vocab_size": 50}), 8).eval()


def test_medclip_loads_what_was_published_years_ago(tmp_path):
    model, other = small_medclip(), small_medclip()
    torch.nn.init.zeros_(other.text_model.projection_head.weight)
    # transformers itself writes Swin under the old names, so it can say whether ours are right
    model.vision_model.model.save_pretrained(tmp_path)
    old = load_file(tmp_path / "model.safetensors")
    state = published_state(model)
    ours = {k.removeprefix("vision_model.model."): v for k, v in state.items()}
    assert set(old) <= set(ours) and all(torch.equal(ours[k], v) for k, v in old.items())
    state["text_model.model.embeddings.position_ids"] = torch.arange(80)[None]
    state["vision_model.model.encoder.layers.0.blocks.0.attention.self.relative_position_index"] = (
        torch.zeros(49, 49, dtype=torch.long)
    )
    load_published(other, state)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )


def test_medclip_reads_hidden_states_1_2_and_last():
    model = small_medclip()
    ids = torch.arange(1, 7)[None]
    states = model.text_model.model(input_ids=ids, output_hidden_states=True).hidden_states
    mean = torch.stack([states[1], states[2], states[3]]).mean(0).mean(1)  # as the package does
    wanted = torch.nn.functional.normalize(model.text_model.projection_head(mean), dim=-1)
    torch.testing.assert_close(model.encode_text(ids, torch.ones_like(ids)), wanted)


def test_a_masked_mean_by_hand():
    tokens = torch.tensor([[[1.0], [3.0], [100.0]]])
    assert masked_mean(tokens, torch.tensor([[1, 1, 0]])).tolist() == [[2.0]]


def test_conceptclip_returns_the_published_dictionary(twins):
    model = twins["conceptclip"].towers.module
    ids, _ = twins["conceptclip"].tokens(TEXTS)
    found = model(torch.zeros(3, 3, 192, 192), ids)
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    assert shapes["image_features"] == shapes["text_features"] == (3, 128)
    assert shapes["image_token_features"] == (3, 144, 128) and shapes["logit_scale"] == ()
    assert shapes["text_token_features"][:2] == tuple(ids.shape)


def test_the_conceptclip_twins_tower_fits_gemma3(twins):
    model = twins["conceptclip"].towers.module
    tower = convert_tower(model.state_dict(), heads=4)
    pixels = torch.randn(2, 3, 192, 192)
    with torch.no_grad():
        ours, theirs = tower(pixel_values=pixels).last_hidden_state, model.encode_image(pixels)[1]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert pooling_side(12, 2) == 2 and tower.config.image_size // tower.config.patch_size == 12


def siglip_tower(side: int) -> SiglipVisionModel:
    torch.manual_seed(1)
    config = SiglipVisionConfig(
        hidden_size=128, intermediate_size=512, num_hidden_layers=6, num_attention_heads=4,
        image_size=side, patch_size=16, hidden_act="gelu", vision_use_head=False,
    )  # fmt: skip
    return SiglipVisionModel(config).eval()


def test_a_pretrained_tower_keeps_its_outputs_and_carries_positions_over(twins):
    model = ConceptClip("vit_twin_patch16_siglip_192", BertConfig(**TEXT | {"vocab_size": 50}))
    start = siglip_tower(192)
    start_from_tower(model.visual.trunk, start.state_dict())
    pixels = torch.randn(1, 3, 192, 192)
    with torch.no_grad():
        wanted = start(pixel_values=pixels).last_hidden_state
        torch.testing.assert_close(model.encode_image(pixels)[1], wanted, atol=1e-5, rtol=0)
    larger = siglip_tower(224)
    table = larger.embeddings.position_embedding.weight
    table.data = torch.arange(196.0)[:, None].expand(196, 128).clone()  # row by row
    start_from_tower(model.visual.trunk, larger.state_dict())
    grid = model.visual.trunk.pos_embed[0, :, 0].reshape(12, 12)
    assert (grid.diff(dim=0) > 11).all() and (grid.diff(dim=1) > 0.5).all()


def test_a_built_twin_can_be_loaded(tmp_path):
    for name in NAMES:
        build_embedder(name, tmp_path / name, TEXTS * 50, seed=1)
    for name in NAMES:
        assert len(load_embedder(name, "tiny", "cpu", tmp_path).texts(TEXTS)) == 3
        assert sum(file.stat().st_size for file in (tmp_path / name).iterdir()) < 4.5e6


def hub(status: int):
    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.mark.parametrize(
    "status, error", [(401, PermissionError), (403, PermissionError), (404, ConnectionError)]
)
@pytest.mark.parametrize("name", NAMES)
def test_missing_weights_are_told_at_once_with_the_way_out(name, status, error, monkeypatch):
    monkeypatch.setattr(embedder_entries.constants, "is_offline_mode", lambda: False)
    server = hub(status)
    entry = replace(EMBEDDERS[name], repo="nobody/nothing")
    with pytest.raises(error) as caught:
        check_reachable(name, entry, endpoint=f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    message = str(caught.value)
    assert entry.url in message and entry.command in message and "tiny" in message


def test_a_reachable_checkpoint_passes(monkeypatch):
    monkeypatch.setattr(embedder_entries.constants, "is_offline_mode", lambda: False)
    server = hub(200)
    entry = replace(EMBEDDERS["conceptclip"], repo="nobody/nothing")
    check_reachable("conceptclip", entry, endpoint=f"http://127.0.0.1:{server.server_port}")
    server.shutdown()


def test_offline_is_told_within_seconds(monkeypatch):
    monkeypatch.setattr(embedder_entries.constants, "is_offline_mode", lambda: True)
    entry = replace(EMBEDDERS["siglip2"], repo="nobody/nothing")
    began = time.monotonic()
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE"):
        check_reachable("siglip2", entry)
    assert time.monotonic() - began < 3


def test_medclip_names_the_folder_it_wants(monkeypatch, tmp_path):
    monkeypatch.setenv("CAG_ROOT", str(tmp_path))
    monkeypatch.setattr(embedders, "check_reachable", lambda *_: None)
    with pytest.raises(FileNotFoundError, match="checkpoints/medclip(.|\n)*curl(.|\n)*tiny"):
        load_embedder("medclip", "real")


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda twin: load_embedder("medclop"), "did you mean 'medclip'"),
        (lambda twin: load_embedder("medclip", "huge"), "unknown size"),
        (lambda twin: twin.texts(["fine", " "]), "empty text"),
        (lambda twin: twin.images([]), "no pictures"),
        (lambda twin: twin.images([np.zeros((4, 4))]), "uint8"),
        (lambda twin: load_published(small_medclip(), {}), "not a MedClip checkpoint"),
        (lambda twin: start_from_tower(
            twin.towers.module.visual.trunk,
            {k: v[..., :2] for k, v in siglip_tower(192).state_dict().items()}), "does not fit"),
        (lambda twin: build_embedder("medclop", "x", []), "did you mean 'medclip'"),
    ],
)  # fmt: skip
def test_refuses_what_it_cannot_use(call, match, twins):
    with pytest.raises(ValueError, match=match):
        call(twins["conceptclip"])


def test_a_missing_twin_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="git checkout"):
        load_embedder("siglip2", "tiny", twins=tmp_path)


def test_conceptclips_own_code_runs_only_at_a_commit_that_the_user_names(monkeypatch):
    asked = []
    loader = type("Loader", (), {"from_pretrained": lambda *a, **k: asked.append(k) or 1 / 0})
    monkeypatch.setattr(embedder_entries, "AutoModel", loader)
    monkeypatch.setattr(embedder_entries, "fetch_weights", lambda *a: 1 / 0)
    load = EMBEDDERS["conceptclip"].load
    with pytest.raises(ZeroDivisionError):
        load(None)  # the study's own network asks for tensors, and for nothing else
    assert asked == []
    monkeypatch.setenv(embedder_entries.COMMIT_VARIABLE, "main")
    with pytest.raises(ValueError, match="40 hexadecimal digits"):
        load(None)
    monkeypatch.setenv(embedder_entries.COMMIT_VARIABLE, "a" * 40)
    with pytest.raises(ZeroDivisionError):
        load(None)
    assert asked[0]["trust_remote_code"] and asked[0]["revision"] == "a" * 40
