# `make` lists the verbs. Each sets up what it needs: a .venv from requirements.txt, once.

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := 1

# The first of these that is Python 3.11 or newer; `make PYTHON=...` overrides.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)
READY := .venv/.ready
# As many cached views as the reports' protocol has
PROTOCOL := segmentation.views=15 retrieval.views=8

.PHONY: help setup repro paper plan test lint ui search dag clean
.DEFAULT_GOAL := help

help:  ## list the verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## make .venv from requirements.txt (every other verb does this by itself)

repro: $(READY)  ## run the pipeline: reports/report.md
	@if git rev-parse --git-dir >/dev/null 2>&1; \
	then dvc config --local --unset core.no_scm >/dev/null 2>&1 || true; \
	else dvc config --local core.no_scm true; fi  # unpacked from a zip: DVC works without git
	dvc repro

paper: $(READY)  ## run the pipeline with VOC, pets, DINO, BLIP and ViT-B/16, downloaded: make paper SET="paper.captions=FILE"
	dvc exp run -S profile=paper $(addprefix -S ,$(PROTOCOL) $(SET))

plan: $(READY)  ## say what a run would download, compute and store: make plan PROFILE=paper
	python -m stages.plan $(PROFILE) $(if $(filter paper,$(PROFILE)),$(PROTOCOL)) $(SET)

test: $(READY)  ## run the tests
	python -m pytest

lint: $(READY)  ## check style
	ruff check .
	ruff format --check .

ui: $(READY)  ## show the runs in MLflow on http://127.0.0.1:5000
	python -m stages.core.tracking
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui --workers 1 --host 127.0.0.1 --port 5000 \
		--backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/mlflow.db}"

search: $(READY)  ## find images by a sentence, captions by an image: make search QUERY="a red circle"
	python -m stages.retrieval.search "$(QUERY)"

dag: $(READY)  ## draw the stages
	dvc dag

clean:  ## remove outputs and caches; .venv and the shipped checkpoints stay
	rm -rf .dvc/cache .dvc/tmp data/scenes data/objects data/manifest.parquet data/labeled.parquet data/features data/models \
		data/predictions data/fetched data/attention data/report_runs.json data/resume reports/look predictions.csv mlflow.db mlflow.db.lock mlartifacts dvc_plots .pytest_cache .ruff_cache

$(READY): requirements.txt constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; install one, or: make PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $(READY)
