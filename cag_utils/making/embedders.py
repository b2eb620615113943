"""Contrastive training of the embedders' twins: a picture lies near its text, far from others'."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import BertWordPieceTokenizer
from torch.nn import functional
from transformers import BertConfig, BertTokenizer, GemmaTokenizer, SwinConfig

from cag_utils.keyframes.network import autocast
from cag_utils.keyframes.training import fit
from cag_utils.making.captions import write_caption
from cag_utils.making.stills import N_SEGMENTS, Stills, patch_labels
from cag_utils.making.tower import NARROWED, jitter
from cag_utils.making.twins import make_tokenizer, train_vocabulary
from cag_utils.params import check_choice
from cag_utils.phantom.clinic.findings import write_findings
from cag_utils.scores.embedders import WEIGHTS, Embedder
from cag_utils.scores.two_towers import ConceptClip, MedClip, published_state
from cag_utils.study import read_json, write_json
from cag_utils.vlm.conceptclip import rename_tower

# A text tower that only read captions would find the study's findings foreign, and one that only
# read findings would know nothing of other wordings.
FINDINGS_SHARE = 0.4
CAPTIONS = ("describe", "worst", "list", "referral")
PLACES_WEIGHT = 1.0  # of the loss of `PlaceTask`
RATE, TRUNK_RATE = 1e-3, 0.3  # peak of the learning rate; share of it for a pretrained tower


def write_text(
    rng: np.random.Generator, stills: Stills, index: int, languages: Sequence[str] = ("en",)
) -> str:
    """Write one text about a still: a generic caption, or findings in the study's format.

    Args:
        rng: Draws language, kind, wording and a patient's history, hence the advice.
        languages: Drawn from with equal chances.
    """
    language = str(rng.choice(list(languages)))
    facts = stills.facts(rng, index)
    if rng.random() < FINDINGS_SHARE:
        return write_findings(facts.lesions, facts.laterality, facts.plan)[language]
    # an embedder reads what was found, not what was asked
    return write_caption(rng, facts, language, str(rng.choice(CAPTIONS)))[1]


def softmax_loss(logits: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Return InfoNCE in both directions, nats.

    Args:
        logits: (B, B) scaled cosines, picture by text.
        same: (B, B) bool; which rows and columns tell of the same side and lesions, so that
            a batch with two healthy right coronaries does not ask for the impossible.
    """
    wanted = same.float()
    rows = functional.cross_entropy(logits, wanted / wanted.sum(1, keepdim=True))
    columns = functional.cross_entropy(logits.T, wanted.T / wanted.T.sum(1, keepdim=True))
    return (rows + columns) / 2


def sigmoid_loss(logits: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Return SigLIP's pairwise loss: each picture and text is a yes or a no of its own.

    Args:
        logits: (B, B) scaled and shifted cosines.
        same: As in `softmax_loss`.

    Source:
        Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023, algorithm 1.
    """
    sign = 2 * same.float() - 1
    return -functional.logsigmoid(sign * logits).sum() / len(logits)


def fit_stills(embedder: Embedder, stills: Stills) -> np.ndarray:
    """Return the stills as the embedder's network reads them: (n, side, side) uint8."""
    fitted = (embedder.pixels.fit(image) for image in stills.images)
    return np.stack([np.asarray(x)[..., 0] for x in fitted])


def train_embedder(
    embedder: Embedder,
    stills: Stills,
    steps: int,
    seed: int = 0,
    batch_size: int = 48,
    trunk: torch.nn.Module | None = None,
    parts: int = 1,
    checkpoint: Path | None = None,
) -> list[float]:
    """Train a twin, in place: SigLIP2 with the sigmoid loss, the others with InfoNCE.

    A step draws two texts a picture. The picture is pulled towards the first, and the two texts
    towards each other, so that wordings of one finding meet even where the picture is hard to read.
    Beside that the image tower answers `PlaceTask`, without which so few pictures teach it nothing.

    Args:
        steps: Optimiser steps, a multiple of `parts`.
        seed: Order, wording and jitter.
        trunk: A pretrained part of the network; it learns at `TRUNK_RATE` of the rate.
        parts: Of the training; after each, `checkpoint` is written, from which the same call goes
            on after a kill with the same result.
        checkpoint: File, or None.

    Returns:
        The loss of every step, nats.

    Raises:
        ValueError: Fewer pictures than a batch.
    """
    stills.check_batch(batch_size)
    torch.manual_seed(seed)  # for dropped paths, where a network has them
    model, speaks = embedder.towers.module, embedder.entry.languages
    images, places = fit_stills(embedder, stills), PlaceTask(embedder, stills)
    facts = np.column_stack([stills.lca, stills.grades])

    def batches(part: int):
        rng = np.random.default_rng([seed, part])
        for _ in range(steps // parts):
            index = rng.choice(len(stills), batch_size, replace=False)
            texts = [[write_text(rng, stills, int(i), speaks) for i in index] for _ in range(2)]
            yield 1, (index, texts, jitter(rng, images[index]))

    def loss(index: np.ndarray, texts: list[list[str]], seen: np.ndarray) -> dict:
        with autocast(torch.device(embedder.device)):
            image, *text = _embed(embedder, seen, texts)
        same = torch.from_numpy((facts[index, None] == facts[None, index]).all(-1))
        pairs = _pair_loss(embedder, image, text[0], same) + _pair_loss(embedder, *text, same)
        return {"pairs": pairs, "places": PLACES_WEIGHT * places.loss(index)}

    optimiser = _optimiser([model, places.head], trunk)
    kept = {"checkpoint": checkpoint, "key": f"{seed} {len(stills)}", "name": embedder.name}
    both = torch.nn.ModuleList([model, places.head])
    done = fit(both, batches, loss, [optimiser], steps // parts, parts, **kept)
    places.close()
    model.eval()
    return [row["pairs"] for row in done.steps]


def _embed(embedder: Embedder, images: np.ndarray, texts: list[list[str]]) -> list[torch.Tensor]:
    """Fitted pictures and lists of texts, with gradients; unit vectors."""
    towers = embedder.towers
    vectors = [towers.image(embedder.pixels.tensor(images).to(embedder.device))]
    for one in texts:
        tokens = embedder.tokens([towers.clean(text) for text in one])
        vectors.append(towers.text(*(part.to(embedder.device) for part in tokens)))
    return [functional.normalize(x.float(), dim=-1) for x in vectors]


def _pair_loss(embedder: Embedder, left, right, same) -> torch.Tensor:
    """The loss that the embedder's authors used, with its own scale and bias."""
    model = embedder.towers.module
    logits = model.logit_scale.exp().clamp(max=100) * left @ right.T
    if embedder.entry.loss == "sigmoid":
        return sigmoid_loss(logits + model.logit_bias, same)
    return softmax_loss(logits, same)


def retrieval(embedder: Embedder, pictures: Sequence, texts: Sequence[str]) -> dict[str, float]:
    """Measure how often a picture finds its text among all texts.

    Args:
        texts: Of each picture; equal ones are equally right.

    Returns:
        `top1` and `top5`, shares of pictures whose best (five best) distinct texts hold a right
        one; `chance_top1` and `chance_top5`, the same for a blind guess; `n_texts`, distinct ones.

    Raises:
        ValueError: Not one text a picture.
    """
    if len(pictures) != len(texts):
        raise ValueError(f"{len(pictures)} pictures and {len(texts)} texts: one text a picture")
    distinct, right = np.unique(list(texts), return_inverse=True)
    image, text = _unit(embedder.images(pictures)), _unit(embedder.texts(distinct.tolist()))
    rank = np.argsort(-image @ text.T, axis=1, kind="stable")
    found = {f"top{k}": float((rank[:, :k] == right[:, None]).any(1).mean()) for k in (1, 5)}
    chance = {f"chance_top{k}": min(1.0, k / len(distinct)) for k in (1, 5)}
    return found | chance | {"n_texts": len(distinct)}


def side_accuracy(embedder: Embedder, pictures: Sequence, is_left: Sequence[bool]) -> float:
    """Return the share of pictures nearer to the right one of two sentences: left or right side."""
    sides = ["Angiogram of the left coronary artery.", "Angiogram of the right coronary artery."]
    image, text = _unit(embedder.images(pictures)), _unit(embedder.texts(sides))
    return float(((image @ text.T).argmax(1) == 1 - np.asarray(is_left, int)).mean())


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _optimiser(modules, trunk) -> torch.optim.Optimizer:
    """AdamW at its peak rates; a trunk's pooling head is always new."""
    named = trunk.named_parameters() if trunk else ()
    slow = {id(weight) for name, weight in named if "attn_pool" not in name}
    groups = [{"params": [], "lr": rate} for rate in (RATE, RATE * TRUNK_RATE)]
    for weight in (weight for module in modules for weight in module.parameters()):
        groups[id(weight) in slow]["params"].append(weight)
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, weight_decay=0.05, betas=(0.9, 0.98))


RARE = torch.tensor(5.0)  # a cell holds few of the 15 segments: what is there counts more


class PlaceTask:
    """Ask each cell of an image tower's last grid which segments run there, and if one is narrowed.

    A picture and a sentence say too little about each other for a tower that starts from noise. The
    head is thrown away afterwards.

    Args:
        embedder: A tiny one; its tower's last layer norm is listened to.
        stills: Pictures with the truth along their vessels.
    """

    def __init__(self, embedder: Embedder, stills: Stills):
        model = embedder.towers.module
        is_vit = hasattr(model, "visual")
        last = model.visual.trunk.norm if is_vit else model.vision_model.model.layernorm
        width = last.normalized_shape[0]
        self.head = torch.nn.Linear(width, N_SEGMENTS + 1).to(embedder.device)
        self.stills, self.tokens = stills, None
        self._hook = last.register_forward_hook(self._keep)

    def _keep(self, module, inputs, output) -> None:
        self.tokens = output

    def loss(self, index: np.ndarray) -> torch.Tensor:
        """Return the mean cross-entropy for the stills that the tower read last, nats."""
        side = math.isqrt(self.tokens.shape[1])
        wanted = place_targets(self.stills, index, side).to(self.tokens.device)
        logits = self.head(self.tokens.float())
        return functional.binary_cross_entropy_with_logits(logits, wanted, pos_weight=RARE)

    def close(self) -> None:
        """Stop listening."""
        self._hook.remove()


def place_targets(stills: Stills, index: np.ndarray, side: int) -> torch.Tensor:
    """Return what each cell of a `side` x `side` grid over some stills holds.

    Returns:
        (B, side * side, 16) float32, 0 or 1: AHA segments 1 to 15, then any narrowing.
    """
    labels = patch_labels(stills, index, side)
    found = labels["segment"][..., None] == np.arange(1, N_SEGMENTS + 1)
    taken = labels["narrowed"][..., None] >= NARROWED
    return torch.from_numpy(np.concatenate([found, taken], -1).astype(np.float32))


NAMES = ("siglip2", "medclip", "conceptclip")
GEMMA_TOKENS, BERT_TOKENS = 1500, 900  # SigLIP2 reads two languages
MEDCLIP_DIM = 64
POSITIONS = "embeddings.position_embedding.weight"
TEXT = {
    "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 384,
    "max_position_embeddings": 80, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
# Patches of 8 instead of 4: the published 224 px at a quarter of the cost. Too small to lose paths.
VISION = {
    "image_size": 224, "patch_size": 8, "embed_dim": 32, "depths": [1, 1, 2],
    "num_heads": [2, 4, 8], "window_size": 7, "drop_path_rate": 0.0,
}  # fmt: skip


def build_embedder(name: str, folder: str | Path, texts: Iterable[str], seed: int = 0) -> Path:
    """Write a twin with random weights and a vocabulary learnt from `texts`.

    Args:
        folder: Made if missing; holds weights, configuration and tokenizer afterwards.
        texts: A few thousand captions and findings, in the languages the twin is to read.
        seed: Of the weights; torch's generator is put back afterwards.

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
            sizes = read_json(WEIGHTS / name / "open_clip_config.json")  # the shipped twin's
            sizes["model_cfg"]["text_cfg"]["vocab_size"] = len(tokenizer)
            write_json(folder / "open_clip_config.json", sizes)
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
    """Write a network's weights into a twin's folder, under the published names, in 16 bit."""
    state = model.state_dict() if name == "siglip2" else published_state(model)
    file = "open_clip_model.safetensors" if name == "siglip2" else "model.safetensors"
    halves = {key: value.detach().half().contiguous().cpu() for key, value in state.items()}
    save_file(halves, Path(folder) / file)
    return Path(folder)


@torch.no_grad()
def start_from_tower(trunk: torch.nn.Module, tower: dict[str, torch.Tensor]) -> None:
    """Give a timm tower the weights of a pretrained SiglipVisionModel, in place.

    Positions are interpolated where the grids differ; the pooling head keeps its own weights, since
    the pretrained tower has none.

    Args:
        trunk: timm's SigLIP tower, of the same width and depth.
        tower: State dict under transformers' names.

    Raises:
        ValueError: A tensor does not fit.
    """
    tower = {name.removeprefix("vision_model."): tensor for name, tensor in tower.items()}
    for name, weight in rename_tower(trunk.state_dict()).items():  # shared with the trunk
        found = tower[name]
        if name == POSITIONS and len(found) != len(weight):
            found = _stretch(found, len(weight))
        if found.shape != weight.shape:
            raise ValueError(f"the pretrained tower does not fit: its {name} is {found.shape}")
        weight.copy_(found)


def _stretch(table: torch.Tensor, count: int) -> torch.Tensor:
    """Interpolate positions of one square grid, (n, width), to another of `count` cells."""
    old, new = math.isqrt(len(table)), math.isqrt(count)
    grid = table.float().T.reshape(1, -1, old, old)
    grid = functional.interpolate(grid, (new, new), mode="bicubic", align_corners=False)
    return grid.flatten(2)[0].T


def _bert_tokenizer(texts: Iterable[str]) -> BertTokenizer:
    learner = BertWordPieceTokenizer(lowercase=True)
    learner.train_from_iterator(texts, vocab_size=BERT_TOKENS, min_frequency=2, show_progress=False)
    vocabulary = dict(sorted(learner.get_vocab().items(), key=lambda item: item[1]))
    return BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=77)


def _gemma_tokenizer(texts: Iterable[str]) -> GemmaTokenizer:
    clean = open_clip.tokenizer.get_clean_fn("canonicalize")  # lower case, no punctuation
    vocabulary = train_vocabulary([clean(text) for text in texts], GEMMA_TOKENS)
    tokenizer = make_tokenizer("gemma3", vocabulary)
    tokenizer.padding_side, tokenizer.model_max_length = "right", 64
    return tokenizer
