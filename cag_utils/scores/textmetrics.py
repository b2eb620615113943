"""Word counts: how alike two texts look, with no idea of what either says.

Kept because the literature reports them, and to ask what they are worth: notebook 06 prints how
they rank reports beside the rubric. "No stenosis in the LAD" and "stenosis in the LAD" look alike.
"""

import itertools
from collections.abc import Callable, Sequence

import pandas as pd
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from cag_utils.params import check_choice
from cag_utils.profiles import Stats
from cag_utils.scores.rubric import truth_of
from cag_utils.stats import Estimate, rank_correlation


class Characters:
    """Japanese has no spaces between words: a token is a character."""

    def tokenize(self, text: str) -> list[str]:
        """Return the characters of a text that are no white space."""
        return [character for character in text if not character.isspace()]


# Language to BLEU's tokenizer and ROUGE's; None is its own, which keeps letters and digits alone.
TOKENS = {"en": ("13a", None), "ja": ("char", Characters())}


def _scorers(language: str) -> dict[str, Callable[[str, str], float]]:
    """Return each metric as a function of output and truth, 0 to 1."""
    words, tokens = TOKENS[check_choice("language", language, TOKENS)]
    bleu, chrf = BLEU(tokenize=words, effective_order=True), CHRF()
    rouge = RougeScorer(["rougeL"], use_stemmer=False, tokenizer=tokens)
    return {
        "bleu": lambda out, true: bleu.sentence_score(out, [true]).score / 100,
        "chrf": lambda out, true: chrf.sentence_score(out, [true]).score / 100,
        "rouge_l": lambda out, true: rouge.score(true, out)["rougeL"].fmeasure,
        "length_ratio": lambda out, true: min(map(len, (out, true))) / max(map(len, (out, true))),
    }


METRICS = {"bleu": "BLEU", "chrf": "chrF", "rouge_l": "ROUGE-L", "length_ratio": "Length ratio"}


def text_metrics(outputs: Sequence[str], truths: Sequence[str], language: str) -> pd.DataFrame:
    """Compare each output with its truth, word by word or character by character.

    Args:
        outputs: n generated reports; an empty one scores 0.
        truths: n true reports, not empty.
        language: en (words) or ja (characters).

    Returns:
        n rows in order, each 0 to 1: `bleu` (sentence BLEU-4, effective order), `chrf` (chrF2),
        `rouge_l` (F1) and, as what a metric that reads nothing gets, `length_ratio` (the shorter
        text's length by the longer's).

    Raises:
        ValueError: The numbers differ, a truth is empty, or the language is unknown.

    Source:
        Post, WMT 2018 (sacrebleu: BLEU, chrF); Lin, ACL workshop 2004 (ROUGE-L).
    """
    scorers = _scorers(language)
    if len(outputs) != len(truths):
        raise ValueError(f"{len(outputs)} outputs for {len(truths)} truths: give one each")
    pairs = [
        (str(out).strip(), str(true).strip()) for out, true in zip(outputs, truths, strict=True)
    ]
    if any(not true for _, true in pairs):
        raise ValueError("a truth is empty: nothing can be compared with it")
    found = {
        pair: [score(*pair) if pair[0] else 0.0 for score in scorers.values()]
        for pair in dict.fromkeys(pairs)  # models repeat themselves and each other
    }
    return pd.DataFrame([found[pair] for pair in pairs], columns=list(scorers), dtype=float)


def measure_answers(
    generations: pd.DataFrame, pairs: pd.DataFrame, language: str, vlscores: pd.DataFrame | None
) -> pd.DataFrame:
    """Put beside each answer its text metrics, its VLScores and its kind.

    Args:
        generations: 05's table, of one language.
        pairs: 03's table.
        vlscores: 06's scores in this language: case_id, model, embedder, vlscore; None has none.

    Returns:
        The rows with `METRICS`, a column an embedder, and `kind`: the model, and whether the truth
        has a stenosis; who only tells kinds apart knows nothing of lesions.
    """
    rows = generations.reset_index(drop=True)
    rows = rows.join(text_metrics(rows["output"].fillna(""), rows["ground_truth"], language))
    if vlscores is not None:
        wide = vlscores.pivot_table("vlscore", ["case_id", "model"], "embedder")
        rows = rows.merge(wide.reset_index(), how="left", on=["case_id", "model"])
    truths = pairs.drop_duplicates("case_id").set_index("case_id").loc[rows["case_id"].unique()]
    sick = {case: bool(truth_of(row, language).stenoses) for case, row in truths.iterrows()}
    return rows.assign(kind=rows["model"] + rows["case_id"].map(sick).astype(str))


def correlate(
    answers: pd.DataFrame, metrics: Sequence[str], scores: pd.DataFrame, stats: Stats, seed: int
) -> pd.DataFrame:
    """Say how each metric ranks answers as scores do: Spearman's rho, intervals by patient.

    Args:
        answers: One row an answer: case_id, model, the metrics and `kind`, inside whose values
            ranks are taken for `within`.
        metrics: Columns; an answer that lacks one is left out of its row.
        scores: Of the same answers: case_id, model, patient_id, reader and overall.

    Returns:
        scorer, metric, answers, rho, low, high, within, within_low, within_high: a row a metric
        and reader; of several readers `mean` stands last, their mean score.
    """
    kept = scores[["case_id", "model", "patient_id", "reader", "overall"]]
    if len(set(kept["reader"])) > 1:
        mean = kept.groupby(["case_id", "model", "patient_id"], as_index=False)["overall"].mean()
        kept = pd.concat([kept, mean.assign(reader="mean")])
    rows, joined = [], answers.merge(kept, on=["case_id", "model"])
    for (scorer, both), metric in itertools.product(joined.groupby("reader", sort=False), metrics):
        asked = (both, "patient_id", metric, "overall", *stats.draws(seed))
        n, within = int(both[metric].notna().sum()), rank_correlation(*asked, within="kind")
        rows.append((scorer, metric, n, *rank_correlation(*asked), *within))
    columns = ["scorer", "metric", "answers", *Estimate._fields]
    columns += [f"within{end}" for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=columns).rename(columns={"value": "rho"})
