# The study as a workflow: what is up to date is not run again, and steps that do not depend on
# each other run in parallel within the cores given. `make study` calls it; so can you:
#   snakemake --cores 2 --config profile=phantom
# Each step is one notebook run by papermill. The executed notebook is the step's log, so a failed
# step names it, with the error in its last cell.
import sys

from cag_utils.profiles import FOLDER, load_profile
from cag_utils.study import root, under_root
from cag_utils.workflow import notebook_sources

PROFILE = load_profile(config.get("profile", "phantom"))
OUT_ROOT = under_root(config.get("out_root", "outputs"))
OUT = f"{OUT_ROOT}/{PROFILE.name}"
BACKBONES, LANGUAGES = PROFILE.finetune.backbones, PROFILE.finetune.languages

RUN = (
    f"OMP_NUM_THREADS={{threads}} {sys.executable} -m papermill "
    "--no-progress-bar --log-level ERROR {input.sources[0]} {log} "
    f"-p profile {PROFILE.name} -p out_root {OUT_ROOT}"
)


wildcard_constraints:
    cohort="cnn|corpus",
    backbone="|".join(BACKBONES),
    language="|".join(LANGUAGES),


def sources(stem):
    """The notebook, the modules behind it, and the profile."""
    notebook = root() / "notebooks" / f"{stem}.ipynb"
    return [*map(str, notebook_sources(notebook)), str(FOLDER / f"{PROFILE.name}.yaml")]


def weights(*names):
    """The shipped twins that a step starts from."""
    folders = [root() / "cag_utils" / "weights" / name for name in names]
    return [str(path) for folder in folders for path in sorted(folder.rglob("*.safetensors"))]


rule all:
    input:
        f"{OUT}/08_paper_tables/all/report.html",


rule sampling:
    input:
        sources=sources("00_frame_sampling"),
    output:
        f"{OUT}/00_frame_sampling/{{cohort}}/frames.csv",
        f"{OUT}/00_frame_sampling/{{cohort}}/metrics.json",
    log:
        f"{OUT}/00_frame_sampling/{{cohort}}/00_frame_sampling.ipynb",
    shell:
        RUN + " -p cohort {wildcards.cohort} -p n_workers {threads}"


rule train_cnn:
    input:
        f"{OUT}/00_frame_sampling/cnn/frames.csv",
        sources=sources("01_train_cnn"),
        weights=weights("convnext_twin", "keyframe_cnn"),
    output:
        f"{OUT}/01_train_cnn/six_class/best.safetensors",
        f"{OUT}/01_train_cnn/six_class/predictions_test.csv",
        f"{OUT}/01_train_cnn/six_class/predictions_val.csv",
        f"{OUT}/01_train_cnn/six_class/metrics.json",
    log:
        f"{OUT}/01_train_cnn/six_class/01_train_cnn.ipynb",
    threads: workflow.cores
    shell:
        RUN


rule confusion_matrices:
    input:
        f"{OUT}/00_frame_sampling/cnn/frames.csv",
        f"{OUT}/01_train_cnn/six_class/best.safetensors",
        f"{OUT}/01_train_cnn/six_class/predictions_test.csv",
        f"{OUT}/01_train_cnn/six_class/predictions_val.csv",
        sources=sources("02_confusion_matrices"),
    output:
        f"{OUT}/02_confusion_matrices/six_class/metrics.json",
    log:
        f"{OUT}/02_confusion_matrices/six_class/02_confusion_matrices.ipynb",
    shell:
        RUN


rule build_corpus:
    input:
        f"{OUT}/00_frame_sampling/corpus/frames.csv",
        f"{OUT}/01_train_cnn/six_class/best.safetensors",
        sources=sources("03_build_corpus"),
    output:
        f"{OUT}/03_build_corpus/all/pairs.csv",
        f"{OUT}/03_build_corpus/all/metrics.json",
    log:
        f"{OUT}/03_build_corpus/all/03_build_corpus.ipynb",
    shell:
        RUN


rule finetune:
    input:
        f"{OUT}/03_build_corpus/all/pairs.csv",
        sources=sources("04_finetune"),
        weights=weights("gemma3", "paligemma2", "conceptclip"),
    output:
        f"{OUT}/04_finetune/{{backbone}}_{{language}}/metrics.json",
    log:
        f"{OUT}/04_finetune/{{backbone}}_{{language}}/04_finetune.ipynb",
    shell:
        RUN + " -p backbone {wildcards.backbone} -p language {wildcards.language}"


rule generate:
    input:
        expand(f"{OUT}/04_finetune/{{backbone}}_{{{{language}}}}/metrics.json", backbone=BACKBONES),
        sources=sources("05_generate_reports"),
    output:
        f"{OUT}/05_generate_reports/{{language}}/generations.csv",
        f"{OUT}/05_generate_reports/{{language}}/metrics.json",
    log:
        f"{OUT}/05_generate_reports/{{language}}/05_generate_reports.ipynb",
    shell:
        RUN + " -p language {wildcards.language}"


rule vlscore:
    input:
        f"{OUT}/05_generate_reports/{{language}}/generations.csv",
        sources=sources("06_vlscore"),
        weights=weights("siglip2", "medclip", "conceptclip"),
    output:
        f"{OUT}/06_vlscore/{{language}}/scores.csv",
        f"{OUT}/06_vlscore/{{language}}/metrics.json",
    log:
        f"{OUT}/06_vlscore/{{language}}/06_vlscore.ipynb",
    shell:
        RUN + " -p language {wildcards.language}"


rule physician_scores:
    input:
        f"{OUT}/05_generate_reports/{{language}}/generations.csv",
        sources=sources("07_physician_scores"),
    output:
        f"{OUT}/07_physician_scores/{{language}}/scores.csv",
        f"{OUT}/07_physician_scores/{{language}}/metrics.json",
    log:
        f"{OUT}/07_physician_scores/{{language}}/07_physician_scores.ipynb",
    shell:
        RUN + " -p language {wildcards.language}"


rule paper_tables:
    input:
        f"{OUT}/02_confusion_matrices/six_class/metrics.json",
        f"{OUT}/06_vlscore/en/metrics.json",
        expand(f"{OUT}/07_physician_scores/{{language}}/metrics.json", language=LANGUAGES),
        sources=sources("08_paper_tables"),
    output:
        f"{OUT}/08_paper_tables/all/report.html",
        f"{OUT}/08_paper_tables/all/metrics.json",
    log:
        f"{OUT}/08_paper_tables/all/08_paper_tables.ipynb",
    shell:
        RUN


# Not part of the study: the twins' weights are shipped. `make twins` makes them again.
rule twins:
    input:
        f"{OUT}/A2_pretrain_cnn/all/metrics.json",
        f"{OUT}/A4_pretrain_twins/all/metrics.json",
        f"{OUT}/A5_pretrain_embedders/all/metrics.json",


rule pretrain_twins:
    input:
        sources=sources("A4_pretrain_twins"),
    output:
        f"{OUT}/A4_pretrain_twins/all/metrics.json",
    log:
        f"{OUT}/A4_pretrain_twins/all/A4_pretrain_twins.ipynb",
    threads: workflow.cores
    shell:
        RUN + " -p ship True"


rule pretrain_embedders:
    input:
        f"{OUT}/A4_pretrain_twins/all/metrics.json",
        sources=sources("A5_pretrain_embedders"),
    output:
        f"{OUT}/A5_pretrain_embedders/all/metrics.json",
    log:
        f"{OUT}/A5_pretrain_embedders/all/A5_pretrain_embedders.ipynb",
    threads: workflow.cores
    shell:
        RUN + " -p ship True"


rule pretrain_cnn:
    input:
        sources=sources("A2_pretrain_cnn"),
    output:
        f"{OUT}/A2_pretrain_cnn/all/metrics.json",
    log:
        f"{OUT}/A2_pretrain_cnn/all/A2_pretrain_cnn.ipynb",
    threads: workflow.cores
    shell:
        RUN + " -p ship True"


# Not part of the study either: what a leaking split adds to notebook 01's F1.
rule leakage:
    input:
        f"{OUT}/00_frame_sampling/cnn/frames.csv",
        sources=sources("A3_leakage"),
        weights=weights("convnext_twin"),
    output:
        f"{OUT}/A3_leakage/all/metrics.json",
    log:
        f"{OUT}/A3_leakage/all/A3_leakage.ipynb",
    threads: workflow.cores
    shell:
        RUN


# Nor is this: what a head start of the projector, and more epochs, are worth to a tuned twin.
rule ablations:
    input:
        f"{OUT}/03_build_corpus/all/pairs.csv",
        f"{OUT}/05_generate_reports/en/generations.csv",
        sources=sources("A6_ablations"),
        weights=weights("gemma3", "conceptclip"),
    output:
        f"{OUT}/A6_ablations/conceptclip_gemma3_en/metrics.json",
    log:
        f"{OUT}/A6_ablations/conceptclip_gemma3_en/A6_ablations.ipynb",
    threads: workflow.cores
    shell:
        RUN
