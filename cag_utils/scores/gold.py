"""How well `read_entities` reads: sentences with what they say, labelled by hand.

The study's own stand in `gold_sentences.csv` (from how hospitals write, no patient's text). On own
data the same table, filled by a person for a sample of the own findings, says whether what the
parser makes the truth of is right.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pa

from cag_utils.scores.entities import read_entities
from cag_utils.scores.lexicon import PLANS
from cag_utils.tables import read_table

GOLD = Path(__file__).parent / "gold_sentences.csv"
_ONE = r"(?:RCA|LM|LAD|LCX|\?) (?:#\d{1,2}|\?) (?:\d{1,3}|\?)"
HAND = pa.DataFrameSchema(
    {
        "language": pa.Column(str, pa.Check.isin(["en", "ja"])),
        "text": pa.Column(str, pa.Check.str_length(min_value=1)),
        "stenoses": pa.Column(str, pa.Check.str_matches(rf"^(?:{_ONE}(?:; {_ONE})*)?$")),
        "laterality": pa.Column(str, pa.Check.isin(["", "LCA", "RCA"])),
        "no_stenosis": pa.Column(str, pa.Check.isin(["0", "1"])),
        "plan": pa.Column(str, pa.Check.isin(["", *PLANS])),
    },
    unique=["language", "text"],
)
RULES = {
    "language": "must be en or ja",
    "text": "must hold a findings text",
    "stenoses": 'must be like "LAD #7 90; LCX ? 75" (artery, AHA number, percent; ? is not said)',
    "laterality": "must be LCA, RCA or empty",
    "no_stenosis": "must be 1 if the text denies any (significant) stenosis and states none, or 0",
    "plan": f"must be empty or one of {', '.join(PLANS)}",
}


def read_gold(path: Path = GOLD) -> pd.DataFrame:
    """Read sentences with what they say: the study's own, or a `parser_check.csv` filled by hand.

    Returns:
        language, text, stenoses, laterality, no_stenosis, plan, all as text.

    Raises:
        ValueError: A column is missing, a cell breaks its rule, or a text stands twice.
    """
    return read_table(Path(path), HAND, RULES, "this text has a row already; keep one")


def parser_agreement(gold: pd.DataFrame) -> pd.DataFrame:
    """Compare what `read_entities` reads with what a person read.

    An item is one stenosis (artery, segment and percent all right), the side, "no stenosis", or
    the plan; a text may hold several, or none.

    Args:
        gold: From `read_gold`.

    Returns:
        Indexed by language: precision and recall over items (0 to 1), n (the person's items),
        sentences, and whole (share of sentences with every item right and none too many).
    """
    rows = {}
    for language, some in gold.groupby("language"):
        hand = [_items(r.stenoses, r.laterality, r.no_stenosis, r.plan) for r in some.itertuples()]
        read = [_items_read(text, language) for text in some["text"]]
        right = sum((a & b).total() for a, b in zip(hand, read, strict=True))
        n, said = (sum(items.total() for items in side) for side in (hand, read))
        whole = np.mean([a == b for a, b in zip(hand, read, strict=True)])
        rows[language] = {
            "precision": right / said if said else np.nan, "recall": right / n if n else np.nan,
            "n": n, "sentences": len(some), "whole": whole,
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("language")


def blank_check(texts: Iterable[str], language: str, n: int, seed: int) -> pd.DataFrame:
    """Draw up to `n` distinct texts for a person to read: `parser_check.csv` with empty cells.

    Fill it without looking at what the parser says, and read it back with `read_gold`.
    """
    distinct = pd.Series(pd.unique(pd.Series(list(texts)).dropna()))
    drawn = distinct.sample(min(n, len(distinct)), random_state=seed)
    empty = dict.fromkeys(("stenoses", "laterality", "no_stenosis", "plan"), "")
    return pd.DataFrame({"language": language, "text": drawn.to_numpy()}).assign(**empty)


def _items(stenoses: str, laterality: str, no_stenosis: str, plan: str) -> Counter:
    others = [laterality, "no stenosis" if no_stenosis == "1" else "", plan]
    return Counter(filter(None, [*stenoses.split("; "), *others]))


def _items_read(text: str, language: str) -> Counter:
    read = read_entities(text, language)
    said = [
        f"{s.artery or '?'} {f'#{s.segment}' if s.segment else '?'} "
        f"{'?' if s.percent is None else s.percent}"
        for s in read.stenoses
    ]
    return _items(
        "; ".join(said), read.laterality or "", str(int(read.no_stenosis)), read.plan or ""
    )
