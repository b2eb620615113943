"""The words by which `entities` reads a coronary report: patterns only, no logic.

All patterns are matched on text that is NFKC-normalised (full-width digits and signs become plain)
and lower-cased. A Latin word is bounded by `_B`/`_E` because kana count as word characters.
Japanese notes mix in English, so `ja` reads both vocabularies and `en` reads the English one.
"""

import re

_B, _E = r"(?<![a-z])", r"(?![a-z])"
_SUFFIX = r"(?:[ -]?(?:coronary )?(?:artery|arteries|branch|system|tree|circulation))?"


def _either(english: str, japanese: str) -> dict[str, re.Pattern]:
    """Compile one pattern per language."""
    en = rf"{_B}(?:{english}){_E}"
    return {"en": re.compile(en), "ja": re.compile(f"{en}|{japanese}")}


# name -> (English, Japanese, artery or side, AHA segment or None). First match at a place wins.
_RIGHT_PL = r"(?<!\d)#?4[ -]?(?:av|pl)|r-?pl[av]?|plv|right postero-?lateral" + _SUFFIX
_PLACES = (
    ("left main", r"left main(?: trunk)?" + _SUFFIX + r"|lmt|lmca|lm", r"左冠動脈主幹部?|左?主幹部",
     "LM", 5),
    ("d1", r"d[ -]?1|(?:first|1st) diag(?:onal)?" + _SUFFIX + r"|diag(?:onal)?[ -]?1",
     r"第[一1]対角枝", "LAD", 9),
    ("d2", r"d[ -]?2|(?:second|2nd) diag(?:onal)?" + _SUFFIX + r"|diag(?:onal)?[ -]?2",
     r"第[二2]対角枝", "LAD", 10),
    ("diagonal", r"diag(?:onal)?s?" + _SUFFIX, r"対角枝", "LAD", None),
    ("septal", r"septals?" + _SUFFIX, r"中隔枝", "LAD", None),
    ("om1", r"om[ -]?1|(?:first|1st) (?:obtuse )?marginal" + _SUFFIX, r"第[一1]鈍[角縁]枝",
    "LCX", 12),
    ("om2", r"om[ -]?2|(?:second|2nd) (?:obtuse )?marginal" + _SUFFIX, r"第[二2]鈍[角縁]枝",
     "LCX", 12),
    ("om", r"om|obtuse marginal" + _SUFFIX, r"鈍[角縁]枝", "LCX", 12),
    ("hl", r"ramus(?: intermedi\w+)?" + _SUFFIX + r"|intermediate (?:branch|artery)|high lateral"
     + _SUFFIX + r"|hl(?=[ :=]*(?:\d|[のに入]|osti))", r"高位側壁枝|中間枝", "LCX", 12),
    ("lpd", r"left (?:posterior descending|pda?)" + _SUFFIX + r"|l-?pda?", r"左後下行枝",
    "LCX", 15),
    ("rca end", r"(?:distal )?rca branches", r"右冠(?:状)?動脈末梢", "RCA", 4),
    ("pda", r"(?:right )?posterior descending" + _SUFFIX + r"|(?<!\d)#?4[ -]?pda?|r-?pda?|pda?",
    r"後下行枝",
     "RCA", 4),
    ("av", _RIGHT_PL, r"(?:右|(?<!\d)#?4[ -]?)(?:後側壁枝|房室枝)|房室(?:結節)?枝", "RCA", 4),
    ("rv", r"acute marginal" + _SUFFIX + r"|(?:rv|right ventricular|conus) branch",
     r"(?:右室|rv)枝|円錐枝|鋭[角縁]枝", "RCA", None),
    ("pl", r"(?:postero-?lateral|pla?)" + _SUFFIX, r"後側壁枝", "LCX", 14),
    ("lad", r"lad|(?:left )?anterior descending" + _SUFFIX, r"(?:左冠(?:状)?動脈)?左?前下行枝",
     "LAD", None),
    ("lcx", r"lcx|lcfx|cx|(?:left )?circumflex" + _SUFFIX, r"(?:左冠(?:状)?動脈)?左?回旋枝",
     "LCX", None),
    ("rca", r"rcag?|right (?:coronary|system)" + _SUFFIX, r"右の?冠(?:状)?(?:動脈)?", "RCA", None),
    ("lca", r"lcag?|left (?:coronary|system)" + _SUFFIX, r"左の?冠(?:状)?(?:動脈)?", "LCA", None),
)  # fmt: skip
PLACE_OF = {name: (owner, segment) for name, _, _, owner, segment in _PLACES}
# Names that two arteries have: which AHA segment it is in each.
OF_EITHER = {"pl": {"RCA": 4, "LCX": 14}, "pda": {"RCA": 4, "LCX": 15}, "av": {"RCA": 4}}
# Vessels that share an AHA number: name -> what tells them apart.
SHARED = (4, 12)
BRANCHES = {"pda": "PD", "av": "AV", "pl": "AV", "om1": "OM1", "om2": "OM2", "hl": "HL"}
_POS_EN = (
    r"(?:ostial|osti(?:um|a)|origin|prox(?:imal(?:ly)?)?|mid(?:dle)?|dist(?:al(?:ly)?)?"
    r"|apical|apex)"
)
_POS_JA = r"(?:入口部|起始部|近位部?|中間(?!枝)部?|中央部|中部|遠位部?|末梢側?)"
# The part of an artery -> its AHA segment. There is no middle circumflex among them.
PART_OF = {"RCA": (1, 2, 3), "LAD": (6, 7, 8), "LCX": (11, None, 13), "LM": (5, 5, 5)}
PARTS = (
    ("ost", "orig", "p", "入口", "起始", "近位"), ("m", "中"), ("d", "api", "apex", "遠位", "末梢"),
)  # fmt: skip
POSITION = rf"{_POS_EN}|{_POS_JA}|{_B}[pmd]{_E}|{_B}[pmd](?=-?$)"
_OF_PART = r"(?:[ -](?:segment|portion|part|third|vessel))?"
_TO = r"[ -]*(?:to|and|~|/|から|および|&)[ -]*"
_PART = {"en": rf"{_B}{_POS_EN}(?:{_TO}{_POS_EN})?{_E}\.?{_OF_PART}"}
_PART["ja"] = rf"(?:{_PART['en']}|{_POS_JA}(?:[ ]?(?:から|~|-|および|と|、)[ ]?{_POS_JA})?)"
# A part that stands away from its artery: "the LAD has a 75% stenosis in its mid portion".
PART = {
    language: re.compile(
        rf"(?:{part}|{_B}[pmd](?=:| ?\d\d))(?! (?:to|flow|bed|run|filling|embol\w+)\b)(?!(?:血流"
        rf"|塞栓|側副))"
    )
    for language, part in _PART.items()
}


def _places(language: str) -> re.Pattern:
    ja = language == "ja"
    names = "|".join(
        f"(?P<{name.replace(' ', '_')}>(?:{en}){_E}" + (f"|{japanese})" if ja else ")")
        for name, en, japanese, *_ in _PLACES
    )
    before = rf"{_PART[language]}(?: of)?(?: the)?[ の-]*"
    before += r"|(?:prox|mid|dist|[pmd])-?(?=lad|rca|lcx)"  # "midLAD", "pRCA"
    after = rf"[ の-]?\(?{_PART[language]}(?! (?:and|to)\b)"
    begins = rf"(?:{_B}|(?![a-z]))"  # a Latin word, or anything else
    return re.compile(rf"{begins}(?P<before>{before})?(?:{names})(?P<after>{after})?")


PLACE = {language: _places(language) for language in ("en", "ja")}
# "75% just after D1": where it is, told by a branch that is not narrowed itself.
LANDMARK_BEFORE = re.compile(
    r"(?:after|before|beyond|past|distal to|proximal to|near|opposite|(?:bifurcation|junction"
    r"|level) (?:of|with))(?: the)?(?: origin of)?(?: the)?(?: (?:first|second|large))? *$"
)
LANDMARK_AFTER = re.compile(
    r"[ の]*(?:bifurcation|分岐|を?出|take-?off|直(?:前|後|下)|より(?:末梢|遠位|近位|中枢))"
)
STEMS = ("left main", "lad", "lcx", "rca", "lca")
_NUMBER = r"(?:1[0-5]|[1-9])(?!\d|\.\d|[ ]*(?:%|percent|mm))"
_JOIN = r"(?:番?[ ]*(?:-|~|/|・|,|、|と|から|and|&|to|through)[ ]*#?)"
_BRANCH = r"[ -]?(?:pd|av|pl)"
NUMBER = {
    "en": re.compile(
        rf"(?:#[ ]?|{_B}(?:segments?|segs?\.?|no\.|aha)[ ]?#?)"
        rf"(?!4{_BRANCH})(\d{{1,2}}(?!\d|[ ]*%)(?:{_JOIN}(?!4{_BRANCH}){_NUMBER})*)"
    )
}
NUMBER["ja"] = re.compile(
    NUMBER["en"].pattern + rf"|(?:セグメント|区域)[ ]?#?({_NUMBER}(?:{_JOIN}{_NUMBER})*)"
    rf"|(?<!\d)({_NUMBER}(?:{_JOIN}{_NUMBER})*)番(?!目)"
)
SPAN = re.compile(r"(\d+)番?[ ]*(?:-|~|から|to|through)[ ]*#?(?=(\d+))")
# The main course of each artery: "#6-8" goes through #7, "#7-9" is a bifurcation.
COURSES = ((1, 2, 3, 4), (5,), (6, 7, 8), (11, 13))
# "LCX 11" and "LCX11": a bare number right behind an artery, unless it counts something else.
BARE_NUMBER = re.compile(
    r"[ の-]?\(?(1[0-5]|[1-9])(?!\d|\.\d|[ ]*(?:%|percent|mm|cm|year|month|day|lesion|stent|st\b"
    r"|nd\b|rd\b|th\b|か月|年|枝|本|日|-vessel))"
)
GAP_BEFORE_NUMBER = re.compile(r"[ (\[:,の-]*(?:at |in |の)?[ (]*$")
GAP_AFTER_NUMBER = re.compile(r"^[ ]*[(\[]?[ ]*(?:of |in )?[ ]*(?:the )?(?:の)?$")
OF_ARTERY = re.compile(r"[ ]*(?:of|in|from)?[ ]*(?:the )?")

PERCENT = {
    "en": re.compile(
        r"(?<![\d.])(?:(\d{1,3})(?:\.\d+)?[ ]*%?[ ]*(-|~|to|から|ないし|→|->)[ ]*)?"
        r"(\d{1,3})(?:\.\d+)?[ ]*(?:%|percent|per cent)"
    )
}
PERCENT["ja"] = re.compile(PERCENT["en"].pattern.replace("per cent", "per cent|パーセント"))
# A percentage that is no stenosis of today.
NOT_STENOSIS_BEFORE = re.compile(
    r"(?:ejection fraction|ef|駆出率|burden|previous(?:ly)?|前回|以前|less than|under|below|<=?|≤)"
    r"(?: was)?[ :of=は約-]*$"
)
# "#6 90": the percent sign left out behind a segment.
UNSIGNED = re.compile(r"[ ]*[:=]?[ ]*(25|50|75|90|99|100)(?![\d.~%-]|[ ]*[a-z%年月日])")
BOUND_BEFORE = re.compile(r"(?:than|over|above|exceed\w*|[>≥]=?)[ ]*$")
NOT_STENOSIS_AFTER = re.compile(r"^[ ]*(?:ef|ejection|未満|以下|or less)")
# A word grades a narrowing: nothing else ("mild calcification") stands behind it.
_OTHER = r"calcif|tortuo|dysfunc|regurg|hypok|collat|reduc|ectas|石灰|蛇行|拡張|側副|低下|逆流"
_LESION = r"(?:re)?ste?nos|narrow|lesion|occlu|diseas|plaque|athero|isr|狭|病変|閉塞"
_GRADED = (
    rf"(?=(?:(?!{_OTHER})[^,;、。]){{0,30}}?(?:{_LESION})"
    r"|[ ]*(?:$|[.,;:、。()~/-]|(?:to|or|by|in)\b|から|の?$|を認|あり|です))"
)
# Words for a grade -> percent (AHA step), tried in this order.
GRADE_WORDS = {
    99: _either(r"(?:sub-?total|functional)(?:ly)? (?:occlu\w+|stenosis)|sub-?total(?:ly)?",
    r"亜完全閉塞|亜閉塞|機能的閉塞"),
    100: _either(
        r"(?:chronic(?:ally)? )?(?:total(?:ly)?|complete(?:ly)?) (?:occlu\w+|block\w+|obstruct\w+)"
        r"|cto|total(?=$|[.,;)])|occluded|(?:100% |acute |thrombotic )?occlusion",
        r"慢性完全閉塞|完全閉塞|途絶|閉塞(?!性|リスク|の可能性)",
    ),
    90: _either(rf"(?:severe(?:ly)?|critical(?:ly)?|tight|high[ -]grade){_GRADED}",
                rf"(?:高度|重度){_GRADED}"),
    50: _either(rf"(?:moderate(?:ly)?|intermediate){_GRADED}", rf"中等度{_GRADED}"),
    25: _either(rf"(?:mild(?:ly)?|minor|minimal){_GRADED}", rf"(?:軽度|軽微){_GRADED}"),
    75: _either(rf"significant(?:ly)?{_GRADED}", r"有意(?!差)"),  # any other word is stronger
}  # fmt: skip
TO_GRADE = re.compile(r"[ -]*(?:to|~|-|から|ないし|/|or)[ -]*")
STENOSIS = _either(
    r"(?:re)?ste?nos\w+|narrow\w+|lesions?|occlu\w+|blockages?|isr|cto",
    r"狭窄|狭小化|病変|閉塞|途絶",
)

_DISEASE = (
    r"(?:(?:re)?steno\w+|narrow\w+|lesions?|obstruct\w+|blockages?|occlu\w+|disease|abnormal\w*"
    r"|isr|cad|plaques?|irregularit\w+|findings?)"
)
VAGUE = _either(
    r"(?:re)?steno\w+|narrow\w+|lesions?|(?:vessel|diffuse|minimal|mild|moderate|severe) disease",
    r"狭窄|狭小化|病変|閉塞|動脈硬化",
)
_SEEN = (
    r"(?:seen|present|observed|detected|identified|evident|visible|noted|found|appreciated|shown"
    r"|confirmed|demonstrated|recogni[sz]ed)"
)
# Between "no" and what is denied: no "for", no treatment, or something else is denied.
_KIND = (
    r"(?:(?!(?:for|to|in|at|on|with|need|change|progress\w*|doubt|pci|cabg|stents?|stenting|action"
    r"|further treat\w*|(?:treat|therap|interven|revasc|procedur)\w*)[ .,:])[^\s.;,]+ ){0,7}?"
)
_NOT_JA = r"(?:ない|ません|ず|なかった|なく)"
_STATE = r"(?:normal(?! (?:flow|lv|sinus|size|origin|function))|unremarkable|patent|intact|clean)"
ABSENCE = _either(
    rf"neither (?:[^\s.;,]+ ){{0,12}}?{_DISEASE}|(?:no|without|absence of|free (?:of|from)"
    rf"|(?:cannot|can not|can't|don't|do not) (?:see|find|identify|detect)(?: any)?|not (?:show"
    rf"|reveal|demonstrate|have|"
    rf"appear to have|exhibit|contain)\w*(?: any)?) {_KIND}{_DISEASE}"
    rf"|{_DISEASE}[^.,;]{{0,45}}?(?: not| never) (?:be )?{_SEEN}|{_DISEASE} absent"
    rf"|{_STATE}|wnl|within normal (?:limits|range)|n\.?p|(?:is|are|:|appears?|looks?) ?(?:clear"
    r"|fine)|ok|o\.k"
    r"|nothing (?:significant|abnormal|remarkable)"
    r"|(?:(?:less than|under|below|<|<=|≤)[ ]?)(?:[1-6]?\d|7[0-5])[ ]?%",
    r"(?:狭窄|狭小化|病変|閉塞|異常|isr|stenosis)(?:(?!に対|への|治療|適応|石灰|血栓|変化|進行"
    r"|増悪|pci|ステント)[^。、,])"
    rf"{{0,20}}?(?:(?:認め|認められ|み(?:られ|とめ)|見(?:られ|え)|(?:指摘|確認|検出)(?:でき"
    rf"|され)){_NOT_JA}"
    r"|認められませんでした|(?<!で)な[しく]|無[しくい]|(?:は|が|も|の)ない|ありません|陰性"
    r"|ない(?:です)?$)"
    r"|(?:狭窄|病変|閉塞|異常|steno\w+|isr)[ ]?(?:\([ ]?[-ー][ ]?\)|:[ ]?[-ー](?!\d))"
    r"|正常(?!範囲外)|開存|(?:問題|著変|特記\w*?|特に)(?:は)?な[しい]"
    r"|[<≤][ ]?(?:[1-6]?\d|7[0-5])[ ]?%|(?:[1-6]?\d|7[0-5])[ ]?%[ ]?(?:未満|以下)",
)
# Signs, which no letter bounds: "LCX: (-)", "RCA: none".
_SIGNS = (
    r"|steno\w+[ ]?\([ ]?(?:-|neg\w*)[ ]?\)|<=?[ ]?(?:[1-6]?\d|7[0-5])[ ]?%"
    r"|(?:lmt|lad|lcx|rca|lca|#\d{1,2}|:)[ ]?\(-\)|(?:lmt|lad|lcx|rca|lca|#\d{1,2})[ ]?:?[ ]?-$"
    r"|(?:lmt?|lad|lcx|cx|rca|lca|artery|main|circumflex|#\d{1,2}|steno\w+|lesions?|disease|findings?"
    r"|狭窄|病変|閉塞|所見|冠動脈|枝|主幹部?|石灰化)[ ]?:[ ]?(?:none|no|nil|なし|無し)[ ]?(?:$|\))"
)
ABSENCE = {language: re.compile(pattern.pattern + _SIGNS) for language, pattern in ABSENCE.items()}
# The same, if the text gives no percentage.
SLIGHT = _either(
    r"(?:non-?|in|not )(?:\w+ly )?(?:significant|obstructive|flow[ -]limiting|critical)"
    r"|irregularit\w+",
    r"(?:壁|内腔)不整|有意で(?:は)?な|非有意",
)
ELSEWHERE = _either(
    r"other(?:wise)?|elsewhere|remaining|rest of|additional|further|remainder",
    r"他に|その他|他の|他は|残り|残存|以外|それ以外",
)
EXCEPT = _either(r"apart from|except(?: for)?|other than|aside from|besides", r"以外|を除")
# The place is not in the picture.
UNSEEN = _either(
    r"not(?: be)?(?: \w+ly| well)? (?:shown|visuali[sz]ed|imaged|included|seen|visible|opacified"
    r"|in view|engaged|injected|cannulated|catheteri[sz]ed|performed|done|studied|examined|filled"
    r"|obtained|taken)|(?:un|non-?)(?:engaged|injected)|(?:injection|engagement) was not possible"
    r"|(?:angio\w*|imaging|study|injection)[^.;,]{0,30}? (?:planned|scheduled|tomorrow|pending)"
    r"|(?:failed to|unable to|could not|cannot|can't|did not) (?:engage|cannulate|visuali[sz]e"
    r"|opacify|see|find|image|inject|be (?:found|located|identified))|next (?:time|session)"
    r"|to follow|another day|later|will be (?:\w+ )?(?:studied|imaged|examined|evaluated)",
    r"(?:描出|造影|撮影|評価)され(?:て)?(?:おらず|いない|いません|ない|ず|ません)|写(?:ってい"
    r"|ら)(?:ない|ません|ず)"
    r"|未(?:施行|造影|評価|撮影|検査)|(?:engage|挿入|カニュレーション|造影|撮影|同定)(?:は)?(?:でき"
    r"|不[可能成])"
    r"|(?:施行|造影|撮影)(?:せず|していない|しておらず|しており?ません|していません)|次回|後日"
    r"|明日|(?:造影|撮影|検査|評価)を?(?:する|の)?予定|後ほど|別日",
)
# The place may be in the picture; what it looks like is not said.
UNJUDGED = _either(
    r"(?:can|could)(?:not| not) (?:be |reliably be )?(?:\w+ly )?(?:assess|evaluat|judg|grad|exclud"
    r"|rul|determin|interpret)\w*|(?:difficult|hard|impossible) to (?:assess|evaluate|judge|grade)"
    r"|(?:lesion|stenosis)[ ]?\?|not (?:evaluable|assessable|evaluated|assessed|excluded)"
    r"|indeterminate|unclear|inconclusive",
    r"(?:評価|判定|判断|読影)[はが]?(?:困難|難し|不[能可]|でき(?:ない|ません|ず))|否定(?:は)?でき"
    r"|はっきりし(?:ない|ません)|不明瞭|明瞭で(?:は)?な|不明|除外でき",
)
COLLATERAL = _either(
    r"collateral\w*|fill(?:ed|s|ing)? (?:from|via|by)|retrograde(?:ly)?|rentrop|donor",
    r"側副|逆行性|から(?:の)?(?:造影|描出)|コラテ|バイパス血行",
)
GRAFT = _either(r"svg|lima|lita|rima|rita|gea|(?:vein |bypass )?grafts?", r"グラフト|内胸動脈")
DONATES = re.compile(r"\b(?:give|suppl|provide|send)\w*|供給|送")
DONOR_BEFORE = re.compile(r"(?:from|to|into|towards?|via|through|by|for|of)(?: the)?[ ]*$")
DONOR_AFTER = re.compile(r"^[ ]*(?:から|より|へ|を介|の中隔枝|に側副|に向|->|→|to )")
# Not what is seen: the dominance, and words whose parts look like places or grades.
ASIDE = re.compile(
    r"(?:right|left)(?: coronary)?(?: artery)?[ -]dominan\w+|(?:right|left)[ -]to[ -](?:left|right)"
    r"|[左右]冠(?:状)?動脈優位|timi[ -]?\d(?:-\d)?|rentrop[ -]?\d|j-cto(?: score)?[ :]?\d?"
    r"|medina[ :(]*[\d,]+\)?|[1-3３](?:-vessel|枝)(?: disease|病変)?|(?:two|three"
    r"|single)-vessel disease"
)
# What may stand around places in a list that waits for its verb.
LIST = re.compile(
    r"(?:[\W_]|\b(?:and|or|the|in|of|at|both|from|to|all|vessels?|segments?|arter\w+|on|for)\b"
    r"|[はにもがとの]|では|には|から|まで|かけて|ともに|造影|所見)*"
)
_SOFT = r"but|while|whereas|although|however|and|with|without|via|which|receiving|supplied|except"
CLAUSE = {"en": re.compile(rf"[,;]|\b(?={_SOFT}\b)|(?=\bno (?:other|further|additional)\b)")}
CLAUSE["ja"] = re.compile(
    CLAUSE["en"].pattern
    + r"|、|一方|ものの|(?=以外)|(?<=認めず)|(?<=認めないが)|(?<=正常で)|(?<=はなく)"
)
# A full stop ends a sentence unless it belongs to an abbreviation or a number.
SENTENCE = re.compile(
    r"(?<!\bseg)(?<!\bsegs)(?<!\bno)(?<!\bprox)(?<!\bdist)(?<!\bapprox)\.(?=\s|$)|(?<=\?)|[。!\n]+"
    r"|(?=(?:助言|方針|治療方針|\badvice|\bplan|\brecommendations?)[ ]?:)"
)

_TREAT = r"(?:revasculari[sz]ation|treatment|intervention|therapy|pci|stent\w*|action)"
_PCI_EN = (
    r"(?<!post-)(?<!post )(?<!s/p )pci(?!後|術後|歴)|percutaneous (?:coronary )?intervention"
    r"|angioplasty|des(?! in| to| at| patent|後)|stenting|stent (?:implantation|placement"
    r"|deployment)|with a stent|drug-eluting stents?|revasculari[sz]ation"
)
_PCI_JA = (
    r"(?<![a-z])pci(?!後|術後|歴)|経皮的冠動脈|冠動脈形成術|ステント(?:留置|治療)"
    r"|薬剤溶出性ステント|カテーテル治療|血行再建|インターベンション"
)
_BYPASS_EN = (
    r"heart[- ]team|ask the surgeons|cabg|bypass(?: surgery| grafting)?"
    r"|(?:refer|consult|discuss)[^.;,]{0,25}? surg\w+|multidisciplinary"
)
# What a measurement has shown already: no plan to measure.
MEASURED = re.compile(
    r"(?:ffr|ifr|rfr|dfr|血流予備量?比)(?:(?!\bif\b|測定|measur"
    r"|なら)[^.;,、。]){0,40}?(?:[01]?\.\d+"
    r"|positive|negative|陽性(?!なら|であれば|の場合|時)|陰性(?!なら|であれば|の場合|時))(?:\d)*"
    r"|(?:negative|positive|normal|abnormal) (?:ffr|ifr|rfr)"
)
# plan key -> pattern; within a sentence the first that matches is the plan, beside `none`.
PLANS = {
    "none": _either(
        rf"no (?:need for |further |immediate |specific )*{_TREAT}[^.;]{{0,40}}?(?:needed|required|"
        rf"necessary|indicated|warranted|planned|advised|recommended)|(?:no"
        rf"|without) (?:need (?:for|to)|plans? (?:for|to)|indication for) (?:{_TREAT}|treat)"
        r"|no procedure|nothing to (?:open|treat)"
        rf"|{_TREAT} (?:is |are )?(?:currently )?not (?:\w+ )?(?:needed|required|necessary"
        r"|indicated|warranted|recommended)|without (?:medical |any )?(?:therapy|treatment)"
        rf"|no [^.;,]{{0,40}} requir\w+ {_TREAT}|watchful waiting|(?:no|without) (?:pci"
        rf"|revasculari[sz]ation|intervention|stenting|stents? (?:was|were|is))"
        rf"|(?:{_PCI_EN})[^.;,]{{0,20}}? (?:deferred|not performed)",
        r"(?:血行再建|治療|処置|pci|介入|療法|ステント)[^。、]{0,10}?(?:不要|必要(?:は"
        r"|が)?(?:ない|ありません|なし)"
        r"|適応(?:は|が)?(?:ない|ありません|なし)|要し(?:ない|ません))|無治療|治療なし"
        r"|治療すべき病変(?:は)?(?:なし|ない|ありません)"
        r"|(?:pci|血行再建|治療|介入|ステント留置)[はをも]?(?:施行)?(?:せず|見送|行わ(?:ず|な)|しな)",
    ),
    "emergency_pci": _either(
        r"stent\w* at once|open (?:it )?now|"
        rf"(?:emergen\w+|urgent\w*|immediate\w*|primary)[^.;]{{0,40}}?(?:{_PCI_EN})"
        rf"|(?:{_PCI_EN})[^.;]{{0,30}}?(?:emergently|urgently|immediately|as an emergency)",
        rf"(?:緊急|至急|速やか|直ちに|ただちに|すぐ)[^。]{{0,12}}?(?:{_PCI_JA}|ステント|開通)",
    ),
    "cto": _either(
        r"viability|cto, prove|(?:cto|chronic total occlusion)[^.;]{0,30}?(?:pci|intervention)"
        r"|pci (?:for|of|to) (?:the )?cto"
        r"|(?:evaluat|assess|consider)\w*[^.;]{0,40}?(?:cto|chronic total occlusion)",
        r"バイアビリティ|生存能|(?:cto|慢性完全閉塞)[^。]{0,12}?(?:pci|治療|検討|評価|証明)",
    ),
    "functional": _either(
        r"ffr|ifr|rfr|pressure wire|fractional flow reserve|(?:functional|physiolog\w+|ischemi[ac])"
        r"[^.;]{0,20}?(?:test\w*|assess\w*|evaluat\w*|measure\w*|significance)|stress test\w*",
        r"血流予備|圧測定|プレッシャーワイヤ|虚血(?:の)?(?:評価|検査|判定|証明)|機能的評価"
        r"|負荷(?:検査|心筋|試験)",
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
        r"|omt|medications?|statins?|anti-?anginals?|antiplatelets?|follow[ -]?up|observation"
        r"|surveillance",
        r"薬物(?:療法|治療)|内科的治療|内服|保存的|経過観察|フォロー|スタチン",
    ),
}
# Of several plans in one text, the one that decides what is done next.
PLAN_PRIORITY = tuple("emergency_pci cto heart_team functional pci medical none context".split())
HISTORY = re.compile(
    r"\b(?:history|prior|previous(?:ly)?|s/p|status post|underwent|years? ago|last year"
    r"|(?<!be )(?:performed|completed|stented|implanted)|(?:was|were|been) (?:done|treated)"
    r"|success\w*|in (?:19|20)\d\d|post[ -](?:pci|cabg))\b"
    r"|既往|術後|年前|昨年|(?:19|20)\d\d年|施行(?:済|後|され|し(?:た|て))|留置(?:後|済|され)"
    r"|(?:pci|cabg|des|poba|バイパス)後|前回|成功|施行(?=[、。,)]|$)"
)
# What might be, not what is seen: a grade without a place here is no finding.
HYPOTHETICAL = re.compile(
    r"\bif\b|recommend|consider|should|discuss|evaluate|\badvice\b|\bplan|場合|推奨|検討|助言"
    r"|方針|ください|予定"
)
IF = re.compile(r"\bif\b|場合")
# The whole answer to "which lesions?".
# A field of a patient's history: "allergies: none" clears no vessel.
OTHER_FIELD = re.compile(
    r"(?:risks?|factors?|allerg\w*|medications?|history|bleeding|symptoms?|family|smoking"
    r"|アレルギー|既往歴?|内服薬?|リスク|家族歴|喫煙歴?|出血歴?|症状|合併症)[ ]?:"
)
NONE_AT_ALL = re.compile(r"^\s*(?:none|nothing|nil|なし|無し|特になし|異常なし)\s*$")
ADVICE = re.compile(
    r"recommend|consider|should|advis|suggest|indicat|need|require|discuss|measure|evaluate|plan"
    r"|推奨|検討|考慮|必要|望まし|勧め|ください|適応|不要|方針|予定"
)
# A lesion that was treated then is not there now, whatever its grade was.
_THEN = r"last (?:week|month|year)|(?:days|weeks|months|years) ago|in (?:19|20)\d\d"
_THEN_JA = r"先[日週月]|昨年|[\d数]+(?:日|週間|か月|ヶ月|年)前|(?:19|20)\d\d年"
TREATED = _either(
    rf"(?:pci|poba|des|stent\w*)\b[^.;,]{{0,60}}?(?:{_THEN})",
    rf"(?:{_THEN_JA})[^。、]{{0,20}}?(?:pci|poba|des|ステント)",
)
# What a clause is about: the first of these whose words it holds.
KINDS = {
    "if": dict.fromkeys(ABSENCE, IF), "treated": TREATED, "graft": GRAFT, "unjudged": UNJUDGED,
    "absent": ABSENCE,
    "slight": SLIGHT, "collateral": COLLATERAL, "unseen": UNSEEN,
    "history": dict.fromkeys(ABSENCE, HISTORY),
}  # fmt: skip
