# `make` lists the targets. Each one first sets up .venv if it is missing or out of date.

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := 1

# The first of these that is Python 3.11 or newer; `make PYTHON=...` overrides it.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)
READY := .venv/.ready
RAY_READY := .venv/.ray-ready
# The installer; it is not among the packages in constraints.txt
UV := uv==0.13.9
# The original's number of cached views: a new one per epoch
VIEWS := segmentation.views=15 retrieval.views=8
# Each of the two sets what the other one changes, as `dvc exp run` leaves its values in params.yaml
PAPER := $(VIEWS) captioning.stop=end_token
ORIGINAL := $(VIEWS) captioning.stop=batch

.PHONY: help setup setup-ray params scm quick repro status verify paper original plan compare pretrain check lint types test ui search dag clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## create .venv with requirements.txt and the command vitlab (the other targets do this themselves)

setup-ray: $(RAY_READY)  ## add what a Ray cluster needs (requirements-ray.txt); its tests run only with it

# DVC reads params.yaml before any stage can check it.
params: $(READY)  ## check params.yaml
	python -m stages.params

# An unpacked zip has no git repository: DVC then works without one.
scm: $(READY)
	@if git rev-parse --git-dir >/dev/null 2>&1; \
	then dvc config --local --unset core.no_scm >/dev/null 2>&1 || true; \
	else dvc config --local core.no_scm true; fi

quick: $(READY)  ## run the whole pipeline on a few images, in a copy: a smoke run; writes reports/quick/report.html
	@python -m stages.pipeline.quick $(SET)

repro: params scm  ## run the pipeline; writes reports/report.md
	@start=$$(date +%s); echo "dvc repro"; dvc repro && python -m stages.pipeline.summary --since $$start

status: scm  ## show what `make repro` would run, and why
	@python -m stages.pipeline.status

verify: $(READY)  ## after `make repro`: compare the numbers with the committed ones
	@dvc status --quiet || echo "verify: not all stages are up to date (dvc status); run \`make repro\` first" >&2
	python -m stages.report.verify

paper: params  ## run the pipeline on VOC, Oxford-IIIT Pet, DINO, BLIP and ViT-B/16: make paper SET="paper.captions=FILE"
	dvc exp run -S profile=paper $(addprefix -S ,$(PAPER) $(SET))

original: params  ## as `make paper`, with the original's mistakes, for its printed numbers: make original SET=...
	dvc exp run -S profile=paper $(addprefix -S ,$(ORIGINAL) $(SET))

plan: $(READY)  ## show what a run would download, compute and store: make plan PROFILE=paper
	python -m stages.plan $(PROFILE) $(if $(filter paper,$(PROFILE)),$(VIEWS)) $(SET)

compare: $(READY)  ## compare the experiments of the last commit: changed params, headline metrics, difference
	@python -m stages.compare

# The stages are run by hand: `dvc unfreeze` and `dvc freeze` would rewrite all of dvc.yaml.
pretrain: $(READY)  ## train the three shipped checkpoints again (about 2 hours on 2 cores)
	python -m stages.pretraining.pretrain
	python -m stages.pretraining.pretrain_blip
	python -m stages.pretraining.pretrain_catr
	dvc commit --force pretrain pretrain_blip pretrain_catr

check: lint types test  ## what the gate runs: lint, types and tests

lint: $(READY)  ## check style and formatting
	ruff check .
	ruff format --check .

types: $(READY)  ## check types
	mypy

test: $(READY)  ## run the tests
	python -m pytest

ui: $(READY)  ## show the runs in MLflow on http://127.0.0.1:5000
	python -m stages.tracking
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui --workers 1 --host 127.0.0.1 --port 5000 \
		--backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/mlflow.db}"

search: $(READY)  ## find images by a sentence, or captions by an image: make search QUERY="a red circle"
	python -m stages.retrieval.search "$(QUERY)"

dag: $(READY)  ## draw the stages
	dvc dag

clean:  ## remove outputs and caches; keeps .venv, downloads and the shipped checkpoints
	rm -rf .dvc/cache .dvc/tmp data/scenes data/objects data/manifest.parquet data/labeled.parquet data/features data/models \
		data/predictions data/fetched data/attention data/valid_params.txt data/report_runs.json data/resume reports/report.html reports/verify.md reports/look reports/quick reports/search.png reports/timings.json \
		predictions.csv masks mlflow.db mlflow.db.lock mlartifacts mlruns dvc_plots .pytest_cache .ruff_cache .mypy_cache

# uv installs the same pinned packages about three times as fast as pip. Without bytecode, the first import of each package
# compiles it, and so does every import of a process that may not write bytecode, as in the tests' clones.
$(READY): requirements.txt constraints.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; install one, or: make PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check "$(UV)"
	.venv/bin/uv pip install --quiet --compile-bytecode --python .venv/bin/python -r requirements.txt
	.venv/bin/uv pip install --quiet --no-deps --python .venv/bin/python --editable .
	@touch $(READY)

$(RAY_READY): $(READY) requirements-ray.txt
	.venv/bin/uv pip install --quiet --compile-bytecode --python .venv/bin/python -r requirements-ray.txt
	@touch $(RAY_READY)
