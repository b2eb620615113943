"""Tiny twins of the embedders: the published classes and layouts, small, with their own words."""

from collections.abc import Iterable
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertTokenizer, GemmaTokenizer, SwinConfig

from cag_utils.conceptclip import BLOCK_NAMES
from cag_utils.params import check_choice
from cag_utils.study import write_json
from cag_utils.twins import make_tokenizer, train_vocabulary
from cag_utils.two_towers import SIGLIP2_TINY_PX, TINY_WIDTH, ConceptClip, MedClip, published_state

NAMES = ("siglip2", "medclip", "conceptclip")
VOCABULARY_SIZE = {"siglip2": 1500, "medclip": 900, "conceptclip": 900}  # SigLIP2: two languages
MEDCLIP_DIM = 64
TEXT = {
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 384,
    "max_position_embeddings": 80,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
# Patches of 8 instead of 4: the published 224 px at a quarter of the cost.
VISION = {
    "image_size": 224,
    "patch_size": 8,
    "embed_dim": 32,
    "depths": [1, 1, 2],
    "num_heads": [2, 4, 8],
    "window_size": 7,
    "drop_path_rate": 0.0,  # too small a network to lose paths
}


def build_twin(name: str, folder: str | Path, texts: Iterable[str], seed: int = 0) -> Path:
    """Write a twin with random weights and a vocabulary learnt from `texts`.

    Args:
        name: siglip2, medclip or conceptclip.
        folder: Made if missing; holds weights, configuration and tokenizer afterwards.
        texts: A few thousand captions and findings, in the languages the twin is to read.
        seed: Of the weights; torch's generator is put back afterwards.

    Returns:
        The folder.

    Raises:
        ValueError: Unknown name.
    """
    check_choice("twin", name, NAMES)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _gemma_tokenizer(texts) if name == "siglip2" else _bert_tokenizer(texts)
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "siglip2":
            write_json(folder / "open_clip_config.json", siglip2_config(len(tokenizer)))
            model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
            return save_weights(name, model, folder)
        text = TEXT | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        if name == "medclip":
            sizes = {"vision": VISION, "text": text, "dim": MEDCLIP_DIM}
            model = MedClip(SwinConfig(**VISION), BertConfig(**text), MEDCLIP_DIM)
        else:
            sizes = {"tower": "vit_twin_patch16_siglip_192", "text": text}
            model = ConceptClip(sizes["tower"], BertConfig(**text))
    write_json(folder / "config.json", sizes)
    return save_weights(name, model, folder)


def save_weights(name: str, model: torch.nn.Module, folder: str | Path) -> Path:
    """Write a network's weights under the published names, in half precision.

    Args:
        name: siglip2, medclip or conceptclip.
        model: The network; left as it is.
        folder: A twin's.

    Returns:
        The folder.
    """
    state = model.state_dict() if name == "siglip2" else published_state(model)
    file = "open_clip_model.safetensors" if name == "siglip2" else "model.safetensors"
    halves = {key: value.detach().half().contiguous().cpu() for key, value in state.items()}
    save_file(halves, Path(folder) / file)
    return Path(folder)


def siglip2_config(vocabulary_size: int) -> dict:
    """Return open_clip's configuration of SigLIP2's twin: the published one with small numbers."""
    heads = 4
    text = {
        "context_length": 64,
        "vocab_size": vocabulary_size,
        "hf_tokenizer_name": "siglip2_twin",  # local-dir overrides it with the folder
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": TINY_WIDTH,
        "heads": heads,
        "layers": 2,
        "mlp_ratio": 3.0,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
        "act_kwargs": {"approximate": "tanh"},
    }
    vision = {
        "image_size": SIGLIP2_TINY_PX,
        "timm_model_name": "vit_twin_patch16_siglip_224",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    }
    look = {"mean": [0.5] * 3, "std": [0.5] * 3}
    look |= {"interpolation": "bicubic", "resize_mode": "squash"}
    model = {"embed_dim": TINY_WIDTH, "init_logit_bias": -10, "custom_text": True}
    return {
        "model_cfg": model | {"vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {"size": [SIGLIP2_TINY_PX] * 2} | look,
    }


def start_from_tower(trunk: torch.nn.Module, tower: dict[str, torch.Tensor]) -> None:
    """Give a timm tower the weights of a pretrained SiglipVisionModel, in place.

    The inverse of `conceptclip.rename_tower`. Positions are interpolated where the grids differ;
    the pooling head keeps its own weights, since the pretrained tower has none.

    Args:
        trunk: timm's SigLIP tower, of the same width and depth.
        tower: State dict under transformers' names.

    Raises:
        ValueError: A tensor does not fit.
    """
    own = trunk.state_dict()
    tower = {name.removeprefix("vision_model."): tensor for name, tensor in tower.items()}
    found = {"pos_embed": _positions(tower["embeddings.position_embedding.weight"], own)}
    for kind in ("weight", "bias"):
        found[f"patch_embed.proj.{kind}"] = tower[f"embeddings.patch_embedding.{kind}"]
        found[f"norm.{kind}"] = tower[f"post_layernorm.{kind}"]
        for n in range(len(trunk.blocks)):
            layer, block = f"encoder.layers.{n}", f"blocks.{n}"
            parts = [tower[f"{layer}.self_attn.{x}_proj.{kind}"] for x in "qkv"]
            found[f"{block}.attn.qkv.{kind}"] = torch.cat(parts)
            for timm_name, name in BLOCK_NAMES.items():
                found[f"{block}.{timm_name}.{kind}"] = tower[f"{layer}.{name}.{kind}"]
    if wrong := [k for k, v in found.items() if own[k].shape != v.shape]:
        shape = tuple(found[wrong[0]].shape)
        raise ValueError(f"the pretrained tower does not fit: its {wrong[0]} is {shape}")
    trunk.load_state_dict(own | {k: v.float() for k, v in found.items()})


def _positions(table: torch.Tensor, own: dict[str, torch.Tensor]) -> torch.Tensor:
    """Interpolate (old * old, width) positions to this tower's grid, (1, new * new, width)."""
    old, new = (round(n**0.5) for n in (len(table), own["pos_embed"].shape[1]))
    grid = table.float().T.reshape(1, -1, old, old)
    grid = torch.nn.functional.interpolate(grid, (new, new), mode="bicubic", align_corners=False)
    return grid.flatten(2).transpose(1, 2)


def _bert_tokenizer(texts: Iterable[str]) -> BertTokenizer:
    learner = BertWordPieceTokenizer(lowercase=True)
    learner.train_from_iterator(
        texts, vocab_size=VOCABULARY_SIZE["medclip"], min_frequency=2, show_progress=False
    )
    vocabulary = dict(sorted(learner.get_vocab().items(), key=lambda item: item[1]))
    return BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=77)


def _gemma_tokenizer(texts: Iterable[str]) -> GemmaTokenizer:
    clean = open_clip.tokenizer.get_clean_fn("canonicalize")  # lower case, no punctuation
    vocabulary = train_vocabulary([clean(text) for text in texts], VOCABULARY_SIZE["siglip2"])
    tokenizer = make_tokenizer("gemma3", vocabulary)
    tokenizer.padding_side, tokenizer.model_max_length = "right", 64
    return tokenizer
