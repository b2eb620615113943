"""The tower conversion and swap, against timm itself and against the published sizes."""

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from cag_utils.backbones import BACKBONES
from cag_utils.corpus.examples import encode_prompts
from cag_utils.hub import read_safetensors
from cag_utils.scores.embedders import load_embedder
from cag_utils.study import PACKAGE
from cag_utils.vlm import conceptclip
from cag_utils.vlm.conceptclip import PATCHES, convert_tower, pooling_side, swap_tower, tower_state
from cag_utils.vlm.loading import load_backbone

SMALL = {"img_size": 24, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4}
ZEROS = torch.zeros(1)


def timm_tower(**sizes):
    torch.manual_seed(0)
    tower = timm.create_model("vit_base_patch16_siglip_224", num_classes=0, **(SMALL | sizes))
    for values in tower.parameters():  # timm starts near 0, which would hide what is lost
        torch.nn.init.normal_(values, std=0.3)
    return tower.eval()


def random_pixels(side, n=2):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("edge", [0, 2])  # pixels beyond the last patch are ignored
@pytest.mark.parametrize("sizes", [{}, {"depth": 3, "embed_dim": 48}, {"img_size": 28}])
def test_patch_outputs_equal_timms(sizes, edge):
    tower = timm_tower(**sizes)
    side = (SMALL | sizes)["img_size"]
    pixels = random_pixels(side + edge)
    converted = convert_tower(tower.state_dict(), heads=4, side=side + edge)
    with torch.no_grad():
        want = tower.forward_features(pixels[:, :, :side, :side])
        got = converted(pixels).last_hidden_state
    assert got.shape == want.shape == (2, (side // 4) ** 2, (SMALL | sizes)["embed_dim"])
    assert (got - want).abs().max() <= 1e-5
    converted.config.hidden_act = "gelu_pytorch_tanh"  # the other GELU would be caught
    other = type(converted)(converted.config).eval()
    other.load_state_dict(converted.state_dict())
    with torch.no_grad():
        assert (other(pixels).last_hidden_state - want).abs().max() > 1e-5


@pytest.mark.parametrize("call, match", [
    (lambda _: tower_state({"text.weight": ZEROS}), "found 0"),
    (lambda _: tower_state({f"{k}.{PATCHES}": ZEROS for k in "ab"}), "found 2"),
    (lambda state: convert_tower(state | {"cls_token": ZEROS}, 4), "cls_token has no counter"),
    (lambda state: convert_tower(state | {"pos_embed": torch.zeros(1, 37, 32)}, 4),
     "37 positions form no square grid"),
    (lambda state: convert_tower(state, 4, 30), "30 pixels in patches of 4 do not give 6 a"),
    (lambda state: convert_tower(state, 5), "5 attention heads do not divide a width of 32"),
    (lambda state: convert_tower({k: v for k, v in state.items() if "1.mlp.fc2.b" not in k}, 4),
     "Missing key"),
    (lambda state: swap_tower(*load_backbone("gemma3", "tiny", "cpu"), convert_tower(state, 4)),
     "tower is 32 wide, Gemma3's projector reads 128"),
])  # fmt: skip
def test_what_is_no_such_tower_is_refused(twins, call, match):
    with pytest.raises((ValueError, RuntimeError), match=match):
        call(timm_tower().state_dict())


def test_the_published_tower_gives_27_by_27_patches_and_81_tokens():
    with torch.device("meta"):  # shapes only: the real one has 428 M parameters
        real = timm.create_model("vit_so400m_patch14_siglip_384", num_classes=0)
    tower = convert_tower(real.state_dict(), heads=16, side=384)
    config = tower.config
    assert (config.image_size, config.patch_size, config.hidden_size) == (384, 14, 1152)
    assert (config.num_hidden_layers, config.intermediate_size) == (27, 4304)
    assert tower.embeddings.num_positions == 729
    assert (27 // pooling_side(27, 4)) ** 2 == 81


@given(st.integers(1, 64), st.integers(1, 8))
def test_pooling_never_drops_a_patch_and_keeps_gemmas_own_where_it_can(grid, wanted):
    assert grid % pooling_side(grid, wanted) == 0
    assert [pooling_side(g, 4) for g in (64, 27, 14, 8)] == [4, 3, 2, 4]
    assert pooling_side(12, 2) == 2  # the twin's


@pytest.fixture(scope="module")
def swapped(twins):
    """A twin of Gemma3 with a small tower of the published layout: 384 px, patches of 14."""
    model, processor = load_backbone("gemma3", "tiny", "cpu")
    width = model.config.vision_config.hidden_size
    tower = timm_tower(img_size=384, patch_size=14, embed_dim=width, depth=2)
    kept = {k: v.clone() for k, v in model.model.multi_modal_projector.state_dict().items()}
    state = {f"visual.trunk.{name}": values for name, values in tower.state_dict().items()}
    state["text.x"] = ZEROS  # the text tower is left behind
    model, made = swap_tower(model, processor, convert_tower(state, 4, side=384))
    assert made.chat_template == processor.chat_template
    return model, made, tower, kept


def test_the_real_layout_equals_timm_and_keeps_gemmas_projector(swapped):
    model, processor, tower, kept = swapped
    pixels = random_pixels(384, n=1)
    with torch.no_grad():
        want = tower.forward_features(pixels)
        got = model.model.vision_tower(pixels).last_hidden_state
    assert got.shape == (1, 729, tower.embed_dim) and (got - want).abs().max() <= 1e-5
    projector = model.model.multi_modal_projector
    now = projector.state_dict()
    assert now.keys() == kept.keys() and all(torch.equal(now[k], v) for k, v in kept.items())
    assert (projector.kernel_size, projector.patches_per_image) == (3, 27)
    images = processor.image_processor
    assert images.size == {"height": 384, "width": 384} and images.resample == 3
    # every key has one place, and every place its key
    state = tower.state_dict()
    renamed = conceptclip.rename_tower(state)
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
        how = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
        how |= {"output_logits": True, "return_dict_in_generate": True}
        with torch.inference_mode():
            out = model.generate(**batch, **how)
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
    assert again.config.vision_config.hidden_act == "gelu"
    again.model.multi_modal_projector.mm_input_projection_weight.data.zero_()
    assert not torch.allclose(answers(again, back)[2][0], logits[0])  # the picture was seen


def test_the_shipped_twin_loses_nothing_on_its_way_into_gemma3():
    entry = BACKBONES["conceptclip_gemma3"].tower
    state = tower_state(read_safetensors(PACKAGE / "weights" / entry.checkpoint.twin))
    width = state[PATCHES].shape[0]
    tower = convert_tower(state, entry.heads[width], entry.side_px[width]).float()
    side = tower.config.image_size
    assert side // tower.config.patch_size == 12
    pixels = random_pixels(side)
    trunk = load_embedder("conceptclip", "tiny").towers.module.visual.trunk
    with torch.no_grad():
        off = tower(pixels).last_hidden_state - trunk.forward_features(pixels)
    assert off.abs().max() <= 1e-5
