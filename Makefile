# Everything a person types. Each target sets itself up first; nothing is installed twice.
PYTHON ?= python3
CORES ?= $(shell "$(PYTHON)" -c "import os; print(os.cpu_count())")
# Tools are called as modules: a script's first line breaks where the repository's path has blanks.
PY := .venv/bin/python
STUDY = $(PY) -m cag_utils.workflow study --cores "$(CORES)"
# Read by the shell, not by make: what a path holds is never run.
WITH = --config profile="$${PROFILE:-phantom}" out_root="$${OUT_ROOT:-outputs}" $${CONFIG:+"$$CONFIG"}

# The hub is never asked for anything by the default profile.
export HF_HUB_DISABLE_TELEMETRY := 1
# Compiled modules halve the start of each notebook; some shells switch them off.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup study cnn test test-fuzz test-unit test-notebooks test-appendices test-slurm gpu test-desks label validate review label-studio lab lint format reference twins lock clean

help:  ## list the targets
	@echo "make <target> [PROFILE=smoke|phantom|paper] [OUT_ROOT=folder] [CORES=n] [PYTHON=python3.12] [CONFIG=key=value]"
	@grep -hE '^[a-z -]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z -]+):.*## (.*)/  \1|\2/' | column -t -s '|'

setup: .venv/installed  ## make .venv and install the locked packages

.venv/installed: requirements.lock pyproject.toml
	@"$(PYTHON)" -c "import sys; v = sys.version_info[:2]; ok = (3, 11) <= v <= (3, 13); \
	    sys.exit(None if ok else 'Python 3.11 to 3.13 is needed, found %d.%d: make PYTHON=python3.12 ...' % v)"
	"$(PYTHON)" -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

study: .venv/installed  ## run every notebook that is not up to date, or go on after a kill; tables and figures land in outputs/
	$(STUDY) $(WITH)

cnn: .venv/installed  ## notebooks 00 to 02 alone: for who has labels and no reports
	$(STUDY) cnn $(WITH)

test: .venv/installed  ## run the tests, notebooks included; all lanes, also when one has failed
	$(MAKE) --keep-going --jobs=1 lint test-unit test-notebooks

test-unit: .venv/installed  ## run the tests that execute no notebook
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadscope -m "not notebook and not appendix and not slurm and not browser and not fuzz"

test-notebooks: .venv/installed  ## run the study's notebooks under the smoke profile, and the readers' desks in Chromium
	OMP_NUM_THREADS=1 $(PY) -m pytest -rs -n 2 --dist loadscope -m "notebook and not appendix or browser"

test-appendices: .venv/installed  ## run the appendices under the smoke profile
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -m appendix

test-fuzz: .venv/installed  ## a minute of mutated files, fixed seed
	OMP_NUM_THREADS=1 $(PY) -m pytest -m fuzz

test-slurm: .venv/installed  ## run the smoke study on a Slurm of one node (apt install munge slurmctld slurmd slurm-client; as root)
	OMP_NUM_THREADS=1 $(PY) -m pytest -rs -m slurm

gpu: .venv/installed  ## every check that needs a GPU, in under 25 minutes on one card, into outputs/reference/gpu.md
	$(PY) tests/benchmarks/gpu.py

test-desks: .venv/installed  ## drive the readers' desks in Chromium (apt-get install chromium)
	OMP_NUM_THREADS=1 $(PY) -m pytest -m browser

label-studio: .label_studio/installed  ## Label Studio's own validator, beside: one test asks it

.label_studio/installed:
	"$(PYTHON)" -m venv .label_studio
	.label_studio/bin/python -m pip install --quiet --disable-pip-version-check label-studio-sdk==2.1.2
	@touch $@

label validate review: .venv/installed  ## a reader's desk in the browser: label frames, validate findings, review reports
	$(PY) -m cag_utils.desk $@ -p profile "$${PROFILE:-phantom}" -p out_root "$${OUT_ROOT:-outputs}" $(DESK)  # DESK="-p language en --port 8900"

lab: .venv/installed  ## open JupyterLab on the notebooks
	$(PY) -m jupyterlab --ContentsManager.pre_save_hook=cag_utils.workflow.forget_kernel \
	    --LabApp.default_url=/lab/tree/notebooks

lint: .venv/installed  ## check style
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: .venv/installed  ## mend style, and draw the README's picture of the rooms anew
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(PY) -m cag_utils.reference --picture

reference: .venv/installed  ## run the phantom study from nothing on two cores; refresh outputs/reference/ and the README
	$(PY) -m cag_utils.reference $(if $(STUDY_ONLY),--study-only) $(if $(ONLY),--only $(ONLY))  # STUDY_ONLY=1, or ONLY="A6_ablations bench_predict"

twins: .venv/installed  ## pretrain the tiny twins again (hours on a CPU) and ship their weights
	$(STUDY) twins $(WITH)

lock: .venv/installed  ## resolve requirements.lock anew from pyproject.toml
	$(PY) -m pip install --quiet uv
	$(PY) -m uv pip compile --universal --python-version 3.11 --extra dev --no-header --no-annotate \
	    --no-emit-index-url --no-emit-find-links pyproject.toml -o requirements.lock

clean:  ## remove runs and caches; keeps .venv, data/ and outputs/reference/
	rm -rf .snakemake .pytest_cache .hypothesis .ruff_cache
	find outputs -mindepth 1 -maxdepth 1 ! -name reference -exec rm -rf {} +
