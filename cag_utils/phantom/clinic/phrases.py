"""Who comes to the phantom's clinic, and why: sentence patterns in English and Japanese. Data only.

Every pattern is a pair (English, Japanese) that states the same; `{slots}` take the record's words
and numbers. What was done and measured before stands below. No pattern names an artery, a
segment, a side, a territory, a grade or a person: what the picture must show stays in the picture.
Words that `lexicon` reads as a grade ("mild", "severe", "有意") or as absence are avoided for the
same reason.
"""

Pair = tuple[str, str]
# fmt: off

# key -> (written out, as abbreviated in notes); within each, (English spellings, Japanese ones)
RISK_FACTORS: dict[str, tuple[tuple, tuple]] = {
    "hypertension": ((("hypertension",), ("高血圧", "高血圧症")), (("HT", "HTN"), ("HT", "HTN"))),
    "diabetes": ((("diabetes", "diabetes mellitus"), ("糖尿病",)), (("DM",), ("DM",))),
    "dyslipidemia": ((("dyslipidemia",), ("脂質異常症",)), (("DL", "HL"), ("DL", "HL"))),
    "smoking": ((("current smoking",), ("現在喫煙",)), (("smoker",), ("喫煙+",))),
    "ex_smoking": ((("former smoking",), ("過去喫煙",)), (("ex-smoker",), ("禁煙後",))),
    "family_history": ((("a family history of CAD",), ("冠動脈疾患の家族歴",)),
                       (("FHx+",), ("家族歴+",))),
    "ckd": ((("chronic kidney disease",), ("慢性腎臓病",)), (("CKD",), ("CKD",))),
    "hemodialysis": ((("hemodialysis",), ("血液透析",)), (("HD",), ("HD",))),
    "atrial_fibrillation": ((("atrial fibrillation",), ("心房細動",)), (("AF",), ("AF",))),
    "stroke": ((("prior stroke",), ("脳梗塞の既往",)), (("old CVA",), ("陳旧性脳梗塞",))),
    "pad": ((("peripheral artery disease",), ("末梢動脈疾患",)), (("PAD",), ("PAD",))),
    "obesity": ((("obesity",), ("肥満",)), (("obese",), ("肥満+",))),
}

# A list behind a colon may be abbreviated; one inside a sentence is written out.
OPENINGS: tuple[Pair, ...] = (
    ("{age}-year-old {sex} with {risks}.", "{age}歳{sex}、{risks}あり。"),
    ("{Sex}, {age} years old. Risk factors: {risks}.", "{age}歳、{sex}。冠危険因子：{risks}。"),
    ("{age} y/o {sex}, PMH: {risks}.", "{age}才{sex}。既往：{risks}。"),
    ("{age}{letter}. Risks: {risks}.", "{age}{letter}。リスク：{risks}。"),
    ("{Risks} in {an} {age}-year-old {sex}.", "{risks}を有する{age}歳の{sex}。"),
    ("Patient: {sex}, {age}. Background: {risks}.", "患者：{sex}、{age}歳。背景：{risks}。"))
OPENINGS_WITHOUT_RISKS: tuple[Pair, ...] = (
    ("{age}-year-old {sex} without known coronary risk factors.", "{age}歳{sex}、冠危険因子なし。"),
    ("{Sex}, {age} years old. No coronary risk factors.", "{age}歳、{sex}。リスク因子の指摘なし。"),
    ("{age}{letter}, coronary risk: nil.", "{age}{letter}、冠リスク(-)。"))
# The complaint first, then `RISKS_APART` or `NO_RISKS_APART`.
OPENINGS_WITH_COMPLAINT: tuple[Pair, ...] = (
    ("{age} y/o {sex} c/o {complaint}.", "{age}歳{sex}、主訴：{complaint}。"),
    ("{Complaint} in {an} {age}-year-old {sex}.", "{complaint}を主訴とする{age}歳{sex}。"),
    ("CC: {complaint}. {Sex}, {age}.", "【主訴】{complaint}。{age}歳、{sex}。"),
    ("{age}{letter}, referred to us with {complaint}.", "{age}{letter}、{complaint}にて紹介受診。"))
RISKS_APART: tuple[Pair, ...] = (
    ("Coronary risk factors: {risks}.", "冠危険因子：{risks}。"),
    ("Risk profile of {risks}.", "リスクとして{risks}あり。"),
    ("PMHx - {risks}.", "【既往】：{risks}。"))
NO_RISKS_APART: tuple[Pair, ...] = (
    ("None of the usual coronary risk factors.", "通常の冠危険因子はいずれもなし。"),
    ("Coronary risk factors (-).", "冠危険因子(-)。"))
COMPLAINTS: dict[str, Pair] = {
    "stemi": ("sudden chest pain since {hours} hours (STEMI)",
              "{hours}時間前からの突然の胸痛（STEMI）"),
    "nstemi": ("rest pain for {hours} hours (NSTEMI)", "{hours}時間続く安静時胸痛（NSTEMI）"),
    "effort_angina": ("exertional chest pain for {months} months (CCS {ccs})",
                      "{months}か月前からの労作時胸痛（CCS {ccs}）"),
    "dyspnea": ("dyspnea on effort for {months} months (NYHA {nyha})",
                "{months}か月前からの労作時息切れ（NYHA {nyha}）"),
    "atypical_pain": ("chest discomfort at rest, atypical", "非典型的な安静時胸部不快感"),
    "arrhythmia": ("palpitations for {months} months", "{months}か月前からの動悸"),
}

SURGERIES: dict[str, Pair] = {
    "valve": ("heart valve surgery", "心臓弁膜症手術"),
    "aneurysm": ("abdominal aneurysm repair", "腹部大動脈瘤手術"),
    "gastric": ("gastrectomy for cancer", "胃癌手術"),
    "lung": ("lung resection", "肺切除術"),
}
# Fact keys that the plan depends on (acute, CABG, hemodialysis) are written in every variant.
INDICATIONS: dict[str, tuple[Pair, ...]] = {
    "stemi": (
        ("Sudden chest pain for {hours} hours, ST elevation: STEMI, emergency CAG.",
         "{hours}時間前からの突然の胸痛、ST上昇あり。STEMIにて緊急CAG。"),
        ("Admitted by ambulance with STEMI, onset {hours} hours ago; emergency angiography.",
         "STEMI、発症{hours}時間で救急搬送。緊急冠動脈造影。"),
        ("STEMI; cold sweat and chest pain, door at {hours} h from onset.",
         "冷汗を伴う胸痛、発症から{hours}時間で来院。STEMI。")),
    "nstemi": (
        ("NSTEMI: rest pain for {hours} hours with ST depression, emergency CAG.",
         "NSTEMI。安静時胸痛が{hours}時間持続、ST低下あり。緊急CAG。"),
        ("Woke up with chest pain {hours} hours ago and was diagnosed with NSTEMI.",
         "{hours}時間前に胸痛で覚醒し、NSTEMIと診断。"),
        ("ST depression without elevation, NSTEMI, pain persisting {hours} h despite nitrates.",
         "ST上昇なくST低下あり、NSTEMI。硝酸薬投与後も{hours}時間疼痛持続。")),
    "effort_angina": (
        ("Exertional chest pain for {months} months, CCS class {ccs}.",
         "{months}か月前から労作時胸痛、CCS {ccs}度。"),
        ("Effort angina (CCS {ccs}) for {months} months, relieved by nitroglycerin.",
         "{months}か月前からの労作性狭心症（CCS {ccs}）、ニトログリセリンで軽快。"),
        ("Chest oppression when walking uphill, gone after a few minutes of rest; CCS {ccs}.",
         "坂道歩行で胸部絞扼感、数分の安静で消失。CCS {ccs}。"),
        ("Over {months} months the walking distance before chest pain has become shorter.",
         "この{months}か月で胸痛までの歩行距離が短縮。")),
    "dyspnea": (
        ("Dyspnea on exertion for {months} months, NYHA class {nyha}.",
         "{months}か月前から労作時息切れ、NYHA {nyha}度。"),
        ("Shortness of breath when climbing stairs, NYHA {nyha}, no chest pain.",
         "階段昇降で息切れ、NYHA {nyha}。胸痛なし。"),
        ("Gets breathless sooner than {months} months ago (NYHA {nyha}); lungs clear.",
         "{months}か月前に比べ息が切れやすい（NYHA {nyha}）。肺野清。")),
    "heart_failure": (
        ("Recovering from heart failure; CAG to look for ischemic heart disease.",
         "心不全は改善傾向。虚血性心疾患の精査目的にCAG。"),
        ("Recently hospitalized for heart failure, NYHA {nyha}; etiology work-up.",
         "最近心不全で入院、NYHA {nyha}。原因精査目的。"),
        ("Edema and congestion resolved with diuretics, cause of heart failure unknown.",
         "利尿薬で浮腫とうっ血は消失、心不全の原因は不明。")),
    "abnormal_ecg": (
        ("No symptoms; abnormal ECG found at a health check.",
         "自覚症状なし。健診で心電図異常を指摘。"),
        ("Asymptomatic, referred for new T-wave change on ECG.",
         "無症状。心電図で新規のT波変化を認め紹介。"),
        ("ST-T change on a routine ECG at the family doctor, feels well.",
         "かかりつけ医の定期心電図でST-T変化。症状の訴えなし。")),
    "atypical_pain": (
        ("Atypical chest discomfort at rest, unrelated to exertion.",
         "労作と関連のない安静時の非典型的胸部不快感。"),
        ("Occasional stabbing chest pain lasting seconds, atypical.",
         "数秒の刺すような胸痛が時々あり、非典型的。"),
        ("Chest pain that changes with posture; CAG at the patient's wish.",
         "体位で変わる胸痛。本人の希望によりCAG。")),
    "preoperative": (
        ("Preoperative assessment before {surgery}.", "{surgery}の術前評価。"),
        ("Scheduled for {surgery}; surgeons ask for coronary evaluation.",
         "{surgery}予定。執刀科より冠動脈評価の依頼。"),
        ("{Surgery} planned, CAG as part of the work-up.",
         "{surgery}を予定、術前精査の一環でCAG。")),
    "arrhythmia": (
        ("Palpitations for {months} months; Holter showed runs of NSVT.",
         "{months}か月前から動悸。ホルターでNSVTを認める。"),
        ("Frequent PVCs on Holter ECG, ischemia to be ruled out.",
         "ホルター心電図でPVC頻発、虚血の除外目的。")),
    "follow_up": (
        ("Scheduled follow-up angiography after PCI; no recurrent symptoms.",
         "PCI後のフォローアップ造影。症状の再発なし。"),
        ("Follow-up CAG after stenting, vague chest symptoms recently.",
         "ステント留置後のフォローアップCAG。最近漠然とした胸部症状あり。"),
        ("Routine control after PCI as agreed at discharge.",
         "PCI退院時の予定どおり定期確認造影。")),
}

HISTORIES: dict[str, tuple[Pair, ...]] = {
    "cabg": (
        ("CABG {cabg_ago} ago.", "{cabg_ago}前にCABG。"),
        ("s/p CABG.", "CABG術後。"),
        ("Underwent CABG at another hospital {cabg_ago} ago.", "{cabg_ago}前に他院にてCABG施行。")),
    "pci": (
        ("PCI {pci_ago} ago.", "{pci_ago}前にPCI。"),
        ("s/p PCI.", "PCI術後。"),
        ("History: PCI (+), last one {pci_ago} ago.", "PCI歴(+)、直近は{pci_ago}前。")),
    "mi": (
        ("Old MI.", "陳旧性心筋梗塞。"),
        ("MI {mi_ago} ago.", "{mi_ago}前に心筋梗塞。"),
        ("Hospitalized for MI {mi_ago} ago.", "{mi_ago}前に心筋梗塞で入院歴あり。")),
}
NO_HISTORY: tuple[Pair, ...] = (
    ("No prior MI, PCI or CABG.", "心筋梗塞、PCI、CABGの既往なし。"),
    ("First angiography.", "冠動脈造影は初回。"),
    ("No history of revascularization.", "血行再建の既往なし。"),
    ("MI (-), PCI (-), CABG (-).", "MI(-)、PCI(-)、CABG(-)。"))

STRESS_TESTS: dict[str, Pair] = {
    "treadmill": ("exercise ECG", "運動負荷心電図"),
    "spect": ("stress SPECT", "負荷心筋シンチ"),
    "echo": ("stress echo", "負荷心エコー"),
}
TESTS: dict[str, tuple[Pair, ...]] = {
    "troponin_raised": (
        ("Troponin raised, CK {ck} U/L.", "トロポニン上昇、CK {ck} U/L。"),
        ("hs-TnT positive; CK {ck} U/L.", "hs-TnT陽性、CK {ck} U/L。"),
        ("Cardiac enzymes up (CK {ck} U/L, TnI +).", "心筋逸脱酵素上昇（CK {ck} U/L、TnI+）。")),
    "stress_positive": (
        ("{Stress} positive.", "{stress}陽性。"),
        ("{Stress} suggested ischemia.", "{stress}で虚血が示唆された。"),
        ("Ischemia on {stress}.", "{stress}にて虚血あり。")),
    "stress_negative": (
        ("{Stress} negative.", "{stress}陰性。"),
        ("{Stress} without ischemia.", "{stress}で虚血なし。"),
        ("No ischemia was provoked by {stress}.", "{stress}で虚血は誘発されず。")),
    "stress_equivocal": (
        ("{Stress} inconclusive.", "{stress}は判定困難。"),
        ("{Stress} stopped early because of leg fatigue.", "{stress}は下肢疲労のため途中で終了。")),
    "echo": (
        ("Echo: LVEF {ef}%.", "心エコー：LVEF {ef}%。"),
        ("EF {ef}% on echocardiography.", "心エコーでEF {ef}%。"),
        ("TTE performed, EF {ef}%.", "経胸壁エコー施行、EF {ef}%。"),
        ("UCG) EF {ef}%.", "UCG）EF {ef}%。")),
    "renal": (
        ("Creatinine {creatinine} mg/dL.", "Cr {creatinine} mg/dL。"),
        ("eGFR {egfr} mL/min.", "eGFR {egfr} mL/min。"),
        ("Renal function: Cr {creatinine}, eGFR {egfr}.",
         "腎機能：Cr {creatinine}、eGFR {egfr}。")),
    "lipids": (
        ("LDL-C {ldl} mg/dL.", "LDL-C {ldl} mg/dL。"),
        ("LDL at last visit was {ldl}.", "前回受診時のLDLは{ldl}。")),
    "hba1c": (
        ("HbA1c {hba1c}.", "HbA1c {hba1c}。"),
        ("Last HbA1c measured {hba1c} (NGSP).", "直近のHbA1cは{hba1c}（NGSP）。")),
    "bnp": (("BNP {bnp} pg/mL.", "BNP {bnp} pg/mL。"), ("Labs: BNP {bnp}.", "採血：BNP {bnp}。")),
    "blood_pressure": (
        ("BP {systolic}/{diastolic} mmHg.", "BP {systolic}/{diastolic} mmHg。"),
        ("On admission BP was {systolic}/{diastolic}.", "入院時血圧は{systolic}/{diastolic}。")),
    "ecg_sinus": (
        ("ECG: sinus rhythm.", "心電図：洞調律。"),
        ("In sinus rhythm.", "リズムは洞調律。")),
    "ecg_af": (
        ("ECG: AF rhythm.", "心電図：AF調律。"),
        ("Rate-controlled AF on the monitor.", "モニター上AF、心拍数コントロール良好。")),
    "ct_calcium": (
        ("Calcium score {calcium} on CT.", "CTでカルシウムスコア {calcium}。"),
        ("CT: Agatston score {calcium}.", "CT：Agatstonスコア {calcium}。"),
        ("Plain CT was done (Agatston {calcium}).", "単純CT施行済み（Agatston {calcium}）。")),
}

DRUGS: dict[str, Pair] = {
    "aspirin": ("aspirin", "アスピリン"), "clopidogrel": ("clopidogrel", "クロピドグレル"),
    "statin": ("a statin", "スタチン"), "amlodipine": ("amlodipine", "アムロジピン"),
    "bisoprolol": ("bisoprolol", "ビソプロロール"), "dpp4": ("a DPP-4 inhibitor", "DPP-4阻害薬"),
    "warfarin": ("warfarin", "ワルファリン"), "apixaban": ("apixaban", "アピキサバン"),
}
MEDICATIONS: tuple[Pair, ...] = (
    ("On {drugs}.", "{drugs}内服中。"),
    ("Meds: {drugs}.", "内服薬：{drugs}。"),
    ("Takes {drugs} regularly.", "定期内服は{drugs}。"))
NO_MEDICATIONS: tuple[Pair, ...] = (
    ("No regular medication.", "常用薬なし。"),
    ("Meds (-).", "内服(-)。"))

REQUESTS: tuple[Pair, ...] = (
    ("Please assess the coronary arteries.", "冠動脈の評価をお願いします。"),
    ("CAG performed for evaluation of coronary artery disease.", "冠動脈疾患の評価のためCAG施行。"),
    ("Coronary angiography was performed.", "冠動脈造影を施行。"),
    ("CAG under local anesthesia, no complications.", "局所麻酔下にCAG施行、合併症なし。"),
    ("Consent obtained, for diagnostic CAG.", "同意取得済み、診断目的のCAG。"),
    ("Thank you for seeing this patient.", "ご高診のほどよろしくお願いします。"))
# Used only to bring a terse report to a useful length.
FILLERS: tuple[Pair, ...] = (
    ("No contrast allergy.", "造影剤アレルギーなし。"),
    ("Vital signs stable on arrival.", "来院時バイタルは安定。"),
    ("No bleeding history.", "出血の既往なし。"),
    ("Independent in daily life (ADL).", "ADL自立。"),
    ("Allergies: nil known.", "アレルギー：特記なし。"),
    ("Lives with family.", "家族と同居。"))
