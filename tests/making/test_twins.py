import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    SiglipVisionModel,
)

from cag_utils.making.twins import (
    BYTES,
    IMAGE_PX,
    PATCH_PX,
    POOLED_TOKENS,
    SPECIALS,
    TWINS,
    VOCABULARY_SIZE,
    WEIGHTS,
    build_twin,
    load_vocabulary,
    make_config,
    make_processor,
    make_tokenizer,
    save_twin,
    tower_config,
    train_vocabulary,
)
from cag_utils.phantom.clinic.findings import PLANS
from tests.making.world import random_twin

CLASSES = {
    "gemma3": (Gemma3ForConditionalGeneration, Gemma3Processor),
    "paligemma2": (PaliGemmaForConditionalGeneration, PaliGemmaProcessor),
}
STUDY_TEXT = "LCX #11に75%の狭窄が確認できます。 LAD #6 shows 90% stenosis. " + "".join(
    text for pair in PLANS.values() for text in pair
)
MEDICAL = st.text("冠動脈狭窄の確認で右左、。％#%0123456789 abcXYZ-.()\n", max_size=60)
ANYTHING = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="▁"), max_size=20)


@pytest.fixture(scope="module", params=TWINS)
def twin(request):
    """A random twin of each kind: its kind, its folder, and what was built."""
    return request.param, *random_twin(request.param)


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: make_tokenizer(kind) for kind in TWINS}


def ask(processor, kind, grey=128):
    picture = Image.new("RGB", (300, 200), (grey, grey, grey))
    if kind == "paligemma2":
        inputs = processor(images=[[picture]], text=["<image>左 #11?"], return_tensors="pt")
        inputs.pop("labels")
        return inputs
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": "左 #11?"}]
    return processor.apply_chat_template(
        [{"role": "user", "content": parts}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )


@settings(max_examples=60, deadline=None)
@given(text=st.one_of(MEDICAL, ANYTHING))
def test_text_survives_the_tokenizer(tokenizers, text):
    for tokenizer in tokenizers.values():
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id not in ids


@settings(max_examples=40, deadline=None)
@given(number=st.integers(0, 10**12), before=MEDICAL)
def test_digits_never_merge(tokenizers, number, before):
    tokenizer = tokenizers["gemma3"]
    tokens = tokenizer.tokenize(f"{before}{number}%")
    assert all(len(t) == 1 for t in tokens if any(c.isdigit() for c in t) and t not in BYTES)


def test_the_vocabulary_starts_with_special_tokens_and_bytes(tokenizers):
    vocabulary = load_vocabulary()
    assert len(vocabulary["vocab"]) == VOCABULARY_SIZE
    ordered = sorted(vocabulary["vocab"], key=vocabulary["vocab"].get)
    assert ordered[: len(SPECIALS) + 256] == [*SPECIALS, *BYTES]
    both = [t(STUDY_TEXT, add_special_tokens=False).input_ids for t in tokenizers.values()]
    assert both[0] == both[1]  # one vocabulary for both twins


def test_the_study_text_needs_no_bytes(tokenizers):
    tokens = tokenizers["gemma3"].tokenize(STUDY_TEXT)
    assert not set(tokens) & set(BYTES)
    assert len(tokens) < 0.5 * len(STUDY_TEXT)


def test_a_vocabulary_is_learnt_from_the_text_given():
    learnt = train_vocabulary(["stenosis of the artery 75 75 75"] * 5, size=600)
    assert {"s", "▁artery", "7"} <= set(learnt["vocab"])
    assert "75" not in learnt["vocab"] and "▁75" not in learnt["vocab"]


def test_refuses_what_does_not_exist():
    with pytest.raises(ValueError, match="at least 600"):
        train_vocabulary(["x"], size=599)
    with pytest.raises(ValueError, match="gemma3"):
        make_tokenizer("gema3")
    with pytest.raises(ValueError, match="gemma3"):
        make_processor("gema3")
    with pytest.raises(ValueError, match="paligemma2"):
        make_config("paligemma", make_tokenizer("gemma3"))
    with pytest.raises(ValueError, match="gemma3"):
        build_twin("gema3", "unused")


def test_classes_are_the_published_ones(twin):
    kind, folder, model, processor = twin
    assert (type(model), type(processor)) == CLASSES[kind]
    assert type(AutoModelForImageTextToText.from_pretrained(folder)) is CLASSES[kind][0]
    assert type(AutoProcessor.from_pretrained(folder)) is CLASSES[kind][1]
    assert model.config.vision_config.hidden_act == "gelu_pytorch_tanh"


def test_the_processor_writes_as_many_image_tokens_as_the_model_reads(twin):
    kind, _, model, processor = twin
    inputs = ask(processor, kind)
    patches = (IMAGE_PX // PATCH_PX) ** 2
    expected = {"gemma3": POOLED_TOKENS, "paligemma2": patches}[kind]
    assert int((inputs["input_ids"] == processor.tokenizer.image_token_id).sum()) == expected
    assert inputs["pixel_values"].shape == (1, 3, IMAGE_PX, IMAGE_PX)
    side = IMAGE_PX // PATCH_PX
    pooled = side // int(POOLED_TOKENS**0.5)
    assert pooled * int(POOLED_TOKENS**0.5) == side  # pooling drops no edge patch
    with torch.no_grad():
        assert model(**inputs).logits.shape[:2] == inputs["input_ids"].shape


def test_save_and_reload_give_identical_logits(twin):
    kind, folder, model, processor = twin
    again = AutoModelForImageTextToText.from_pretrained(folder).eval()
    inputs = ask(AutoProcessor.from_pretrained(folder), kind)
    assert inputs["input_ids"].equal(ask(processor, kind)["input_ids"])
    with torch.no_grad():
        assert torch.equal(model.eval()(**inputs).logits, again(**inputs).logits)


def test_the_picture_reaches_the_answer(twin):
    kind, _, model, processor = twin
    with torch.no_grad():
        dark, bright = (model(**ask(processor, kind, g)).logits[0, -1] for g in (30, 220))
    assert not torch.allclose(dark, bright)  # Gemma3's fresh projector would be all zeros


def test_seed_and_tower(tmp_path):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    second, _ = build_twin("gemma3", tmp_path / "b", seed=0)
    assert torch.equal(before, torch.random.get_rng_state())
    first, (third, _) = random_twin("gemma3")[1], build_twin("gemma3", tmp_path / "c", seed=2)
    states = [m.state_dict()["model.language_model.norm.weight"] for m in (first, second)]
    assert torch.equal(*states)
    embeddings = [m.get_input_embeddings().weight for m in (first, second, third)]
    assert torch.equal(*embeddings[:2]) and not torch.equal(*embeddings[1:])
    tower = SiglipVisionModel(tower_config())
    tower.save_pretrained(tmp_path / "tower")
    model, _ = build_twin("paligemma2", tmp_path / "d", pretrained_tower=tmp_path / "tower")
    copied = model.model.vision_tower.state_dict()
    assert all(torch.equal(copied[name], value) for name, value in tower.state_dict().items())


def test_saving_in_half_precision_leaves_the_model_alone(twin, tmp_path):
    _, folder, model, processor = twin
    save_twin(model, processor, tmp_path, torch.float16)
    sizes = [(f / "model.safetensors").stat().st_size for f in (folder, tmp_path)]
    assert 0.49 < sizes[1] / sizes[0] < 0.52 and model.dtype == torch.float32
    assert AutoModelForImageTextToText.from_pretrained(tmp_path).dtype == torch.float16


@pytest.mark.parametrize("kind", TWINS)
def test_the_shipped_twin_loads_and_describes_a_picture(kind):
    folder = WEIGHTS / kind
    assert sum(f.stat().st_size for f in folder.iterdir()) < 8e6
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.tokenizer.get_vocab() == make_processor(kind).tokenizer.get_vocab()
    inputs = ask(processor, kind)
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    text = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text.strip() and "�" not in text


def test_the_shipped_tower_is_the_twins():
    tower = SiglipVisionModel.from_pretrained(WEIGHTS / "siglip_tower", dtype=torch.float32)
    pixels = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (1, 3, IMAGE_PX, IMAGE_PX)))
    found = []
    for kind in TWINS:
        model = AutoModelForImageTextToText.from_pretrained(WEIGHTS / kind, dtype=torch.float32)
        with torch.no_grad():
            found.append(model.model.vision_tower(pixel_values=pixels.float()).last_hidden_state)
    with torch.no_grad():
        alone = tower(pixel_values=pixels.float()).last_hidden_state
    assert torch.allclose(alone, found[0], atol=1e-5) and torch.allclose(alone, found[1], atol=1e-5)
