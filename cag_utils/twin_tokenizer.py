"""The twins' tokenizer: Gemma's class, with a vocabulary learnt from the study's kind of text."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import GemmaTokenizer

from cag_utils.params import check_choice

KINDS = ("gemma3", "paligemma2")
WEIGHTS = Path(__file__).parent / "weights"
VOCABULARY_SIZE = 1800
PAD, EOS, BOS, UNK, MASK = "<pad>", "<eos>", "<bos>", "<unk>", "<mask>"
TURN = ["<start_of_turn>", "<end_of_turn>"]
GEMMA3_IMAGE = ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]
SPECIALS = [PAD, EOS, BOS, UNK, MASK, *TURN, *GEMMA3_IMAGE, "<image>"]
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def train_vocabulary(texts: Iterable[str], size: int = VOCABULARY_SIZE) -> dict:
    """Learn a BPE vocabulary with byte fallback, as Gemma's, from the study's own kind of text.

    Args:
        texts: English and Japanese text; every character in it becomes a token.
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
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(BYTES),
        special_tokens=SPECIALS,
        show_progress=False,
        min_frequency=2,
        max_token_length=12,
    )
    tok.train_from_iterator(texts, trainer)
    learnt = json.loads(tok.to_str())["model"]
    tokens = [t for t in sorted(learnt["vocab"], key=learnt["vocab"].get) if t not in SPECIALS]
    vocab = {token: i for i, token in enumerate([*SPECIALS, *BYTES, *tokens])}
    return {"vocab": vocab, "merges": [list(pair) for pair in learnt["merges"]]}


def load_vocabulary(path: Path = WEIGHTS / "tokenizer" / "vocabulary.json") -> dict:
    """Read the shipped vocabulary, or another one saved as JSON in the same form."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def make_tokenizer(kind: str, vocabulary: dict | None = None) -> GemmaTokenizer:
    """Return a twin's tokenizer: Gemma's class, digits one by one, Japanese round-trips.

    Args:
        kind: gemma3 or paligemma2; they differ in the image tokens they name.
        vocabulary: From `train_vocabulary`; the shipped one if None.

    Raises:
        ValueError: Unknown kind.
    """
    check_choice("twin", kind, KINDS)
    vocabulary = vocabulary or load_vocabulary()
    begin, end, soft = GEMMA3_IMAGE
    named = {"boi_token": begin, "eoi_token": end, "image_token": soft}
    if kind == "paligemma2":
        named = {"image_token": "<image>"}
    tokenizer = GemmaTokenizer(
        vocab=vocabulary["vocab"],
        merges=[tuple(pair) for pair in vocabulary["merges"]],
        extra_special_tokens=named,
        add_bos_token=kind == "gemma3",  # PaliGemma's processor writes its own <bos>
        padding_side="left",
        model_max_length=2048,
    )
    tokenizer.add_special_tokens(
        {"extra_special_tokens": TURN + list(named.values())}, replace_extra_special_tokens=False
    )
    tokenizer.backend_tokenizer.pre_tokenizer = _pre_tokenizer()
    return tokenizer


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Words keep their leading space; punctuation, line breaks and each digit stand alone."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("▁", "merged_with_next"),
            pre_tokenizers.Split(Regex(r"\n+|[.,;:()/=。、：（）？]"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
