import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import BertConfig, SiglipVisionConfig, SiglipVisionModel, SwinConfig

from cag_utils.hub import Checkpoint
from cag_utils.making.embedders import TEXT, VISION, build_embedder, start_from_tower
from cag_utils.profiles import Stats, Vlscore
from cag_utils.report import paper_table
from cag_utils.scores import embedders, vlscore
from cag_utils.scores.embedders import EMBEDDERS, Entry, Pixels, Towers, load_embedder
from cag_utils.scores.two_towers import ConceptClip, MedClip, load_published, published_state

TEXTS = [
    "LCX #11 shows 75% stenosis.",
    "No significant stenosis in the RCA. No revascularization is needed; continue risk control.",
    "LAD 7: 90%.",
]
NAMES = list(EMBEDDERS)
SWIN = "vision_model.model.encoder.layers"


@pytest.fixture(scope="module")
def twins():
    return {name: load_embedder(name, "tiny", "cpu") for name in NAMES}


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (side, side), dtype=np.uint8) for side in (240, 300, 512)]


@pytest.mark.parametrize("name", NAMES)
def test_vectors_share_a_space_depend_on_no_neighbours_and_tell_cut_texts(name, twins, pictures):
    twin, words = twins[name], TEXTS[0] * 30
    images, texts = twin.images(pictures), twin.texts(TEXTS)
    assert images.shape == texts.shape and images.dtype == texts.dtype == np.float64
    assert np.isfinite(images).all() and len(np.unique(texts.round(6), axis=0)) == 3
    if name != "siglip2":  # as published: two of the three come normalised
        np.testing.assert_allclose(np.linalg.norm([*images, *texts], axis=1), 1, atol=1e-5)
    alone = np.concatenate([twin.texts([text]) for text in TEXTS])
    np.testing.assert_allclose(texts, alone, atol=2e-5)
    alone = np.concatenate([twin.images([picture]) for picture in pictures])
    np.testing.assert_allclose(twin.images(pictures, batch_size=2), alone, atol=2e-5)
    assert twin.truncated([*TEXTS, words]).tolist() == [False, False, False, True]
    # what is beyond the context has no influence, which is why it has to be told
    np.testing.assert_array_equal(twin.texts([words]), twin.texts([words + "Nothing else."]))
    ids, mask = twin.tokens([twin.towers.clean(words)])
    assert ids.shape == mask.shape == (1, twin.entry.context)


def test_siglip2_has_its_published_sizes_and_pads_texts_to_64_as_open_clip_does(twins):
    name, entry = "ViT-SO400M-14-SigLIP2-378", EMBEDDERS["siglip2"]
    config = open_clip.get_model_config(name)
    assert config["text_cfg"]["context_length"] == entry.context == 64
    assert config["vision_cfg"]["image_size"] == entry.pixels["real"].side == 378
    assert config["embed_dim"] == 1152
    assert "webli" in open_clip.list_pretrained_tags_by_model(name)
    theirs = open_clip.get_tokenizer(f"local-dir:{embedders.WEIGHTS / 'siglip2'}")(TEXTS)
    ours, _ = twins["siglip2"].tokens([twins["siglip2"].towers.clean(t) for t in TEXTS])
    assert theirs.shape == (3, 64)
    torch.testing.assert_close(ours, theirs)


def test_squashing_agrees_with_open_clip_and_grey_arrays_are_as_rgb_images():
    rng, ours = np.random.default_rng(1), Pixels(64)
    picture = Image.fromarray(rng.integers(0, 256, (90, 130, 3), dtype=np.uint8))
    how = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
    cfg = open_clip.transform.PreprocessCfg(64, **how, resize_mode="squash")
    theirs = open_clip.transform.image_transform_v2(cfg, is_train=False)(picture)
    torch.testing.assert_close(ours.tensor([ours.fit(picture)])[0], theirs)
    grey, pixels = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64), Pixels(32)
    both = [pixels.fit(grey), pixels.fit(Image.fromarray(grey).convert("RGB"))]
    assert np.array_equal(*map(np.asarray, both))
    fitted = np.asarray(both[0])
    torch.testing.assert_close(pixels.tensor([fitted[..., 0]]), pixels.tensor(both[:1]))


def test_medclip_pads_black_and_drops_colour():
    pixels = EMBEDDERS["medclip"].pixels["real"]
    red = np.tile(np.array([255, 0, 0], np.uint8), (100, 448, 1))  # luminance 0.299: level 76
    tensor = pixels.tensor([pixels.fit(red)])[0]
    assert tensor.shape == (3, 224, 224)
    assert torch.equal(tensor[0], tensor[1]) and torch.equal(tensor[0], tensor[2])
    assert tensor[0, 0, 0] == pytest.approx(-0.58628 / 0.27950, abs=1e-5)
    assert tensor[0, 112, 112] == pytest.approx((76 / 255 - 0.58628) / 0.27950, abs=1e-5)
    small = np.full((100, 100), 255, np.uint8)  # padded, not enlarged
    assert int((pixels.tensor([pixels.fit(small)])[0, 0] > 0).sum()) == 100 * 100


@pytest.mark.parametrize("build, wanted, absent", [
    (lambda: ConceptClip().state_dict(), {
        "visual.trunk.pos_embed": (1, 729, 1152),
        "visual.trunk.patch_embed.proj.weight": (1152, 3, 14, 14),
        "visual.trunk.blocks.26.attn.qkv.weight": (3 * 1152, 1152),
        "visual.trunk.attn_pool.latent": (1, 1, 1152),
        "text.proj.weight": (1152, 768),
        "text.transformer.embeddings.word_embeddings.weight": (30522, 768),
        "text.transformer.encoder.layer.11.output.dense.weight": (768, 3072),
    }, ("blocks.27.",)),
    (lambda: published_state(MedClip()), {
        f"{SWIN}.0.blocks.0.attention.self.query.weight": (96, 96),
        f"{SWIN}.2.blocks.5.intermediate.dense.weight": (1536, 384),
        f"{SWIN}.3.blocks.1.output.dense.weight": (768, 3072),
        f"{SWIN}.0.blocks.0.attention.self.relative_position_bias_table": (169, 3),
        "vision_model.projection_head.weight": (512, 768),
        "text_model.projection_head.weight": (512, 768),
        "text_model.model.embeddings.word_embeddings.weight": (28996, 768),
    }, ("q_proj", "mlp.fc")),
])  # fmt: skip
def test_the_real_networks_have_the_published_names_and_sizes(build, wanted, absent):
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in build().items()}
    assert wanted.items() <= shapes.items()
    assert not [name for name in shapes if any(part in name for part in absent)]


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
    state[f"{SWIN}.0.blocks.0.attention.self.relative_position_index"] = torch.zeros(49, 49)
    load_published(other, state)
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_medclip_reads_hidden_states_1_2_and_last():
    model = small_medclip()
    ids = torch.arange(1, 7)[None]
    states = model.text_model.model(input_ids=ids, output_hidden_states=True).hidden_states
    mean = torch.stack([states[1], states[2], states[3]]).mean(0).mean(1)  # as the package does
    wanted = torch.nn.functional.normalize(model.text_model.projection_head(mean), dim=-1)
    mask = torch.ones_like(ids)
    torch.testing.assert_close(model.encode_text(ids, mask), wanted)
    padded = (torch.nn.functional.pad(x, (0, 3)) for x in (ids, mask))  # padding never counts
    torch.testing.assert_close(model.encode_text(*padded), wanted)


def siglip_tower(side: int) -> SiglipVisionModel:
    torch.manual_seed(1)
    sizes = dict(hidden_size=128, intermediate_size=512, num_hidden_layers=6, patch_size=16)
    sizes |= dict(num_attention_heads=4, hidden_act="gelu", vision_use_head=False)
    return SiglipVisionModel(SiglipVisionConfig(image_size=side, **sizes)).eval()


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
        assert len(load_embedder(name, "tiny", "cpu", tmp_path).texts(TEXTS)) == 3
        assert sum(file.stat().st_size for file in (tmp_path / name).iterdir()) < 4.5e6


@pytest.mark.parametrize("call, match", [
    (lambda twin: load_embedder("medclop"), "did you mean 'medclip'"),
    (lambda twin: load_embedder("medclip", "huge"), "unknown size"),
    (lambda twin: twin.texts(["fine", " "]), "empty text"),
    (lambda twin: twin.images([]), "no pictures"),
    (lambda twin: twin.images([np.zeros((4, 4))]), "uint8"),
    (lambda twin: load_published(small_medclip(), {}), "not a MedClip checkpoint"),
    (lambda twin: start_from_tower(twin.towers.module.visual.trunk,
        {k: v[..., :2] for k, v in siglip_tower(192).state_dict().items()}), "does not fit"),
    (lambda twin: build_embedder("medclop", "x", []), "did you mean 'medclip'"),
])  # fmt: skip
def test_refuses_what_it_cannot_use(call, match, twins):
    with pytest.raises(ValueError, match=match):
        call(twins["conceptclip"])


def test_missing_weights_name_the_folder_and_the_command(monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match="git checkout"):
        load_embedder("siglip2", "tiny", twins=tmp_path)
    monkeypatch.setenv("CAG_ROOT", str(tmp_path))
    monkeypatch.setattr(embedders, "check_access", lambda _: None)
    with pytest.raises(FileNotFoundError, match="checkpoints/medclip(.|\n)*curl(.|\n)*tiny"):
        load_embedder("medclip", "real")


def test_an_embedder_is_added_by_one_entry(monkeypatch, tmp_path):
    """A made-up one, through the calls of notebooks 06 and 08."""

    def load(checkpoint, twin):
        made = load_embedder("medclip", "tiny", "cpu").towers
        assert twin == tmp_path / "madeup" and checkpoint.twin == "madeup"
        return Towers(made.image, made.text, made.tokenizer, made.module, str.upper)

    source = Checkpoint("nobody/nothing", "main", "https://huggingface.co/nobody", "madeup")
    pixels = {"real": Pixels(224), "tiny": Pixels(224)}
    entry = Entry("MadeUpCLIP", load, source, 12, pixels, languages=("en", "ja"))
    monkeypatch.setitem(EMBEDDERS, "madeup", entry)
    (tmp_path / "madeup").mkdir()
    for k in range(2):
        Image.new("L", (64, 64), 90 * k).save(tmp_path / f"{k}.png")
    pairs = pd.DataFrame({"case_id": ["a", "b"], "patient_id": ["p", "q"]})
    pairs["png"] = ["0.png", "1.png"]
    said = pd.DataFrame({"case_id": ["a", "b"], "model": "gemma3_lora", "status": "ok"})
    cases = vlscore.join_cases(said.assign(output=TEXTS[0], ground_truth=TEXTS[:2]), pairs)
    space = vlscore.embed(load_embedder("madeup", "tiny", "cpu", tmp_path), cases, tmp_path)
    settings = Vlscore(size="tiny", embedders=["madeup"], normalise=True, max_area=1.0)
    scores = vlscore.score_models(cases, space, "madeup", settings)
    assert scores["vlscore"][0] == 1 > scores["vlscore"][1] and scores["truncated"].any()
    summary = vlscore.summarise_vlscores(scores, Stats(n_resamples=20, level=0.95), 0)
    table = vlscore.table3(summary, paper_table("table3_vlscore"), {"madeup": entry.title})
    assert set(table["Embedder"]) == {"MadeUpCLIP"} and table["Paper mean"].isna().all()
    with pytest.raises(ConnectionError, match="nobody/nothing.*(.|\n)*'madeup'"):
        monkeypatch.setattr("cag_utils.hub.constants.is_offline_mode", lambda: True)
        load_embedder("madeup", "real")
