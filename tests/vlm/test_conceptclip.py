"""The tower conversion and swap, against timm itself and against the published sizes."""

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    SiglipVisionConfig,
)

from cag_utils.corpus.examples import encode_prompts
from cag_utils.hub import read_safetensors
from cag_utils.making.twins import build_twin
from cag_utils.vlm.conceptclip import (
    convert_tower,
    has_converted_tower,
    pooling_side,
    rename_tower,
    swap_tower,
    tower_config,
    tower_state,
    tower_width,
)

SMALL = {"img_size": 24, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4}
REAL = "vit_so400m_patch14_siglip_384"


def timm_tower(**sizes):
    torch.manual_seed(0)
    tower = timm.create_model("vit_base_patch16_siglip_224", num_classes=0, **(SMALL | sizes))
    for values in tower.parameters():  # timm starts near 0, which would hide what is lost
        torch.nn.init.normal_(values, std=0.3)
    return tower.eval()


def gemma3(width=32, patches=8, tokens=16):
    """A small Gemma3 whose own tower pools 2 x 2 patches; its projector is not zeros."""
    vision = SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=patches * 4,
        patch_size=4,
        vision_use_head=False,
    )
    text = Gemma3TextConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention"],
    )
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=tokens,
        image_token_index=7,
        boi_token_index=5,
        eoi_token_index=6,
    )
    torch.manual_seed(1)
    model = Gemma3ForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)
    return model


class FakeProcessor:
    """Only what `swap_tower` reads of a processor; the real one is tested in test_backbones."""

    chat_template = "{{ messages }}"

    class tokenizer:  # noqa: N801 - stands in for an attribute
        boi_token, eoi_token, image_token, boi_token_id = "<b>", "<e>", "<i>", 5


@pytest.fixture
def processor(monkeypatch):
    """Stop Gemma3Processor from asking for a real tokenizer."""
    made = {}

    def fake(images, tokenizer, template, image_seq_length):
        made.update(images=images, template=template, tokens=image_seq_length)
        return made

    monkeypatch.setattr("cag_utils.vlm.conceptclip.Gemma3Processor", fake)
    return FakeProcessor


@pytest.mark.parametrize("sizes", [{}, {"depth": 3, "embed_dim": 48}, {"img_size": 28}])
def test_patch_outputs_equal_timms(sizes):
    tower = timm_tower(**sizes)
    side = (SMALL | sizes)["img_size"]
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        want = tower.forward_features(pixels)
        got = convert_tower(tower.state_dict(), heads=4)(pixels).last_hidden_state
    assert got.shape == want.shape == (2, (side // 4) ** 2, (SMALL | sizes)["embed_dim"])
    assert (got - want).abs().max() <= 1e-5


def test_the_tanh_gelu_would_be_caught():
    tower = timm_tower()
    converted = convert_tower(tower.state_dict(), heads=4)
    converted.config.hidden_act = "gelu_pytorch_tanh"
    other = type(converted)(converted.config).eval()
    other.load_state_dict(converted.state_dict())
    pixels = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        off = (other(pixels).last_hidden_state - tower.forward_features(pixels)).abs().max()
    assert off > 1e-5


def test_any_prefix_is_stripped_and_the_text_tower_left_behind():
    bare = timm_tower().state_dict()
    whole = {f"visual.trunk.{name}": t for name, t in bare.items()} | {"text.x": torch.zeros(1)}
    assert tower_state(whole).keys() == tower_state(bare).keys() == bare.keys()


def test_a_file_without_a_tower_is_refused():
    with pytest.raises(ValueError, match="found 0"):
        tower_state({"text.weight": torch.zeros(1)})
    two = {f"{k}.patch_embed.proj.weight": torch.zeros(1) for k in "ab"}
    with pytest.raises(ValueError, match="found 2"):
        tower_state(two)


def test_a_class_token_is_refused():
    state = timm_tower().state_dict()
    with pytest.raises(ValueError, match="cls_token has no counterpart"):
        rename_tower(state | {"cls_token": torch.zeros(1, 1, 32)})
    longer = state | {"pos_embed": torch.zeros(1, 37, 32)}
    with pytest.raises(ValueError, match="37 positions form no square grid"):
        tower_config(longer, heads=4)


def test_a_side_that_does_not_fit_the_patches_is_refused():
    with pytest.raises(ValueError, match="30 pixels in patches of 4 do not give 6 a side"):
        convert_tower(timm_tower().state_dict(), heads=4, side=30)


def test_pixels_beyond_the_last_patch_are_ignored_as_in_timm():
    tower = timm_tower()
    pixels = torch.randn(1, 3, 26, 26, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        got = convert_tower(tower.state_dict(), heads=4, side=26)(pixels).last_hidden_state
        want = tower.forward_features(pixels[:, :, :24, :24])
    assert (got - want).abs().max() <= 1e-5


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="5 attention heads do not divide a width of 32"):
        convert_tower(timm_tower().state_dict(), heads=5)


def test_a_missing_tensor_is_not_passed_over():
    state = timm_tower().state_dict()
    del state["blocks.1.mlp.fc2.bias"]
    with pytest.raises(RuntimeError, match="Missing key"):
        convert_tower(state, heads=4)


def test_the_published_tower_gives_27_by_27_patches_and_81_tokens():
    with torch.device("meta"):  # shapes only: the real one has 428 M parameters
        state = timm.create_model(REAL, num_classes=0).state_dict()
    tower = convert_tower(state, heads=16, side=384)
    config = tower.config
    assert (config.image_size, config.patch_size, config.hidden_size) == (384, 14, 1152)
    assert (config.num_hidden_layers, config.intermediate_size) == (27, 4304)
    assert tower.embeddings.num_positions == 729
    assert (27 // pooling_side(27, 4)) ** 2 == 81


@given(st.integers(1, 64), st.integers(1, 8))
def test_pooling_never_drops_a_patch(grid, wanted):
    assert grid % pooling_side(grid, wanted) == 0


def test_pooling_keeps_gemmas_own_where_it_can():
    assert [pooling_side(g, 4) for g in (64, 27, 14, 8)] == [4, 3, 2, 4]


def test_swap_rebuilds_the_projector_with_gemmas_weights(processor):
    model = gemma3()
    before = {k: v.clone() for k, v in model.model.multi_modal_projector.state_dict().items()}
    tower = convert_tower(timm_tower(img_size=24).state_dict(), heads=4)  # 6 x 6 patches
    model, made = swap_tower(model, processor, tower)
    projector = model.model.multi_modal_projector
    assert model.config.mm_tokens_per_image == made["tokens"] == 9
    assert (projector.kernel_size, projector.patches_per_image) == (2, 6)
    assert all(torch.equal(before[k], v) for k, v in projector.state_dict().items())
    assert made["images"].size == {"height": 24, "width": 24}
    assert made["images"].resample == 3 and made["template"] == FakeProcessor.chat_template


def forward(model, tokens, side):
    ids = torch.tensor([[2, 5] + [7] * tokens + [6, 9, 10]])
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=pixels, token_type_ids=(ids == 7).long()).logits


def test_save_and_reload_is_bit_equal_and_the_picture_is_seen(processor, tmp_path):
    model, _ = swap_tower(gemma3(), processor, convert_tower(timm_tower().state_dict(), heads=4))
    logits = forward(model, 9, 24)
    model.save_pretrained(tmp_path)
    again = Gemma3ForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert torch.equal(forward(again, 9, 24), logits)
    assert again.config.vision_config.hidden_act == "gelu"
    model.model.multi_modal_projector.mm_input_projection_weight.data.zero_()
    assert not torch.allclose(forward(model, 9, 24), logits)


def test_the_real_grid_runs_at_small_width(processor):
    model = gemma3(width=32)
    tower = timm_tower(img_size=384, patch_size=14, depth=1)
    model, made = swap_tower(model, processor, convert_tower(tower.state_dict(), 4, side=384))
    assert made["tokens"] == 81 and made["images"].size == {"height": 384, "width": 384}
    assert forward(model, 81, 384).shape == (1, 86, 40)


@pytest.fixture(scope="module")
def swapped(tmp_path_factory):
    """A twin of Gemma3 with a small tower of the published layout: 384 px, patches of 14."""
    folder = tmp_path_factory.mktemp("gemma3")
    model, processor = build_twin("gemma3", folder, seed=0)
    width = model.config.vision_config.hidden_size
    tower = timm_tower(img_size=384, patch_size=14, embed_dim=width, depth=2)
    kept = {k: v.clone() for k, v in model.model.multi_modal_projector.state_dict().items()}
    state = {f"visual.trunk.{name}": values for name, values in tower.state_dict().items()}
    return *swap_tower(model, processor, convert_tower(state, 4, side=384)), tower, kept


def test_the_real_layout_equals_timm_and_keeps_gemmas_projector(swapped):
    model, _, tower, kept = swapped
    pixels = torch.randn(1, 3, 384, 384, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        want = tower.forward_features(pixels)
        got = model.model.vision_tower(pixels).last_hidden_state
    assert got.shape == (1, 729, tower.embed_dim) and (got - want).abs().max() <= 1e-5
    now = model.model.multi_modal_projector.state_dict()
    assert now.keys() == kept.keys() and all(torch.equal(now[k], v) for k, v in kept.items())


def test_every_key_has_one_place_and_every_place_its_key(swapped):
    model, _, tower, _ = swapped
    state = tower.state_dict()
    renamed = rename_tower(state)
    assert renamed.keys() == model.model.vision_tower.state_dict().keys()
    left = {name for name in state if name.startswith("attn_pool.")}  # Gemma3 reads the patches
    three = {name for name in state if ".attn.qkv." in name}
    assert left and len(renamed) == len(state) - len(left) + 2 * len(three)
    values = sum(t.numel() for t in renamed.values())
    assert values == sum(t.numel() for name, t in state.items() if name not in left)


def test_the_processor_agrees_and_generation_is_bit_equal_after_reloading(swapped, tmp_path):
    model, processor, _, _ = swapped
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3)).astype(np.uint8)
    pictures = [Image.fromarray(noise), Image.new("RGB", (512, 512), "white")]

    def answers(model, processor):
        batch = encode_prompts(processor, pictures, ["Report?", "Report the frame, please."])
        longest = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
        with torch.inference_mode():
            out = model.generate(
                **batch, **longest, output_logits=True, return_dict_in_generate=True
            )
        return batch, out.sequences, torch.stack(out.logits)

    batch, ids, logits = answers(model, processor)
    assert batch["pixel_values"].shape[-2:] == (384, 384)
    assert (batch["input_ids"] == model.config.image_token_index).sum(1).tolist() == [81, 81]
    assert model.config.mm_tokens_per_image == processor.image_seq_length == 81
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    back = AutoProcessor.from_pretrained(tmp_path)
    assert (back.image_processor.size["height"], back.image_seq_length) == (384, 81)
    batch_again, ids_again, logits_again = answers(again, back)
    assert torch.equal(batch_again["pixel_values"], batch["pixel_values"])
    assert torch.equal(ids_again, ids) and torch.equal(logits_again, logits)


def test_a_converted_tower_is_known_by_its_gelu_and_its_width(swapped):
    model, _, tower, _ = swapped
    assert has_converted_tower(model.config) and not has_converted_tower(gemma3().config)
    assert tower_width(tower.state_dict()) == tower.embed_dim
    with pytest.raises(ValueError, match="found 0"):
        tower_width({})


def test_a_tower_of_another_width_is_refused(processor):
    tower = convert_tower(timm_tower(embed_dim=48).state_dict(), heads=4)
    with pytest.raises(ValueError, match="tower is 48 wide, Gemma3's projector reads 32"):
        swap_tower(gemma3(), processor, tower)


@settings(max_examples=5, deadline=None)
@given(st.sampled_from([4, 8]), st.integers(2, 5), st.integers(1, 3))
def test_conversion_keeps_every_parameter(heads, grid, depth):
    tower = timm_tower(img_size=grid * 4, depth=depth, num_heads=heads)
    kept = {k: v for k, v in tower.state_dict().items() if not k.startswith("attn_pool.")}
    converted = convert_tower(tower.state_dict(), heads)
    assert sum(p.numel() for p in converted.parameters()) == sum(t.numel() for t in kept.values())


def test_the_shipped_twin_loses_nothing_on_its_way_into_gemma3(processor):
    from cag_utils.backbones import BACKBONES
    from cag_utils.scores.embedders import load_embedder
    from cag_utils.vlm.loading import WEIGHTS

    entry = BACKBONES["conceptclip_gemma3"].tower
    state = read_safetensors(WEIGHTS / entry.checkpoint.twin)
    width = tower_width(state)
    tower = convert_tower(state, entry.heads[width], entry.side_px[width]).float()
    side = tower.config.image_size
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(7))
    trunk = load_embedder("conceptclip", "tiny").towers.module.visual.trunk
    with torch.no_grad():
        off = tower(pixels).last_hidden_state - trunk.forward_features(pixels)
    assert off.abs().max() <= 1e-5
    grid = side // tower.config.patch_size
    model, made = swap_tower(gemma3(width=tower.config.hidden_size), processor, tower)
    assert made["tokens"] == (grid // pooling_side(grid, 2)) ** 2
