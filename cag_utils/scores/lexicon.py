"""The words by which `entities` reads a coronary report: patterns only, no logic.

All patterns are matched on text that is NFKC-normalised (full-width digits and signs become plain)
and lower-cased. A Latin word is bounded by `_B`/`_E` because kana count as word characters.
Japanese notes mix in English, so `ja` reads both vocabularies and `en` reads the English one.
"""

import re

from cag_utils.segments import AHA_SEGMENTS

_B, _E = r"(?<![a-z])", r"(?![a-z])"
_SUFFIX = r"(?:[ -]?(?:coronary )?(?:artery|arteries|branch))?"


def _either(english: str, japanese: str) -> dict[str, re.Pattern]:
    """Compile one pattern per language."""
    en = rf"{_B}(?:{english}){_E}"
    return {"en": re.compile(en), "ja": re.compile(f"{en}|{japanese}")}


# name -> (English, Japanese, artery or side, AHA segment or None). First match at a place wins.
_PLACES = (
    ("left main", r"left main" + _SUFFIX + r"|lmt|lmca|lm", r"左冠動脈主幹部?|左?主幹部", "LM", 5),
    ("d1", r"d1|(?:first|1st) diagonal" + _SUFFIX, r"第[一1]対角枝", "LAD", 9),
    ("d2", r"d2|second diagonal" + _SUFFIX, r"第[二2]対角枝", "LAD", 10),
    ("diagonal", r"diagonals?" + _SUFFIX, r"対角枝", "LAD", None),
    ("septal", r"septals?" + _SUFFIX, r"中隔枝", "LAD", None),
    ("om", r"om[12]?|obtuse marginal" + _SUFFIX, r"鈍[角縁]枝", "LCX", 12),
    ("lpd", r"left posterior descending" + _SUFFIX, r"左後下行枝", "LCX", 15),
    ("rca end", r"(?:distal )?rca branches", r"右冠(?:状)?動脈末梢", "RCA", 4),
    ("pda", r"(?:right )?posterior descending" + _SUFFIX + r"|pda", r"後下行枝", "RCA", 4),
    ("pl", r"(?:postero-?lateral|pl)" + _SUFFIX, r"後側壁枝", "LCX", 14),
    ("lad", r"lad|(?:left )?anterior descending" + _SUFFIX, r"左?前下行枝", "LAD", None),
    ("lcx", r"lcx|lcfx|cx|(?:left )?circumflex" + _SUFFIX, r"左?回旋枝", "LCX", None),
    ("rca", r"rca|right coronary" + _SUFFIX, r"右の?冠(?:状)?動脈", "RCA", None),
    ("lca", r"lca|left coronary" + _SUFFIX, r"左の?冠(?:状)?動脈", "LCA", None),
)
PLACE_OF = {name: (owner, segment) for name, _, _, owner, segment in _PLACES}
_POS_EN = r"(?:ostial|ostium|prox(?:imal)?|mid(?:dle)?|dist(?:al)?)"
_POS_JA = r"(?:入口部|起始部|近位部?|中[間央]部|中部|遠位部?|末梢)"
# The part of an artery -> its AHA segment.
PART_OF = {"RCA": (1, 2, 3), "LAD": (6, 7, 8), "LCX": (11, 11, 13), "LM": (5, 5, 5)}
PARTS = (("ost", "prox", "入口", "起始", "近位"), ("mid", "中"), ("dist", "遠位", "末梢"))


def _places(language: str) -> re.Pattern:
    ja = language == "ja"
    names = "|".join(
        f"(?P<{name.replace(' ', '_')}>{_B}(?:{en}){_E}" + (f"|{japanese})" if ja else ")")
        for name, en, japanese, *_ in _PLACES
    )
    before = rf"{_B}{_POS_EN}{_E}\.?(?:[ -](?:segment|portion|part|third) of)?(?: the)?[ -]*"
    before += rf"|{_POS_JA}の?" if ja else ""
    after = rf" {{0,1}}\(?{_B}{_POS_EN}{_E}(?! (?:and|to))" + (rf"|の?{_POS_JA}" if ja else "")
    return re.compile(rf"(?P<before>{before})?(?:{names})(?P<after>{after})?")


PLACE = {language: _places(language) for language in ("en", "ja")}
_NUMBER = r"(?:1[0-5]|[1-9])(?!\d|\.\d|[ ]*(?:%|percent))"
_JOIN = r"(?:[ ]*(?:-|~|/|,|、|と|and|&|to)[ ]*#?)"
NUMBER = {
    "en": re.compile(
        rf"(?:#[ ]?|{_B}(?:segments?|segs?\.?|no\.)[ ]?#?)"
        rf"(\d{{1,2}}(?!\d|[ ]*%)(?:{_JOIN}{_NUMBER})*)"
    )
}
NUMBER["ja"] = re.compile(
    NUMBER["en"].pattern
    + rf"|(?:セグメント|区域)[ ]?#?({_NUMBER}(?:{_JOIN}{_NUMBER})*)|({_NUMBER})番(?!目)"
)
# "LCX 11" and "LCX11": a bare number right behind an artery, unless it counts something else.
BARE_NUMBER = re.compile(
    r"[ の-]?(1[0-5]|[1-9])"
    r"(?!\d|\.\d|[ ]*(?:%|percent|mm|cm|year|month|day|か月|年|枝|本|日|-vessel))"
)
GAP_BEFORE_NUMBER = re.compile(r"[ (\[:,の-]*(?:at |in |の)?[ (]*$")
GAP_AFTER_NUMBER = re.compile(r"^[ ]*[(\[]?[ ]*(?:of |in )?[ ]*(?:the )?(?:の)?$")

_RANGE = r"(?:\d{1,3}(?:\.\d+)?[ ]*%?[ ]*(?:-|~|to|から)[ ]*)?"
PERCENT = {"en": re.compile(rf"{_RANGE}(\d{{1,3}})(?:\.\d+)?[ ]*(?:%|percent|per cent)")}
PERCENT["ja"] = re.compile(PERCENT["en"].pattern.replace("per cent", "per cent|パーセント"))
# A percentage that is no stenosis: ejection fractions, and bounds from above.
NOT_STENOSIS_BEFORE = re.compile(
    r"(?:ejection fraction|ef|駆出率|less than|under|below|<|≤|<=|up to)[ :of-]*$"
)
NOT_STENOSIS_AFTER = re.compile(r"^[ ]*(?:未満|以下|ef|or less|ejection)")
# Words for a grade -> percent (AHA step), tried in this order.
GRADE_WORDS = {
    99: _either(r"sub-?total(?:ly)? (?:occlu\w+|stenosis)|sub-?total", r"亜完全閉塞|亜閉塞"),
    100: _either(
        r"(?:chronic )?(?:total(?:ly)?|complete(?:ly)?) (?:occlu\w+|block\w+|obstruct\w+)"
        r"|cto(?!-| pci|に対する|治療)|occluded|100% occlu\w+",
        r"慢性完全閉塞|完全閉塞|閉塞(?=し|を認め|が|です|。|$)",
    ),
    90: _either(r"severe(?:ly)?|critical|tight|high-grade", r"高度|重度"),
    50: _either(r"moderate(?:ly)?|intermediate", r"中等度"),
    25: _either(r"mild(?:ly)?|minor|minimal", r"軽度|軽微"),
    75: _either(r"significant(?:ly)?", r"有意"),  # the usual threshold; any other word is stronger
}
STENOSIS = _either(
    r"(?:re)?steno\w+|narrow\w+|lesions?|occlu\w+|blockages?|cto(?!-| pci|に対する|治療)",
    r"狭窄|狭小化|病変|閉塞",
)

# "proximal LAD: severe": a list as the untuned twins write it, without a word for stenosis.
SEGMENT_OF = {n.lower(): s.number for s in AHA_SEGMENTS.values() for n in (s.name_en, s.name_ja)}
LISTED_GRADES = {
    "total occlusion": 100, "subtotal": 99, "severe": 90, "significant": 75, "moderate": 50,
    "mild": 25, "完全閉塞": 100, "亜閉塞": 99, "高度": 90, "有意": 75, "中等度": 50, "軽度": 25,
}  # fmt: skip
LISTED = re.compile(
    "({})(?::[ ]?|[ ]-[ ]|, ?|、|に|は|[ ]looks[ ]|[ ]has a narrowing that is[ ])({})".format(
        "|".join(sorted(SEGMENT_OF, key=len, reverse=True)), "|".join(LISTED_GRADES)
    )
)

_DISEASE = r"(?:steno\w+|narrow\w+|lesions?|obstruct\w+|blockages?|occlu\w+|disease|abnormal\w*)"
_SEEN = r"(?:seen|present|observed|detected|identified|evident|visible|noted|found|appreciated)"
ABSENCE = _either(
    rf"(?:no(?! (?:change|doubt))|without|neither|absence of|free (?:of|from)|not (?:show|reveal|"
    rf"demonstrate|have|appear to have|exhibit)\w*)\b[^.,;]{{0,60}}?{_DISEASE}"
    rf"|{_DISEASE}[^.,;]{{0,12}} not {_SEEN}"
    r"|(?:is|are|appears?|looks?|be|appearing) (?:\w+ )?(?:normal|unremarkable|patent)"
    r"|normal (?:coronar\w+|angiogram|lca|rca|left|right|vessels?)|unremarkable"
    r"|(?:less than|under|below)[ ]?(?:[1-6]?\d|7[0-5])[ ]?%",
    r"(?:狭窄|狭小化|病変|閉塞|異常)[^。、,]{0,12}?(?:認めません|認めない|認めず|認められ(?:ない|ません|ず)"
    r"|み(?:られ|とめ)(?:ない|ません|ず)|見られ(?:ない|ません|ず)|なし|無し|ありません|ない"
    r"|指摘でき(?:ない|ません)|確認(?:でき|され)(?:ない|ません|ず))|正常|開存"
    r"|[<≤][ ]?(?:[1-6]?\d|7[0-5])[ ]?%|(?:[1-6]?\d|7[0-5])[ ]?%[ ]?(?:未満|以下)",
)
ELSEWHERE = _either(r"other|elsewhere|remaining|rest of|additional", r"他に|その他|他の|残り|以外")
NOT_IMAGED = _either(
    r"not (?:shown|visuali[sz]ed|imaged|included|seen|visible|opacified|in view)"
    r"|(?:can|could)not be (?:seen|assessed|evaluated)",
    r"(?:描出|撮影|評価)され(?:ていない|ていません|ない)|写ってい(?:ない|ません)",
)
CLAUSE = {
    "en": re.compile(r",|;|\b(?:but|while|whereas|although|however)\b"),
    "ja": re.compile(r",|、|;|\b(?:but|while|whereas|although|however)\b|一方|ものの"),
}
# A full stop ends a sentence unless it belongs to an abbreviation or a number.
SENTENCE = re.compile(
    r"(?<!\bseg)(?<!\bno)(?<!\bprox)(?<!\bdist)\.(?=\s|$)|[。!?\n]+"
    r"|(?=(?:助言|方針|治療方針|\badvice|\bplan|\brecommendations?)[ ]?:)"
)

_TREAT = r"(?:revasculari[sz]ation|treatment|intervention|therapy|pci|stent\w*|action)"
_PCI_EN = (
    r"(?<!post-)(?<!post )(?<!s/p )pci(?!後|術後|歴)|percutaneous (?:coronary )?intervention"
    r"|angioplasty|des|stenting|stent (?:implantation|placement|deployment)|with a stent"
    r"|drug-eluting stents?|revasculari[sz]ation"
)
_PCI_JA = (
    r"(?<![a-z])pci(?!後|術後|歴)|経皮的冠動脈|冠動脈形成術|ステント(?:留置|治療)|薬剤溶出性ステント"
    r"|カテーテル治療|血行再建|インターベンション"
)
_BYPASS_EN = r"heart[- ]team|ask the surgeons|cabg|bypass(?: surgery| grafting)?|multidisciplinary"
# plan key -> pattern; within a sentence the first that matches is the plan.
PLANS = {
    "none": _either(
        rf"no (?:need for |further |immediate |specific )*{_TREAT}[^.;]{{0,20}}?(?:needed|required|"
        rf"necessary|indicated|warranted)|(?:no|without) (?:need for|indication for) {_TREAT}"
        r"|no procedure|nothing to (?:open|treat)"
        rf"|{_TREAT} (?:is |are )?(?:currently )?not (?:\w+ )?(?:needed|required|necessary"
        r"|indicated|warranted|recommended)|without (?:medical |any )?(?:therapy|treatment)"
        r"|watchful waiting",
        r"(?:血行再建|治療|処置|pci|介入|療法|ステント)[^。、]{0,10}?(?:不要|必要(?:は|が)?(?:ない|ありません|なし)"
        r"|適応(?:は|が)?(?:ない|ありません|なし)|要し(?:ない|ません))|無治療|治療なし"
        r"|治療すべき病変(?:は)?(?:なし|ない|ありません)",
    ),
    "emergency_pci": _either(
        r"stent\w* at once|open (?:it )?now|"
        rf"(?:emergen\w+|urgent\w*|immediate\w*|primary)[^.;]{{0,40}}?(?:{_PCI_EN})"
        rf"|(?:{_PCI_EN})[^.;]{{0,30}}?(?:emergently|urgently|immediately|as an emergency)",
        rf"(?:緊急|至急|速やか|直ちに|ただちに|すぐ)[^。]{{0,12}}?(?:{_PCI_JA}|ステント|開通)",
    ),
    "cto": _either(
        r"viability|cto, prove|(?:cto|chronic total occlusion)[^.;]{0,30}?(?:pci|intervention)"
        r"|(?:evaluat|assess|consider)\w*[^.;]{0,40}?(?:cto|chronic total occlusion)",
        r"バイアビリティ|生存能|(?:cto|慢性完全閉塞)[^。]{0,12}?(?:pci|治療|検討|評価|証明)",
    ),
    "functional": _either(
        r"ffr|ifr|rfr|pressure wire|fractional flow reserve|(?:functional|physiolog\w+|ischemi[ac])"
        r"[^.;]{0,20}?(?:test\w*|assess\w*|evaluat\w*|measure\w*|significance)|stress test\w*",
        r"血流予備|圧測定|プレッシャーワイヤ|虚血(?:の)?(?:評価|検査|判定|証明)|機能的評価|負荷(?:検査|心筋|試験)",
    ),
    "heart_team": _either(_BYPASS_EN, r"ハートチーム|外科|バイパス(?:術|手術)?|多職種"),
    "pci": _either(_PCI_EN, _PCI_JA),
    "context": _either(
        r"other (?:angiograph\w+|views?|images?|pictures?|findings)|comorbidit\w+"
        r"|in (?:the )?context",
        r"他の(?:アンギオ|造影|血管造影|画像)|合併症を考慮|併存疾患|総合的に",
    ),
    "medical": _either(
        r"(?:medical|drug|conservative|pharmacolog\w+) (?:therapy|management|treatment)"
        r"|medications?|statins?|anti-?anginals?|antiplatelets?|follow-?up|observation|surveillance",
        r"薬物(?:療法|治療)|内科的治療|内服|保存的|経過観察|フォローアップ|スタチン",
    ),
}
# Of several plans in one text, the one that decides what is done next.
PLAN_PRIORITY = tuple("emergency_pci cto heart_team functional pci none context medical".split())
HISTORY = re.compile(
    r"\b(?:history of|prior|previous(?:ly)?|s/p|status post|underwent|years? ago)\b|既往|術後|年前"
)
# What might be, not what is seen: a grade without a place here is no finding.
HYPOTHETICAL = re.compile(
    r"\bif\b|recommend|consider|should|\badvice\b|\bplan\b|場合|推奨|検討|助言|方針"
)
# The whole answer to "which lesions?".
NONE_AT_ALL = re.compile(r"^\s*(?:none|nothing|nil|なし|無し|特になし|異常なし)\s*$")
ADVICE = re.compile(
    r"recommend|consider|should|advis|suggest|indicat|need|require|discuss|measure|evaluate|plan"
    r"|推奨|検討|考慮|必要|望まし|勧め|ください|適応|不要"
)
