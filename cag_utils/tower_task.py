"""What a SigLIP tower is taught before it meets words: heads on its tokens, and their losses."""

import torch
from torch import nn
from torch.nn import functional
from transformers import SiglipVisionConfig, SiglipVisionModel

from cag_utils.segments import GRADES
from cag_utils.stills import N_SEGMENTS

N_GRADES = len(GRADES) + 1  # no narrowing, then the six grades
TOKENS_ASKED = 16  # tokens a step that must know the whole picture's lesions
KEPT_SHARE = 0.45  # of the patches, where the tower reads a part: those with vessels, and some more
NARROWED = 0.2  # share of the diameter from which a patch counts as narrowed
PLAIN = 0.35  # from here on the tower is asked where it is; milder ones hardly show at this size
WIDTH_WEIGHT, NARROWED_WEIGHT = 2.0, 8.0


class TowerTask(nn.Module):
    """A SigLIP tower with linear heads on its tokens; the heads are thrown away afterwards.

    Attributes:
        tower: The tower.
        segment: Token to the AHA segment in its patch, or none (16).
        lumen: Token to the octaves of the lumen's width in pixels, and to the share of the
            diameter that a lesion takes.
        narrowing: Token to how much it looks narrowed.
        nowhere: How much a picture looks like one without a narrowing: one number.
        summary: Token to the grade of each of the 15 segments in the whole picture (15 x 7).
    """

    def __init__(self, config: SiglipVisionConfig):
        super().__init__()
        self.tower = SiglipVisionModel._from_config(config, attn_implementation="sdpa")
        width = config.hidden_size
        self.segment = nn.Linear(width, N_SEGMENTS + 1)
        self.lumen = nn.Linear(width, 2)
        self.narrowing = nn.Linear(width, 1)
        self.nowhere = nn.Parameter(torch.zeros(1))
        self.summary = nn.Linear(width, N_SEGMENTS * N_GRADES)

    def read(self, pixels: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """Return the tower's tokens, (B, P, width), or only those `kept`, (B, K) of P."""
        if kept is None:
            return self.tower(pixel_values=pixels).last_hidden_state
        tower = getattr(self.tower, "vision_model", self.tower)
        tokens = tower.embeddings(pixels)
        tokens = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1]))
        return tower.post_layernorm(tower.encoder(inputs_embeds=tokens).last_hidden_state)

    def losses(
        self, pixels: torch.Tensor, truth: dict[str, torch.Tensor], whole: bool, sparse: bool
    ) -> dict[str, torch.Tensor]:
        """Return the loss of each head.

        Args:
            pixels: (B, 3, S, S), -1 to 1.
            truth: `segment`, `width_px` and `narrowed` (B, P), `grades` (B, 15).
            whole: Whether tokens are also asked about the whole picture.
            sparse: Whether the tower reads a part of the patches alone.
        """
        kept = _draw_kept(truth) if sparse else None
        tokens = self.read(pixels, kept)
        local = {
            k: v if kept is None else v.gather(1, kept) for k, v in truth.items() if k != "grades"
        }
        found = {"segment": _cross_entropy(self.segment(tokens), local["segment"])}
        found |= self._lumen_losses(tokens, local)
        found["where"] = self._where_loss(tokens, local["narrowed"])
        if whole:
            asked = tokens[:, torch.randperm(tokens.shape[1])[:TOKENS_ASKED]]
            logits = self.summary(asked).unflatten(-1, (N_SEGMENTS, N_GRADES))
            grades = truth["grades"][:, None].expand(-1, asked.shape[1], -1)
            found["summary"] = N_SEGMENTS * _cross_entropy(logits, grades)
        return found

    def _lumen_losses(self, tokens, truth) -> dict[str, torch.Tensor]:
        """How wide is each vessel, and how much of it is taken?"""
        vessel = truth["segment"] > 0
        said = self.lumen(tokens).float()[vessel]
        octaves = truth["width_px"][vessel].clamp(min=0.25).log2()
        taken = truth["narrowed"][vessel]
        return {
            "width": WIDTH_WEIGHT * functional.smooth_l1_loss(said[:, 0], octaves, beta=0.2),
            # a narrowed patch in ten: each of them counts five times
            "narrowed": NARROWED_WEIGHT
            * (
                functional.smooth_l1_loss(said[:, 1], taken, beta=0.1, reduction="none")
                * (1 + 4 * (taken >= NARROWED))
            ).mean(),
        }

    def _where_loss(self, tokens, narrowed) -> torch.Tensor:
        """Where is it, among all patches and nowhere?

        One patch in a hundred holds a narrowing: a loss a patch would be won by never seeing one.
        Tight ones count more, and a picture with mild ones alone is not asked about.
        """
        scores = self.narrowing(tokens).float()[..., 0]
        chance = torch.cat([scores, self.nowhere.expand(len(tokens), 1)], 1).log_softmax(1)
        worst = narrowed.amax(1)
        asked = (worst >= PLAIN) | (worst < NARROWED)
        taken = narrowed.square() * (narrowed >= PLAIN)
        target = torch.cat([taken, (taken.sum(1, keepdim=True) == 0).float()], 1)
        found = -(target / target.sum(1, keepdim=True) * chance).sum(1)
        return (found * asked).sum() / asked.sum().clamp(min=1)


def _draw_kept(truth: dict[str, torch.Tensor]) -> torch.Tensor:
    """Choose the patches to read: narrowed ones, then those with vessels, then any."""
    rank = torch.rand(truth["segment"].shape, device=truth["segment"].device)
    rank = rank + (truth["segment"] > 0) + 2 * (truth["narrowed"] >= NARROWED)
    return rank.topk(round(KEPT_SHARE * rank.shape[1]), dim=1).indices.sort(1).values


def _cross_entropy(logits, truth):
    return functional.cross_entropy(logits.float().flatten(0, -2), truth.flatten())
