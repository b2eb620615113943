"""What was done and measured before the phantom's angiogram: sentence patterns. Data only.

The rules of `phrases` hold here too. A percent sign stands only behind an ejection fraction, so
that no reader takes another number for a stenosis.
"""

from cag_utils.phantom.phrases import Pair

HISTORIES: dict[str, tuple[Pair, ...]] = {
    "cabg": (
        ("CABG {cabg_ago} ago.", "{cabg_ago}前にCABG。"),
        ("s/p CABG.", "CABG術後。"),
        ("Underwent CABG at another hospital {cabg_ago} ago.", "{cabg_ago}前に他院にてCABG施行。"),
    ),
    "pci": (
        ("PCI {pci_ago} ago.", "{pci_ago}前にPCI。"),
        ("s/p PCI.", "PCI術後。"),
        ("History: PCI (+), last one {pci_ago} ago.", "PCI歴(+)、直近は{pci_ago}前。"),
    ),
    "mi": (
        ("Old MI.", "陳旧性心筋梗塞。"),
        ("MI {mi_ago} ago.", "{mi_ago}前に心筋梗塞。"),
        ("Hospitalized for MI {mi_ago} ago.", "{mi_ago}前に心筋梗塞で入院歴あり。"),
    ),
}
NO_HISTORY: tuple[Pair, ...] = (
    ("No prior MI, PCI or CABG.", "心筋梗塞、PCI、CABGの既往なし。"),
    ("First angiography.", "冠動脈造影は初回。"),
    ("No history of revascularization.", "血行再建の既往なし。"),
    ("MI (-), PCI (-), CABG (-).", "MI(-)、PCI(-)、CABG(-)。"),
)

STRESS_TESTS: dict[str, Pair] = {
    "treadmill": ("exercise ECG", "運動負荷心電図"),
    "spect": ("stress SPECT", "負荷心筋シンチ"),
    "echo": ("stress echo", "負荷心エコー"),
}
TESTS: dict[str, tuple[Pair, ...]] = {
    "troponin_raised": (
        ("Troponin raised, CK {ck} U/L.", "トロポニン上昇、CK {ck} U/L。"),
        ("hs-TnT positive; CK {ck} U/L.", "hs-TnT陽性、CK {ck} U/L。"),
        ("Cardiac enzymes up (CK {ck} U/L, TnI +).", "心筋逸脱酵素上昇（CK {ck} U/L、TnI+）。"),
    ),
    "stress_positive": (
        ("{Stress} positive.", "{stress}陽性。"),
        ("{Stress} suggested ischemia.", "{stress}で虚血が示唆された。"),
        ("Ischemia on {stress}.", "{stress}にて虚血あり。"),
    ),
    "stress_negative": (
        ("{Stress} negative.", "{stress}陰性。"),
        ("{Stress} without ischemia.", "{stress}で虚血なし。"),
        ("No ischemia was provoked by {stress}.", "{stress}で虚血は誘発されず。"),
    ),
    "stress_equivocal": (
        ("{Stress} inconclusive.", "{stress}は判定困難。"),
        ("{Stress} stopped early because of leg fatigue.", "{stress}は下肢疲労のため途中で終了。"),
    ),
    "echo": (
        ("Echo: LVEF {ef}%.", "心エコー：LVEF {ef}%。"),
        ("EF {ef}% on echocardiography.", "心エコーでEF {ef}%。"),
        ("TTE performed, EF {ef}%.", "経胸壁エコー施行、EF {ef}%。"),
        ("UCG) EF {ef}%.", "UCG）EF {ef}%。"),
    ),
    "renal": (
        ("Creatinine {creatinine} mg/dL.", "Cr {creatinine} mg/dL。"),
        ("eGFR {egfr} mL/min.", "eGFR {egfr} mL/min。"),
        (
            "Renal function: Cr {creatinine}, eGFR {egfr}.",
            "腎機能：Cr {creatinine}、eGFR {egfr}。",
        ),
    ),
    "lipids": (
        ("LDL-C {ldl} mg/dL.", "LDL-C {ldl} mg/dL。"),
        ("LDL at last visit was {ldl}.", "前回受診時のLDLは{ldl}。"),
    ),
    "hba1c": (
        ("HbA1c {hba1c}.", "HbA1c {hba1c}。"),
        ("Last HbA1c measured {hba1c} (NGSP).", "直近のHbA1cは{hba1c}（NGSP）。"),
    ),
    "bnp": (
        ("BNP {bnp} pg/mL.", "BNP {bnp} pg/mL。"),
        ("Labs: BNP {bnp}.", "採血：BNP {bnp}。"),
    ),
    "blood_pressure": (
        ("BP {systolic}/{diastolic} mmHg.", "BP {systolic}/{diastolic} mmHg。"),
        (
            "On admission BP was {systolic}/{diastolic}.",
            "入院時血圧は{systolic}/{diastolic}。",
        ),
    ),
    "ecg_sinus": (
        ("ECG: sinus rhythm.", "心電図：洞調律。"),
        ("In sinus rhythm.", "リズムは洞調律。"),
    ),
    "ecg_af": (
        ("ECG: AF rhythm.", "心電図：AF調律。"),
        ("Rate-controlled AF on the monitor.", "モニター上AF、心拍数コントロール良好。"),
    ),
    "ct_calcium": (
        ("Calcium score {calcium} on CT.", "CTでカルシウムスコア {calcium}。"),
        ("CT: Agatston score {calcium}.", "CT：Agatstonスコア {calcium}。"),
        (
            "Plain CT was done (Agatston {calcium}).",
            "単純CT施行済み（Agatston {calcium}）。",
        ),
    ),
}

DRUGS: dict[str, Pair] = {
    "aspirin": ("aspirin", "アスピリン"),
    "clopidogrel": ("clopidogrel", "クロピドグレル"),
    "statin": ("a statin", "スタチン"),
    "amlodipine": ("amlodipine", "アムロジピン"),
    "bisoprolol": ("bisoprolol", "ビソプロロール"),
    "dpp4": ("a DPP-4 inhibitor", "DPP-4阻害薬"),
    "warfarin": ("warfarin", "ワルファリン"),
    "apixaban": ("apixaban", "アピキサバン"),
}
MEDICATIONS: tuple[Pair, ...] = (
    ("On {drugs}.", "{drugs}内服中。"),
    ("Meds: {drugs}.", "内服薬：{drugs}。"),
    ("Takes {drugs} regularly.", "定期内服は{drugs}。"),
)
NO_MEDICATIONS: tuple[Pair, ...] = (
    ("No regular medication.", "常用薬なし。"),
    ("Meds (-).", "内服(-)。"),
)

REQUESTS: tuple[Pair, ...] = (
    ("Please assess the coronary arteries.", "冠動脈の評価をお願いします。"),
    ("CAG performed for evaluation of coronary artery disease.", "冠動脈疾患の評価のためCAG施行。"),
    ("Coronary angiography was performed.", "冠動脈造影を施行。"),
    ("CAG under local anesthesia, no complications.", "局所麻酔下にCAG施行、合併症なし。"),
    ("Consent obtained, for diagnostic CAG.", "同意取得済み、診断目的のCAG。"),
    ("Thank you for seeing this patient.", "ご高診のほどよろしくお願いします。"),
)
# Used only to bring a terse report to a useful length.
FILLERS: tuple[Pair, ...] = (
    ("No contrast allergy.", "造影剤アレルギーなし。"),
    ("Vital signs stable on arrival.", "来院時バイタルは安定。"),
    ("No bleeding history.", "出血の既往なし。"),
    ("Independent in daily life (ADL).", "ADL自立。"),
    ("Allergies: nil known.", "アレルギー：特記なし。"),
    ("Lives with family.", "家族と同居。"),
)
