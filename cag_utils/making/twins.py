"""Tiny twins: small models of exactly the published classes, with a tokenizer of their own.

A twin is an ordinary Hugging Face folder. `AutoModelForImageTextToText` and `AutoProcessor` load
it, TRL trains it and PEFT adapts it, so the study's code never knows whether it holds the real
checkpoint. One vocabulary and one SigLIP tower serve both twins.
"""

import copy
import json
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

import torch
import transformers as hf
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from cag_utils.params import check_choice
from cag_utils.shipped import WEIGHTS
from cag_utils.study import PACKAGE, read_json

TWINS = ("gemma3", "paligemma2")
VOCABULARY_SIZE, VOCABULARY = 1800, WEIGHTS / "tokenizer" / "vocabulary.json"  # the shipped one
PAD, EOS, BOS, UNK, MASK = "<pad>", "<eos>", "<bos>", "<unk>", "<mask>"
TURN = ["<start_of_turn>", "<end_of_turn>"]
GEMMA3_IMAGE = ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]
SPECIALS = [PAD, EOS, BOS, UNK, MASK, *TURN, *GEMMA3_IMAGE, "<image>"]
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def train_vocabulary(texts: Iterable[str], size: int = VOCABULARY_SIZE) -> dict:
    """Learn a BPE vocabulary with byte fallback, as Gemma's, from the study's own kind of text.

    Args:
        texts: English and Japanese; every character becomes a token.
        size: Tokens in all, special and byte tokens included, at least 600.

    Returns:
        `{"vocab": {token: id}, "merges": [[left, right], ...]}`: special tokens first, then the
        256 bytes, then what was learnt.

    Raises:
        ValueError: `size` leaves no room for the learnt part.
    """
    if size < 600:
        raise ValueError(f"a vocabulary needs at least 600 tokens, got {size}")
    tok = Tokenizer(models.BPE(unk_token=UNK, byte_fallback=True, fuse_unk=True))
    tok.normalizer = normalizers.Replace(" ", "▁")
    tok.pre_tokenizer = _pre_tokenizer()
    limits = {"vocab_size": size - len(BYTES), "min_frequency": 2, "max_token_length": 12}
    trainer = trainers.BpeTrainer(special_tokens=SPECIALS, show_progress=False, **limits)
    tok.train_from_iterator(texts, trainer)
    learnt = json.loads(tok.to_str())["model"]
    tokens = [t for t in sorted(learnt["vocab"], key=learnt["vocab"].get) if t not in SPECIALS]
    vocab = {token: i for i, token in enumerate([*SPECIALS, *BYTES, *tokens])}
    return {"vocab": vocab, "merges": [list(pair) for pair in learnt["merges"]]}


def make_tokenizer(kind: str, vocabulary: dict | None = None) -> hf.GemmaTokenizer:
    """Return a twin's tokenizer: Gemma's class, digits one by one, Japanese round-trips.

    Args:
        kind: gemma3 or paligemma2; they differ in the image tokens they name.
        vocabulary: From `train_vocabulary`; the shipped one if None.

    Raises:
        ValueError: Unknown kind.
    """
    check_choice("twin", kind, TWINS)
    vocabulary = vocabulary or read_json(VOCABULARY)
    begin, end, soft = GEMMA3_IMAGE
    named = {"boi_token": begin, "eoi_token": end, "image_token": soft}
    if kind == "paligemma2":
        named = {"image_token": "<image>"}
    merges = [tuple(pair) for pair in vocabulary["merges"]]
    limits = {"padding_side": "left", "model_max_length": 2048}
    limits["add_bos_token"] = kind == "gemma3"  # PaliGemma's processor writes its own <bos>
    tokenizer = hf.GemmaTokenizer(
        vocab=vocabulary["vocab"], merges=merges, extra_special_tokens=named, **limits
    )
    extra = {"extra_special_tokens": TURN + list(named.values())}
    tokenizer.add_special_tokens(extra, replace_extra_special_tokens=False)
    tokenizer.backend_tokenizer.pre_tokenizer = _pre_tokenizer()
    return tokenizer


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Words keep their leading space; punctuation, line breaks and each digit stand alone."""
    words = pre_tokenizers.Split("▁", "merged_with_next")
    marks = pre_tokenizers.Split(Regex(r"\n+|[.,;:()/=。、：（）？]"), "isolated")
    return pre_tokenizers.Sequence([words, marks, pre_tokenizers.Digits(individual_digits=True)])


IMAGE_PX, PATCH_PX = 224, 16  # 14 x 14 = 196 patches; the real PaliGemma2 has 32 x 32
POOLED_TOKENS = 49  # Gemma3 pools 2 x 2 patches into one token (the real one 4 x 4)
# PaliGemma has no chat template upstream; this one lets TRL and generation treat both twins alike.
PALIGEMMA_TEMPLATE = PACKAGE / "templates" / "paligemma.jinja"


def make_processor(kind: str, vocabulary: dict | None = None):
    """Return a twin's processor: 224 px, grey levels to -1 .. 1, chat template included."""
    tokenizer = make_tokenizer(kind, vocabulary)
    size = {"height": IMAGE_PX, "width": IMAGE_PX}
    if kind == "gemma3":
        template = files("trl") / "chat_templates" / "gemma3.jinja"  # Gemma3's own
        written = {"chat_template": template.read_text(encoding="utf-8")}
        images = hf.Gemma3ImageProcessor(size=size)
        return hf.Gemma3Processor(images, tokenizer, image_seq_length=POOLED_TOKENS, **written)
    images = hf.SiglipImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    images.image_seq_length = (IMAGE_PX // PATCH_PX) ** 2
    template = PALIGEMMA_TEMPLATE.read_text(encoding="utf-8").rstrip()
    return hf.PaliGemmaProcessor(images, tokenizer, chat_template=template)


def make_tower_config() -> hf.SiglipVisionConfig:
    """Return the twins' SigLIP tower: 1.2 M parameters, the tanh GELU of the published models."""
    return hf.SiglipVisionConfig(
        hidden_size=128, intermediate_size=512, num_hidden_layers=6, num_attention_heads=4,
        image_size=IMAGE_PX, patch_size=PATCH_PX, hidden_act="gelu_pytorch_tanh",
        vision_use_head=False,
    )  # fmt: skip


def make_config(kind: str, tokenizer: hf.GemmaTokenizer) -> hf.Gemma3Config | hf.PaliGemmaConfig:
    """Return a twin's configuration for this tokenizer."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIALS}
    special = {"pad_token_id": ids[PAD], "bos_token_id": ids[BOS]}
    tower, width, head = make_tower_config(), 160, 40
    text = special | dict(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=384, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=1, head_dim=head, query_pre_attn_scalar=head,
        max_position_embeddings=2048, sliding_window=1024, attn_logit_softcapping=None,
        final_logit_softcapping=None, eos_token_id=ids[EOS],
    )  # fmt: skip
    if kind == "gemma3":
        return hf.Gemma3Config(
            text_config=hf.Gemma3TextConfig(**text, sliding_window_pattern=2), vision_config=tower,
            mm_tokens_per_image=POOLED_TOKENS, boi_token_index=ids[GEMMA3_IMAGE[0]],
            eoi_token_index=ids[GEMMA3_IMAGE[1]], image_token_index=ids[GEMMA3_IMAGE[2]],
            eos_token_id=[ids[EOS], ids[TURN[1]]], **special,
        )  # fmt: skip
    return hf.PaliGemmaConfig(
        text_config=hf.Gemma2Config(**text), vision_config=tower, projection_dim=width,
        hidden_size=width, vocab_size=len(tokenizer), image_token_index=ids["<image>"],
        eos_token_id=ids[EOS], **special,
    )  # fmt: skip


def build_twin(
    kind: str,
    folder: str | Path,
    seed: int = 0,
    pretrained_tower: str | Path | None = None,
    vocabulary: dict | None = None,
    start: str | Path | None = None,
) -> tuple[hf.Gemma3ForConditionalGeneration | hf.PaliGemmaForConditionalGeneration, object]:
    """Make a twin, its language model random, and write it as a Hugging Face folder.

    Args:
        folder: Where model and processor are saved.
        seed: Of the random weights; torch's generator is put back afterwards.
        pretrained_tower: Folder of a SiglipVisionModel of `make_tower_config()`; random if None.
        vocabulary: From `train_vocabulary`; the shipped one if None.
        start: Folder of a twin of this vocabulary to go on from; none if None.

    Returns:
        (model, processor), float32, on the CPU.

    Raises:
        ValueError: Unknown kind.
    """
    processor = make_processor(kind, vocabulary)
    config = make_config(kind, processor.tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "gemma3":
            model = hf.Gemma3ForConditionalGeneration(config)
            # Fresh, this matrix is all zeros: no gradient would reach the tower.
            weight = model.model.multi_modal_projector.mm_input_projection_weight
            torch.nn.init.normal_(weight, std=0.5 * config.vision_config.hidden_size**-0.5)
        else:
            model = hf.PaliGemmaForConditionalGeneration(config)
        # Words of length 1, as long as learnt ones: one that captions hardly write can be written.
        words = model.get_input_embeddings().weight
        torch.nn.init.normal_(words, std=words.shape[1] ** -0.5)
    if start is not None:
        known = type(model).from_pretrained(start, dtype=torch.float32)
        model.load_state_dict(known.state_dict())
    if pretrained_tower is not None:
        tower = hf.SiglipVisionModel.from_pretrained(pretrained_tower, dtype=torch.float32)
        model.model.vision_tower.load_state_dict(tower.state_dict())
    ids = {k: getattr(config, k) for k in ("bos_token_id", "pad_token_id", "eos_token_id")}
    model.generation_config = hf.GenerationConfig(**ids, do_sample=False)
    save_twin(model, processor, folder)
    return model, processor


def save_twin(model, processor, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a model and its processor as one Hugging Face folder; both are left as they are.

    Args:
        dtype: How the weights are stored; float16 halves the size of what is shipped.
    """
    copy.deepcopy(model).to(dtype).save_pretrained(folder)
    processor.save_pretrained(folder)
