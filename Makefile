# `make` lists the verbs. Each sets up what it needs: a .venv from requirements.txt, once.

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := 1

# The newest Python among the usual names; `make PYTHON=...` overrides.
PYTHON ?= $(firstword $(shell command -v python3 python3.13 python3.12 python3.11 2>/dev/null))
READY := .venv/.ready

.PHONY: help setup repro test lint ui dag clean
.DEFAULT_GOAL := help

help:  ## list the verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## make .venv from requirements.txt (every other verb does this by itself)

repro: $(READY)  ## run the pipeline: reports/report.md
	@git rev-parse --git-dir >/dev/null 2>&1 || dvc config --local core.no_scm true  # unpacked from a zip
	dvc repro

test: $(READY)  ## run the tests
	python -m pytest

lint: $(READY)  ## check style
	ruff check .
	ruff format --check .

ui: $(READY)  ## show the runs in MLflow on http://127.0.0.1:5000
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui --workers 1 --host 127.0.0.1 --port 5000 \
		--backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/mlflow.db}"

dag: $(READY)  ## draw the stages
	dvc dag

clean:  ## remove outputs and caches; .venv and the shipped checkpoints stay
	rm -rf .dvc/cache .dvc/tmp data/scenes data/manifest.parquet data/features data/models data/predictions \
		data/resume mlflow.db mlflow.db.lock mlartifacts dvc_plots .pytest_cache .ruff_cache

$(READY): requirements.txt constraints.txt
	@test -n "$(PYTHON)" || { echo "no python3 found; install Python 3.11 or newer"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is $$($(PYTHON) --version); Python 3.11 or newer is needed: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $(READY)
