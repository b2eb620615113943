# The study as a workflow: what is up to date is not run again, and steps that do not depend on
# each other run in parallel within the cores given. `make study` calls it; so can you:
#   python -m cag_utils.workflow study --cores 2 --config profile=phantom
# which is snakemake, and goes on where a killed one stopped. Each step is one notebook. The executed
# notebook is the step's log, so a failed step names it, with the error in its last cell.
import os
import shlex
import sys

from cag_utils.backbones import get_backbone
from cag_utils.profiles import load_profile
from cag_utils.study import BY_WORKFLOW, root, under_root
from cag_utils.workflow import code_digest

PROFILE = load_profile(config.get("profile", "phantom"))
OUT_ROOT = under_root(str(config.get("out_root", "outputs")))
SHEETS = {name: str(config.get(f"scores_{name}", "")) for name in PROFILE.finetune.languages}
SEND_OWN_IMAGES = str(config.get("send_own_images", False)) == "True"
BACKBONES, LANGUAGES = PROFILE.finetune.backbones, PROFILE.finetune.languages
OUT = f"{OUT_ROOT}/{PROFILE.name}"
if set("{}") & set(OUT):  # papermill and snakemake read braces as parameters
    raise ValueError(f"no braces in the path of the outputs, please: {OUT}")

# Snakemake fills this in, each value quoted for the shell by `:q`.
RUN = (
    "{BY_WORKFLOW}=1 OMP_NUM_THREADS={threads} {sys.executable:q} -m cag_utils.workflow notebook "
    "--no-progress-bar --log-level ERROR {params.notebook:q} {log:q} "
    "-r profile {PROFILE.given:q} -r out_root {OUT_ROOT:q}"
)


wildcard_constraints:
    cohort="cnn|corpus",
    backbone="|".join(BACKBONES),
    language="|".join(LANGUAGES),


def code(stem):
    """The notebook, and what makes its results stale: its code's digest, the profile's values."""
    notebook = root() / "notebooks" / f"{stem}.ipynb"
    return {
        "notebook": str(notebook),
        "code": code_digest(notebook),
        "profile": PROFILE.model_dump_json(),
    }


def weights(*names):
    """The shipped twins that a step starts from."""
    folders = [root() / "cag_utils" / "weights" / name for name in names]
    return [str(path) for folder in folders for path in sorted(folder.rglob("*.safetensors"))]


rule all:
    input:
        f"{OUT}/08_paper_tables/all/report.html",


# For who has no reports: the CNN, its table and figures, and no more.
rule cnn:
    input:
        f"{OUT}/02_confusion_matrices/six_class/metrics.json",


rule sampling:
    output:
        f"{OUT}/00_frame_sampling/{{cohort}}/frames.csv",
        f"{OUT}/00_frame_sampling/{{cohort}}/metrics.json",
    log:
        f"{OUT}/00_frame_sampling/{{cohort}}/00_frame_sampling.ipynb",
    params:
        **code("00_frame_sampling"),
    shell:
        RUN + " -p cohort {wildcards.cohort} -p n_workers {threads}"


rule train_cnn:
    input:
        f"{OUT}/00_frame_sampling/cnn/frames.csv",
        weights=weights("convnext_twin", "keyframe_cnn"),
    output:
        f"{OUT}/01_train_cnn/six_class/best.safetensors",
        f"{OUT}/01_train_cnn/six_class/predictions_test.csv",
        f"{OUT}/01_train_cnn/six_class/predictions_val.csv",
        f"{OUT}/01_train_cnn/six_class/metrics.json",
    log:
        f"{OUT}/01_train_cnn/six_class/01_train_cnn.ipynb",
    threads: workflow.cores
    params:
        **code("01_train_cnn"),
    shell:
        RUN


rule confusion_matrices:
    input:
        f"{OUT}/00_frame_sampling/cnn/frames.csv",
        f"{OUT}/01_train_cnn/six_class/best.safetensors",
        f"{OUT}/01_train_cnn/six_class/predictions_test.csv",
        f"{OUT}/01_train_cnn/six_class/predictions_val.csv",
    output:
        f"{OUT}/02_confusion_matrices/six_class/metrics.json",
    log:
        f"{OUT}/02_confusion_matrices/six_class/02_confusion_matrices.ipynb",
    params:
        **code("02_confusion_matrices"),
    shell:
        RUN


rule build_corpus:
    input:
        f"{OUT}/00_frame_sampling/corpus/frames.csv",
        f"{OUT}/01_train_cnn/six_class/best.safetensors",
    output:
        f"{OUT}/03_build_corpus/all/pairs.csv",
        f"{OUT}/03_build_corpus/all/metrics.json",
    log:
        f"{OUT}/03_build_corpus/all/03_build_corpus.ipynb",
    params:
        **code("03_build_corpus"),
    shell:
        RUN


rule finetune:
    input:
        f"{OUT}/03_build_corpus/all/pairs.csv",
        weights=lambda wildcards: weights(*get_backbone(wildcards.backbone).twins),
    output:
        f"{OUT}/04_finetune/{{backbone}}_{{language}}/metrics.json",
    log:
        f"{OUT}/04_finetune/{{backbone}}_{{language}}/04_finetune.ipynb",
    params:
        **code("04_finetune"),
    shell:
        RUN + " -p backbone {wildcards.backbone} -p language {wildcards.language}"


rule generate:
    input:
        expand(f"{OUT}/04_finetune/{{backbone}}_{{{{language}}}}/metrics.json", backbone=BACKBONES),
    output:
        f"{OUT}/05_generate_reports/{{language}}/generations.csv",
        f"{OUT}/05_generate_reports/{{language}}/metrics.json",
    log:
        f"{OUT}/05_generate_reports/{{language}}/05_generate_reports.ipynb",
    params:
        **code("05_generate_reports"),
        send_own_images=SEND_OWN_IMAGES,
        endpoint=os.environ.get("OPENAI_BASE_URL", ""),
    shell:
        RUN + " -p language {wildcards.language} -p send_own_images {params.send_own_images}"


rule vlscore:
    input:
        f"{OUT}/05_generate_reports/{{language}}/generations.csv",
        weights=weights(*PROFILE.vlscore.embedders),
    output:
        f"{OUT}/06_vlscore/{{language}}/scores.csv",
        f"{OUT}/06_vlscore/{{language}}/metrics.json",
    log:
        f"{OUT}/06_vlscore/{{language}}/06_vlscore.ipynb",
    params:
        **code("06_vlscore"),
    shell:
        RUN + " -p language {wildcards.language}"


def of_readers(language):
    """What 07 reads where people filled a sheet: that, and VLScores to hold against it."""
    if not SHEETS[language]:
        return []
    legible = language == "en" or "siglip2" in PROFILE.vlscore.embedders  # others read no Japanese
    vlscores = [f"{OUT}/06_vlscore/{language}/scores.csv"] if legible else []
    return [under_root(SHEETS[language]), *vlscores]


rule physician_scores:
    input:
        f"{OUT}/05_generate_reports/{{language}}/generations.csv",
        lambda wildcards: of_readers(wildcards.language),
    output:
        f"{OUT}/07_physician_scores/{{language}}/scores.csv",
        f"{OUT}/07_physician_scores/{{language}}/metrics.json",
    log:
        f"{OUT}/07_physician_scores/{{language}}/07_physician_scores.ipynb",
    params:
        **code("07_physician_scores"),
        sheet=lambda wildcards: SHEETS[wildcards.language] and (
            "-r scores " + shlex.quote(SHEETS[wildcards.language])
        ),
    shell:
        RUN + " -p language {wildcards.language} {params.sheet}"


rule paper_tables:
    input:
        f"{OUT}/02_confusion_matrices/six_class/metrics.json",
        f"{OUT}/06_vlscore/en/metrics.json",
        expand(f"{OUT}/07_physician_scores/{{language}}/metrics.json", language=LANGUAGES),
    output:
        f"{OUT}/08_paper_tables/all/report.html",
        f"{OUT}/08_paper_tables/all/metrics.json",
    log:
        f"{OUT}/08_paper_tables/all/08_paper_tables.ipynb",
    params:
        **code("08_paper_tables"),
    shell:
        RUN


# Not part of the study: the twins' weights are shipped. `make twins` makes them again.
rule twins:
    input:
        f"{OUT}/A2_pretrain_cnn/all/metrics.json",
        f"{OUT}/A4_pretrain_twins/all/metrics.json",
        f"{OUT}/A5_pretrain_embedders/all/metrics.json",


rule pretrain_tower:
    output:
        f"{OUT}/A13_pretrain_tower/all/metrics.json",
    log:
        f"{OUT}/A13_pretrain_tower/all/A13_pretrain_tower.ipynb",
    threads: workflow.cores
    params:
        **code("A13_pretrain_tower"),
    shell:
        RUN + " -p ship True"


rule pretrain_twins:
    input:
        f"{OUT}/A13_pretrain_tower/all/metrics.json",
    output:
        f"{OUT}/A4_pretrain_twins/all/metrics.json",
    log:
        f"{OUT}/A4_pretrain_twins/all/A4_pretrain_twins.ipynb",
    threads: workflow.cores
    params:
        **code("A4_pretrain_twins"),
    shell:
        RUN + " -p ship True"


rule pretrain_embedders:
    input:
        f"{OUT}/A4_pretrain_twins/all/metrics.json",
    output:
        f"{OUT}/A5_pretrain_embedders/all/metrics.json",
    log:
        f"{OUT}/A5_pretrain_embedders/all/A5_pretrain_embedders.ipynb",
    threads: workflow.cores
    params:
        **code("A5_pretrain_embedders"),
    shell:
        RUN + " -p ship True"


rule pretrain_cnn:
    output:
        f"{OUT}/A2_pretrain_cnn/all/metrics.json",
    log:
        f"{OUT}/A2_pretrain_cnn/all/A2_pretrain_cnn.ipynb",
    threads: workflow.cores
    params:
        **code("A2_pretrain_cnn"),
    shell:
        RUN + " -p ship True"


# Not part of the study either: what a leaking split adds to notebook 01's F1.
rule leakage:
    input:
        f"{OUT}/00_frame_sampling/cnn/frames.csv",
        weights=weights("convnext_twin"),
    output:
        f"{OUT}/A3_leakage/all/metrics.json",
    log:
        f"{OUT}/A3_leakage/all/A3_leakage.ipynb",
    threads: workflow.cores
    params:
        **code("A3_leakage"),
    shell:
        RUN


# Nor is this: what a head start of the projector, and more epochs, are worth to a tuned twin.
rule ablations:
    input:
        f"{OUT}/03_build_corpus/all/pairs.csv",
        f"{OUT}/05_generate_reports/en/generations.csv",
        weights=weights(*get_backbone("conceptclip_gemma3").twins),
    output:
        f"{OUT}/A6_ablations/conceptclip_gemma3_en/metrics.json",
    log:
        f"{OUT}/A6_ablations/conceptclip_gemma3_en/A6_ablations.ipynb",
    threads: workflow.cores
    params:
        **code("A6_ablations"),
    shell:
        RUN


# Nor this: tuned models asked otherwise, and one that was trained on reports alone.
rule image_reliance:
    input:
        f"{OUT}/03_build_corpus/all/pairs.csv",
        expand(f"{OUT}/05_generate_reports/{{language}}/generations.csv", language=LANGUAGES),
        weights=weights(*get_backbone("gemma3").twins),
    output:
        f"{OUT}/A7_image_reliance/all/metrics.json",
    log:
        f"{OUT}/A7_image_reliance/all/A7_image_reliance.ipynb",
    threads: workflow.cores
    params:
        **code("A7_image_reliance"),
    shell:
        RUN
