import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, SiglipVisionModel

from cag_utils.making import twins
from cag_utils.phantom.clinic.findings import PLANS
from cag_utils.study import read_json
from tests.making.world import as_written, random_twin

CLASSES = {
    "gemma3": ("Gemma3ForConditionalGeneration", "Gemma3Processor"),
    "paligemma2": ("PaliGemmaForConditionalGeneration", "PaliGemmaProcessor"),
}
STUDY_TEXT = "LCX #11に75%の狭窄が確認できます。 LAD #6 shows 90% stenosis. "
STUDY_TEXT += "".join(text for pair in PLANS.values() for text in pair)
MEDICAL = st.text("冠動脈狭窄の確認で右左、。％#%0123456789 abcXYZ-.()\n", max_size=60)
ANYTHING = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="▁"), max_size=20)


@pytest.fixture(scope="module", params=twins.TWINS)
def twin(request):
    """A random twin of each kind: its kind, its folder, and what was built."""
    return request.param, *random_twin(request.param)


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: twins.make_tokenizer(kind) for kind in twins.TWINS}


def ask(processor, kind, grey=128):
    return as_written(processor, kind, Image.new("RGB", (300, 200), (grey,) * 3), "左 #11?")


@settings(max_examples=40, deadline=None)
@given(st.one_of(MEDICAL, ANYTHING), st.integers(0, 10**12))
def test_text_survives_the_tokenizer_and_digits_never_merge(tokenizers, before, number):
    text = f"{before}{number}%"
    for tokenizer in tokenizers.values():
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == text and tokenizer.unk_token_id not in ids
        tokens = [t for t in tokenizer.tokenize(text) if t not in twins.BYTES]
        assert all(len(t) == 1 for t in tokens if any(c.isdigit() for c in t))


def test_the_vocabulary_starts_with_special_tokens_and_bytes_and_fits_the_study(tokenizers):
    vocabulary = read_json(twins.VOCABULARY)
    assert len(vocabulary["vocab"]) == twins.VOCABULARY_SIZE
    ordered = sorted(vocabulary["vocab"], key=vocabulary["vocab"].get)
    assert ordered[: len(twins.SPECIALS) + 256] == [*twins.SPECIALS, *twins.BYTES]
    both = [t(STUDY_TEXT, add_special_tokens=False).input_ids for t in tokenizers.values()]
    assert both[0] == both[1]  # one vocabulary for both twins
    tokens = tokenizers["gemma3"].tokenize(STUDY_TEXT)
    assert not set(tokens) & set(twins.BYTES) and len(tokens) < 0.5 * len(STUDY_TEXT)
    # one is learnt from the text given
    learnt = twins.train_vocabulary(["stenosis of the artery 75 75 75"] * 5, size=600)
    assert {"s", "▁artery", "7"} <= set(learnt["vocab"])
    assert "75" not in learnt["vocab"] and "▁75" not in learnt["vocab"]


@pytest.mark.parametrize(("call", "match"), [
    (lambda: twins.train_vocabulary(["x"], size=599), "at least 600"),
    (lambda: twins.make_tokenizer("gema3"), "gemma3"),
    (lambda: twins.make_processor("gema3"), "gemma3"),
    (lambda: twins.build_twin("gema3", "unused"), "gemma3"),
])  # fmt: skip
def test_refuses_what_does_not_exist(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_the_classes_are_the_published_ones_and_reloaded_give_identical_logits(twin):
    kind, folder, model, processor = twin
    again = AutoModelForImageTextToText.from_pretrained(folder).eval()
    writer = AutoProcessor.from_pretrained(folder)
    assert (type(model), type(processor)) == (type(again), type(writer))
    assert (type(model).__name__, type(processor).__name__) == CLASSES[kind]
    assert model.config.vision_config.hidden_act == "gelu_pytorch_tanh"
    inputs = ask(writer, kind)
    assert inputs["input_ids"].equal(ask(processor, kind)["input_ids"])
    with torch.no_grad():
        assert torch.equal(model.eval()(**inputs).logits, again(**inputs).logits)
    side = twins.IMAGE_PX // twins.PATCH_PX  # as many image tokens as the model reads
    expected = {"gemma3": twins.POOLED_TOKENS, "paligemma2": side**2}[kind]
    assert int((inputs["input_ids"] == processor.tokenizer.image_token_id).sum()) == expected
    assert inputs["pixel_values"].shape == (1, 3, twins.IMAGE_PX, twins.IMAGE_PX)
    assert side % int(twins.POOLED_TOKENS**0.5) == 0  # pooling drops no edge patch
    with torch.no_grad():
        dark, bright = (model(**ask(processor, kind, grey)).logits for grey in (30, 220))
    assert dark.shape[:2] == inputs["input_ids"].shape
    # the picture reaches the answer: Gemma3's fresh projector would be all zeros
    assert not torch.allclose(dark[0, -1], bright[0, -1])


def test_seed_and_tower(tmp_path):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    second, _ = twins.build_twin("gemma3", tmp_path / "b", seed=0)
    assert torch.equal(before, torch.random.get_rng_state())
    first, (third, _) = random_twin("gemma3")[1], twins.build_twin("gemma3", tmp_path / "c", seed=2)
    states = [m.state_dict()["model.language_model.norm.weight"] for m in (first, second)]
    assert torch.equal(*states)
    embeddings = [m.get_input_embeddings().weight for m in (first, second, third)]
    assert torch.equal(*embeddings[:2]) and not torch.equal(*embeddings[1:])
    tower = SiglipVisionModel(twins.make_tower_config())
    tower.save_pretrained(tmp_path / "tower")
    model, _ = twins.build_twin("paligemma2", tmp_path / "d", pretrained_tower=tmp_path / "tower")
    copied = model.model.vision_tower.state_dict()
    assert all(torch.equal(copied[name], value) for name, value in tower.state_dict().items())


def test_a_twin_goes_on_from_another_with_a_new_tower(tmp_path):
    tower = SiglipVisionModel(twins.make_tower_config())
    tower.save_pretrained(tmp_path / "tower")
    start = twins.WEIGHTS / "gemma3"
    made = twins.build_twin("gemma3", tmp_path / "new", 0, tmp_path / "tower", None, start)[0]
    known = type(made).from_pretrained(start, dtype=torch.float32)
    names = dict(made.named_parameters())
    same = {k for k, v in known.named_parameters() if torch.equal(v, names[k])}
    assert {k for k in names if "vision_tower" not in k} <= same
    patches = made.model.vision_tower.embeddings.patch_embedding.weight
    assert torch.equal(patches, tower.embeddings.patch_embedding.weight)


def test_saving_in_half_precision_leaves_the_model_alone(twin, tmp_path):
    _, folder, model, processor = twin
    twins.save_twin(model, processor, tmp_path, torch.float16)
    sizes = [(f / "model.safetensors").stat().st_size for f in (folder, tmp_path)]
    assert 0.49 < sizes[1] / sizes[0] < 0.52 and model.dtype == torch.float32
    assert AutoModelForImageTextToText.from_pretrained(tmp_path).dtype == torch.float16


@pytest.mark.parametrize("kind", twins.TWINS)
def test_the_shipped_twin_describes_a_picture_and_has_the_shipped_tower(kind):
    folder = twins.WEIGHTS / kind
    assert sum(f.stat().st_size for f in folder.iterdir()) < 8e6
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.tokenizer.get_vocab() == twins.make_processor(kind).tokenizer.get_vocab()
    inputs = ask(processor, kind)
    tower = SiglipVisionModel.from_pretrained(twins.WEIGHTS / "siglip_tower", dtype=torch.float32)
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=24, do_sample=False)
        pixels = {"pixel_values": inputs["pixel_values"]}
        alone, its = (x(**pixels).last_hidden_state for x in (tower, model.model.vision_tower))
    text = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text.strip() and "�" not in text
    assert torch.allclose(alone, its, atol=1e-5)
