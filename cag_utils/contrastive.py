"""Contrastive training of the embedders' twins: a picture lies near its text, far from others'."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional

from cag_utils.embedders import Embedder
from cag_utils.networks import autocast
from cag_utils.phantom.captions import write_caption
from cag_utils.phantom.findings import write_findings
from cag_utils.places import PlaceTask
from cag_utils.pretrain import jitter, set_rate
from cag_utils.pretrain_captions import draw_scene
from cag_utils.stills import Stills

# A text tower that only read captions would find the study's findings foreign, and one that only
# read findings would know nothing of other wordings.
FINDINGS_SHARE = 0.4
CAPTIONS = ("describe", "worst", "list", "referral")
PLACES_WEIGHT = 1.0  # of the loss of `PlaceTask`
TRUNK_RATE = 0.3  # of the learning rate, for a tower that was pretrained


def write_text(
    rng: np.random.Generator, stills: Stills, index: int, languages: Sequence[str] = ("en",)
) -> str:
    """Write one text about a still: a generic caption, or findings in the study's format.

    Args:
        rng: Generator; draws language, kind, wording and a patient's history, hence the advice.
        stills: Pictures with their lesions.
        index: Which one.
        languages: Drawn from with equal chances.
    """
    language = str(rng.choice(list(languages)))
    scene = draw_scene(rng, stills, index)
    if rng.random() < FINDINGS_SHARE:
        return write_findings(scene.lesions, scene.laterality, scene.plan)[language]
    # an embedder reads what was found, not what was asked
    scene = replace(scene, report={"en": "", "ja": ""})
    return write_caption(rng, scene, language, str(rng.choice(CAPTIONS)))[1]


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
    learning_rate: float = 1e-3,
    trunk: torch.nn.Module | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train a twin, in place, with the loss of its entry.

    A step draws two texts a picture. The picture is pulled towards the first, and the two texts
    towards each other, so that wordings of one finding meet even where the picture is hard to read.
    Beside that the image tower answers `PlaceTask`, without which so few pictures teach it nothing.

    Args:
        embedder: A tiny one.
        stills: Training pictures.
        steps: Optimiser steps.
        seed: Order, wording and jitter.
        batch_size: Pictures a step.
        learning_rate: Peak, with warm-up and cosine.
        trunk: A pretrained part of the network; it learns at `TRUNK_RATE` of that.
        on_step: Called with the step and its loss.

    Returns:
        The loss of every step, nats.

    Raises:
        ValueError: Fewer pictures than a batch.
    """
    if len(stills) < batch_size:
        raise ValueError(f"{len(stills)} stills are fewer than one batch of {batch_size}")
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)  # for dropped paths, where a network has them
    model = embedder.towers.module.train()
    images, places = fit_stills(embedder, stills), PlaceTask(embedder, stills)
    facts = np.column_stack([stills.lca, stills.grades])
    optimiser, peaks = _optimiser([model, places.head], trunk, learning_rate)
    losses = []
    for step in range(steps):
        set_rate(optimiser, 1.0, step, steps)
        for group, peak in zip(optimiser.param_groups, peaks, strict=True):
            group["lr"] *= peak
        index = rng.choice(len(stills), batch_size, replace=False)
        speaks = embedder.entry.languages
        texts = [[write_text(rng, stills, int(i), speaks) for i in index] for _ in range(2)]
        with autocast(torch.device(embedder.device)):
            image, *text = embed_pairs(embedder, jitter(rng, images[index]), texts)
        same = torch.from_numpy((facts[index, None] == facts[None, index]).all(-1))
        loss = pair_loss(embedder, image, text[0], same) + pair_loss(embedder, *text, same)
        (loss + PLACES_WEIGHT * places.loss(index)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
        if on_step:
            on_step(step, losses[-1])
    places.close()
    model.eval()
    return losses


def embed_pairs(
    embedder: Embedder, images: np.ndarray, texts: Sequence[list[str]]
) -> list[torch.Tensor]:
    """Embed fitted pictures and any number of lists of texts, with gradients; unit vectors."""
    towers = embedder.towers
    vectors = [towers.image(embedder.pixels.tensor(images).to(embedder.device))]
    for one in texts:
        tokens = embedder.tokens([towers.clean(text) for text in one])
        vectors.append(towers.text(*(part.to(embedder.device) for part in tokens)))
    return [functional.normalize(x.float(), dim=-1) for x in vectors]


def pair_loss(
    embedder: Embedder, left: torch.Tensor, right: torch.Tensor, same: torch.Tensor
) -> torch.Tensor:
    """Return the loss the embedder's authors used, with its own scale and bias."""
    model = embedder.towers.module
    logits = model.logit_scale.exp().clamp(max=100) * left @ right.T
    if embedder.entry.loss == "sigmoid":
        return sigmoid_loss(logits + model.logit_bias, same)
    return softmax_loss(logits, same)


def retrieval(embedder: Embedder, pictures: Sequence, texts: Sequence[str]) -> dict[str, float]:
    """Measure how often a picture finds its text among all texts.

    Args:
        embedder: Any.
        pictures: (n) held-out pictures.
        texts: (n) the text of each; equal texts are equally right.

    Returns:
        `top1` and `top5`, shares of pictures whose best (five best) distinct texts hold a right
        one; `chance_top1` and `chance_top5`, the same for a blind guess; `n_texts`, distinct ones.

    Raises:
        ValueError: Not one text a picture.
    """
    if len(pictures) != len(texts):
        raise ValueError(f"{len(pictures)} pictures and {len(texts)} texts: one text a picture")
    distinct = sorted(set(texts))
    right = np.array([distinct.index(text) for text in texts])
    image, text = _unit(embedder.images(pictures)), _unit(embedder.texts(distinct))
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


def _optimiser(modules, trunk, learning_rate: float) -> tuple[torch.optim.Optimizer, list[float]]:
    """AdamW, and the peak rate of each of its groups; a trunk's pooling head is always new."""
    named = trunk.named_parameters() if trunk else ()
    slow = {id(weight) for name, weight in named if "attn_pool" not in name}
    weights = [weight for module in modules for weight in module.parameters()]
    groups = [
        ([w for w in weights if id(w) not in slow], learning_rate),
        ([w for w in weights if id(w) in slow], learning_rate * TRUNK_RATE),
    ]
    groups = [(weights, peak) for weights, peak in groups if weights]
    optimiser = torch.optim.AdamW(
        [{"params": weights} for weights, _ in groups], weight_decay=0.05, betas=(0.9, 0.98)
    )
    return optimiser, [peak for _, peak in groups]
