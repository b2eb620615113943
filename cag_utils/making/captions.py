"""Generic captions of a phantom picture: what the twins read and write before they meet the study.

They name the same facts as the study's findings (side, segment, grade) in other words, in English
and Japanese, as descriptions, answers to questions, lists and examples to follow. A segment has its
name ("proximal LAD"), a grade its word ("severe"). AHA numbers, percents, plans and the study's own
sentence ("LCX #11 shows 75% stenosis.") never belong to a picture here: LoRA has to teach them.
Tasks without a picture (repeat, translate, a textbook's number for a name) see to it that no word
of the study is new.
"""

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import yaml

from cag_utils import segments as aha
from cag_utils.cines.dicom import name_view
from cag_utils.phantom.clinic.findings import PLANS, decide_plan, write_findings
from cag_utils.phantom.clinic.notes import write_report
from cag_utils.phantom.clinic.patients import draw_record
from cag_utils.study import PACKAGE

LANGUAGES = ("en", "ja")
# Share of each kind of caption. Lists and referrals are closest to what the study asks for.
KINDS = {
    "describe": 0.08, "side": 0.03, "worst": 0.07, "survey": 0.13, "list": 0.13, "grade": 0.04,
    "vessels": 0.03, "referral": 0.11, "told": 0.16, "coded": 0.08, "examples": 0.05,
    "glossary": 0.03, "copy": 0.06,
}  # fmt: skip
# Short questions about the picture alone, lesions told in words, which take long to be learnt, and
# the study's words: embeddings are tied, so a word that is not written again and again stays
# random, and LoRA can then not make the model say it.
LOOKING = (
    "describe", "side", "worst", "survey", "list", "grade", "vessels", "told", "coded", "copy",
)  # fmt: skip


@dataclass(frozen=True)
class PictureFacts:
    """What is known of one picture.

    Raises:
        ValueError: The side or the plan is unknown, or a lesion lies on the other side.
    """

    laterality: str  # LCA or RCA
    lesions: tuple[Mapping, ...]  # `{segment, percent}` on this side, any order
    view: str  # projection in plain words, e.g. `LAO cranial`; empty if unknown
    report: Mapping[str, str]  # `{"ja": ..., "en": ...}` the patient's pre-procedure report
    plan: str  # a key of `clinic.PLANS`
    seen: tuple[int, ...] = ()  # AHA segments that can be seen, rising

    def __post_init__(self):
        if self.laterality not in aha.LATERALITIES or self.plan not in PLANS:
            raise ValueError(
                f"a picture needs LCA or RCA and a plan of {list(PLANS)}, got "
                f"{self.laterality!r} and {self.plan!r}"
            )
        shown = aha.segments_of(self.laterality)
        if strays := [x for x in map(aha.check_lesion, self.lesions) if x["segment"] not in shown]:
            raise ValueError(f"an injection of the {self.laterality} does not show {strays}")


def write_caption(
    rng: np.random.Generator, facts: PictureFacts, language: str, kind: str | None = None
) -> tuple[str, str]:
    """Write one question and its answer about a picture.

    Args:
        rng: Picks the kind and the wording.
        language: en or ja.
        kind: A key of `KINDS`; drawn by its share if None.

    Returns:
        (question, answer), both non-empty.

    Raises:
        ValueError: Unknown language or kind.
    """
    if language not in LANGUAGES or kind not in (None, *KINDS):
        raise ValueError(
            f"captions are written in {LANGUAGES} and of the kinds {tuple(KINDS)}, got "
            f"{language!r} and {kind!r}"
        )
    kind = kind or str(rng.choice(list(KINDS), p=list(KINDS.values())))
    return WRITERS[kind](rng, facts, language)


def draw_patient(
    rng: np.random.Generator,
    laterality: str,
    lesions: Sequence[Mapping],
    angles: tuple[float, float] | None,
    seen: tuple[int, ...],
) -> PictureFacts:
    """Give lesions of one side a patient: a history that fits them, and the plan they lead to.

    Args:
        rng: Draws sex, history, wording of the report, and angles where there are none.
        laterality: LCA or RCA.
        lesions: From `check_lesion`.
        angles: Of the positioner, LAO and cranial positive, degrees; drawn if None.
        seen: AHA segments that can be seen, rising.
    """
    record = draw_record(rng, lesions, str(rng.choice(["M", "F"])))
    if angles is None:
        angles = rng.uniform(-50, 50), rng.uniform(-40, 40)
    report, plan = write_report(rng, record), decide_plan(record, lesions)
    return PictureFacts(laterality, tuple(lesions), name_view(*angles), report, plan, seen)


def random_facts(rng: np.random.Generator) -> PictureFacts:
    """Draw facts without a picture: any side, up to three lesions, a patient to fit."""
    side = str(rng.choice(aha.LATERALITIES))
    lesions = _draw_lesions(rng, side, int(rng.integers(4)))
    return draw_patient(rng, side, lesions, None, aha.segments_of(side))


def base_corpus(rng: np.random.Generator, patients: int) -> list[str]:
    """Return what the twins are pretrained on, as text: all kinds, both languages.

    A few hundred patients cover every wording; a blank line parts question and answer.
    """
    return [
        "\n\n".join(write_caption(rng, facts, language, kind))
        for facts in (random_facts(rng) for _ in range(patients))
        for language in LANGUAGES
        for kind in KINDS
    ]


def vocabulary_corpus(rng: np.random.Generator, patients: int) -> list[str]:
    """Return what the tokenizer is trained on: captions and the study's findings, as text.

    The tokenizer may know the study's spelling; the models never read the findings themselves.
    """
    drawn = [random_facts(rng) for _ in range(patients)]
    findings = [write_findings(x.lesions, x.laterality, x.plan).values() for x in drawn]
    advice = [text for pair in PLANS.values() for text in pair] * (patients // 5)
    return base_corpus(rng, patients) + [text for both in findings for text in both] + advice


# percent diameter stenosis -> words
GRADE_WORDS: dict[int, dict[str, str]] = {
    25: {"en": "mild", "ja": "軽度"}, 50: {"en": "moderate", "ja": "中等度"},
    75: {"en": "significant", "ja": "有意"}, 90: {"en": "severe", "ja": "高度"},
    99: {"en": "subtotal", "ja": "亜閉塞"}, 100: {"en": "total occlusion", "ja": "完全閉塞"},
}  # fmt: skip
# Repeated in any order, so that no token of the study is new.
ARTERY_NAMES = ("RCA", "LM", "LMT", "LAD", "LCX")


def wording(*keys: str):
    """Return a part of `templates/captions.yaml`: the wordings of a caption's pieces."""
    return functools.reduce(operator.getitem, keys, _read_wordings())


@functools.cache
def _read_wordings() -> dict:
    return yaml.safe_load((PACKAGE / "templates" / "captions.yaml").read_text(encoding="utf-8"))


def _word(name: str, language: str) -> str:
    return wording("words", name, language)


def _pick(rng: np.random.Generator, options: tuple) -> str:
    return options[int(rng.integers(len(options)))]


def _ask(rng: np.random.Generator, kind: str, facts: PictureFacts, language: str) -> str:
    side = wording("sides", facts.laterality, language)[0]
    return _pick(rng, wording("asks", kind, language)).format(side=side)


def _draw_lesion(rng: np.random.Generator, segment: int) -> dict:
    return aha.check_lesion({"segment": int(segment), "percent": int(rng.choice(aha.GRADES))})


def _draw_lesions(rng: np.random.Generator, laterality: str, count: int) -> list[dict]:
    segments = rng.choice(aha.segments_of(laterality), size=count, replace=False)
    return [_draw_lesion(rng, segment) for segment in sorted(segments.tolist())]


def _lesions(facts: PictureFacts) -> list[dict]:
    return sorted(map(aha.check_lesion, facts.lesions), key=lambda x: x["segment"])


def _name(segment: int, language: str) -> str:
    found = aha.AHA_SEGMENTS[segment]
    return found.name_en if language == "en" else found.name_ja


def _artery_first(segment: int, language: str, wanted: bool) -> str:
    """Name a segment, after its artery if wanted: the study's answers begin with that."""
    name = _name(segment, language)
    return aha.artery_of(segment) + _word("and", language) + name if wanted else name


def _nothing(rng: np.random.Generator, facts: PictureFacts, language: str) -> str:
    return _pick(rng, wording("nothing", language)).format(laterality=facts.laterality)


def _describe(rng: np.random.Generator, facts: PictureFacts, language: str) -> tuple[str, str]:
    side = _pick(rng, wording("sides", facts.laterality, language))
    view = f", {facts.view} view" if language == "en" else f"、{facts.view}像"
    lead = _pick(rng, wording("leads", language)).format(side=side, view=view if facts.view else "")
    parts = []
    for x in _lesions(facts):
        name, grade = _name(x["segment"], language), GRADE_WORDS[x["percent"]][language]
        parts.append(_word("narrowing", language).format(name=name, grade=grade))
    body = _word("stop", language).join(parts) if parts else _nothing(rng, facts, language)
    return _ask(rng, "describe", facts, language), lead + body + _word("end", language)


def _side(rng: np.random.Generator, facts: PictureFacts, language: str) -> tuple[str, str]:
    answer = f"{_pick(rng, wording('sides', facts.laterality, language))} ({facts.laterality})"
    return _ask(rng, "side", facts, language), answer + _word("end", language)


def _worst(rng: np.random.Generator, facts: PictureFacts, language: str) -> tuple[str, str]:
    question = _ask(rng, "worst", facts, language)
    lesions = _lesions(facts)
    if not lesions:
        return question, _nothing(rng, facts, language) + _word("end", language)
    worst = max(lesions, key=lambda x: x["percent"])  # the lower AHA number wins a tie
    name = _artery_first(worst["segment"], language, rng.random() < 0.5)
    grade = GRADE_WORDS[worst["percent"]][language]
    return question, _word("worst", language).format(name=name, grade=grade)


def _grade(rng: np.random.Generator, facts: PictureFacts, language: str) -> tuple[str, str]:
    lesions = _lesions(facts)
    # Half of the questions name a narrowed segment, the others any segment of this side.
    if lesions and rng.random() < 0.5:
        segment = lesions[int(rng.integers(len(lesions)))]["segment"]
    else:
        segment = int(rng.choice(aha.segments_of(facts.laterality)))
    percent = max((x["percent"] for x in lesions if x["segment"] == segment), default=0)
    question = _pick(rng, wording("asks", "grade", language)).format(name=_name(segment, language))
    if not percent:
        return question, _word("normal", language)
    return question, _word("grade", language).format(grade=GRADE_WORDS[percent][language])


def _vessels(rng: np.random.Generator, facts: PictureFacts, language: str) -> tuple[str, str]:
    names = _word("and", language).join(_name(s, language) for s in facts.seen)
    answer = names + _word("end", language) if names else _word("none", language)
    return _ask(rng, "vessels", facts, language), answer


def _survey(rng: np.random.Generator, facts: PictureFacts, language: str) -> tuple[str, str]:
    """Go through all that is seen, narrowed or not: ten answers for the price of one picture."""
    grades = {x["segment"]: GRADE_WORDS[x["percent"]][language] for x in _lesions(facts)}
    between = wording("formats", language)[0][0]
    named = sorted({*facts.seen, *grades})
    clear = _word("clear", language)
    entries = [_name(s, language) + between + grades.get(s, clear) for s in named]
    answer = _word("and", language).join(entries) + _word("end", language)
    return _ask(rng, "survey", facts, language), answer if named else _word("none", language)


def _entries(fmt: Sequence[str], lesions: list[dict], language: str, artery_first=False) -> str:
    """Write lesions in a format (between name and grade, after the grade, last)."""
    if not lesions:
        return _word("none", language)
    between, after, last = fmt
    entries = []
    for x in lesions:
        name = _artery_first(x["segment"], language, artery_first)
        entries.append(name + between + GRADE_WORDS[x["percent"]][language] + after)
    return _word("and", language).join(entries) + last


def _draw_format(rng: np.random.Generator, language: str) -> list[str]:
    return [_pick(rng, part) for part in wording("formats", language)]


def _list(rng: np.random.Generator, facts: PictureFacts, language: str) -> tuple[str, str]:
    fmt = [part[0] for part in wording("formats", language)]
    return _ask(rng, "list", facts, language), _entries(fmt, _lesions(facts), language)


def _referral(rng: np.random.Generator, facts: PictureFacts, language: str) -> tuple[str, str]:
    drawn = rng.random() < 0.5
    plain = [part[0] for part in wording("formats", language)]
    fmt = _draw_format(rng, language) if drawn else plain
    parts = [_ask(rng, "referral", facts, language), facts.report[language]]
    if rng.random() < 0.3:
        parts.reverse()
    answer = _entries(fmt, _lesions(facts), language, drawn and rng.random() < 0.5)
    return "\n\n".join(parts), answer


def _told(rng: np.random.Generator, facts: PictureFacts, language: str) -> tuple[str, str]:
    """List what is said in words, 0 to 3 lesions in another wording, alone or after a report."""
    said = replace(facts, lesions=tuple(_draw_lesions(rng, facts.laterality, int(rng.integers(4)))))
    writer = _pick(rng, (_describe, _list, _referral))
    parts = [
        _ask(rng, "told", facts, language),
        facts.report[language],
        writer(rng, said, language)[1],
    ]
    if rng.random() < 0.7:
        del parts[1]
    return "\n\n".join(parts), _list(rng, said, language)[1]


def _examples(rng: np.random.Generator, facts: PictureFacts, language: str) -> tuple[str, str]:
    fmt = _draw_format(rng, language)
    words = {name: both[language] for name, both in wording("words").items()}
    with_reports = rng.random() < 0.3  # as a few-shot prompt shows them: report, then answer
    blocks = []
    for _ in range(int(rng.integers(1, 3 if with_reports else 4))):
        count = int(rng.choice([0, 1, 2], p=[0.15, 0.6, 0.25]))
        made = _draw_lesions(rng, facts.laterality, count)
        shot = _entries(fmt, made, language)
        if with_reports:
            report = write_report(rng, draw_record(rng, made, "M"))[language]
            blocks.append(f"{words['report']}{report}\n{words['answer']}{shot}")
        else:
            blocks.append(words["example"] + shot)
    question = [_ask(rng, "examples", facts, language), *blocks, words["picture"]]
    return "\n\n".join(question), _entries(fmt, _lesions(facts), language)


def _glossary(rng: np.random.Generator, facts: PictureFacts, language: str) -> tuple[str, str]:
    i = LANGUAGES.index(language)
    draw = rng.random()
    if draw < 0.4:
        plan = str(rng.choice(list(PLANS)))
        advice = _pick(rng, wording("advice", plan, language))
        return _word("advice", language).format(advice=advice), PLANS[plan][i]
    if draw < 0.6:
        pair = _pick(rng, wording("glossary"))
    elif draw < 0.8:
        segment = int(rng.integers(1, 16))
        pair = [_name(segment, x) for x in LANGUAGES]
    else:
        pair = PLANS[str(rng.choice(list(PLANS)))]
    return _word("translate", language).format(term=pair[i]), pair[1 - i]


def _coded(rng: np.random.Generator, facts: PictureFacts, language: str) -> tuple[str, str]:
    """Write a text's lesions, not the picture's, with a textbook's numbers and percents, or back.

    As a published base has read them; where a picture shows which, LoRA has to teach.
    """
    said = _draw_lesions(rng, facts.laterality, int(rng.integers(1, 4)))
    codes = _word("and", language).join(f"#{x['segment']} {x['percent']}%" for x in said)
    both = [_list(rng, replace(facts, lesions=tuple(said)), language)[1], codes]
    back = int(rng.random() < 0.3)
    return wording("asks", "coded", language)[back].format(text=both[back]), both[1 - back]


def _copy(rng: np.random.Generator, facts: PictureFacts, language: str) -> tuple[str, str]:
    """Repeat a report, or words and numbers of the study in an order that means nothing."""
    text = facts.report[language]
    if rng.random() < 0.8:
        drawn = rng.permutation([*wording("study", language), *_codes(rng, language)])
        text = " ".join(map(str, drawn))
    return _ask(rng, "copy", facts, language) + "\n\n" + text, text


def _codes(rng: np.random.Generator, language: str) -> list[str]:
    """Arteries, numbers and percents that do not belong together."""
    numbers = [f"#{n}" for n in rng.integers(1, 16, 4)]
    signs = wording("percents", language)
    percents = [f"{grade}{_pick(rng, signs)}" for grade in rng.choice(aha.GRADES, 3)]
    return [*numbers, *percents, *map(str, rng.permutation(ARTERY_NAMES))]


WRITERS = {
    "describe": _describe, "side": _side, "worst": _worst, "survey": _survey, "list": _list,
    "grade": _grade, "vessels": _vessels, "referral": _referral, "told": _told, "coded": _coded,
    "examples": _examples, "glossary": _glossary, "copy": _copy,
}  # fmt: skip
