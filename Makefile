# make demo   the four notebooks at the demo preset, then an HTML report     make lab   JupyterLab on notebooks/
# make test   ruff and pytest, the same that CI runs                         make help  all targets and options
# make table1 every compared method, trained and scored under one protocol      make gallery  a static site of the notebooks
# make outputs run notebook 05 again and keep its outputs, which nbval compares
#
# Options: CORES=4             cores that Snakemake and the tests may use (2)
#          PRESET=smoke        preset of `make report`, `make gallery` and `make table1` (demo)
#          ONLY=blur,rigid     some conditions of `make degradation`
#          PYTHON=python3.12   the interpreter that makes .venv
#          TORCH_INDEX=URL     where torch comes from: an index URL of PyTorch's installation page, e.g. its CPU builds

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo smoke table1 degradation gallery outputs test lint lab report clean distclean

CORES ?= 2
PRESET ?= demo
PYTHON ?=
TORCH_INDEX ?=
BIN := .venv/bin
READY := .venv/.installed

help:
	@printf '%s\n' \
	  'make demo       run the four notebooks at the demo preset and write an HTML report (CORES=2)' \
	  'make smoke      the same in little: minutes, for a look at whether all works' \
	  'make table1     train and score every row of Table 1, then the table and its figure (PRESET=demo, CORES=2)' \
	  'make degradation  which defects of synthetic images hurt segmentation: the study and its notebook (ONLY=blur,rigid)' \
  'make test       ruff and pytest' \
	  'make gallery    notebooks 00 to 03 and 05 to 07 as a static site that opens from the disk (PRESET=demo)' \
	  'make outputs    run notebook 05 again and keep its outputs, which the tests compare' \
	  'make lab        JupyterLab on notebooks/, on this machine only' \
	  'make report     the HTML report of the newest runs at PRESET=demo' \
	  'make clean      remove caches and reports; runs/ and .venv stay' \
	  'make distclean  remove .venv too' \
	  'Options: PYTHON=python3.12 for .venv, TORCH_INDEX=URL for another build of torch (see README)'

# Made again whenever pyproject.toml changes. The stamp comes last, so a broken installation is never taken for a whole one.
$(READY): pyproject.toml
	@python=''; \
	for name in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.10); do \
	  if "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then python="$$name"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "mhvae_kit needs Python 3.10 or newer; found $$($(or $(PYTHON),python3) --version 2>&1 || true). Install one, or name it: make PYTHON=/path/to/python3.12 ..." >&2; \
	  exit 2; \
	fi; \
	if ! [ -x $(BIN)/python ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  echo "making .venv with $$("$$python" --version)"; \
	  "$$python" -m venv --clear .venv || { \
	    echo "Python could not make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }; \
	fi
	@echo "installing mhvae_kit and what it needs into .venv (some minutes, once)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url '$(TORCH_INDEX)') --editable '.[test]'
	@touch $@

demo: $(READY)
smoke: $(READY)
demo smoke:
	@$(BIN)/snakemake --cores $(CORES) $@
	@echo
	@echo "report:            $(CURDIR)/runs/report-$@/index.html  (opens in any browser, needs no network)"
	@echo "runs and figures:  $(CURDIR)/runs/$@-*/"
	@echo "trained model:     $(CURDIR)/runs/$@-02_staged_training/"

table1: $(READY)
	@$(BIN)/snakemake --cores $(CORES) table1 --config preset=$(PRESET)
	@echo
	@echo "report:         $(CURDIR)/runs/table1-$(PRESET)/index.html  (opens in any browser, needs no network)"
	@echo "tables:         $(CURDIR)/runs/$(PRESET)-04_table1/table1_*.csv, .md, .tex"
	@echo "figure:         $(CURDIR)/runs/$(PRESET)-04_table1/figures/methods.png"
	@echo "scores by row:  $(CURDIR)/runs/$(PRESET)-table1-*/scores.csv"

degradation: $(READY)
	@$(BIN)/mhvae degradation-plan --preset $(PRESET) --cores $(CORES) $(if $(ONLY),--only '$(ONLY)')
	@$(BIN)/snakemake --cores $(CORES) degradation --config preset=$(PRESET) $(if $(ONLY),only='$(ONLY)')
	@echo
	@echo "report:  $(CURDIR)/runs/degradation-$(PRESET)/index.html  (opens in any browser, needs no network)"
	@echo "tables:  $(CURDIR)/runs/$(PRESET)-09_degradation_study/*.csv"
	@echo "cells:   $(CURDIR)/runs/$(PRESET)-degradation-*/"

gallery: $(READY)
	@$(BIN)/snakemake --cores $(CORES) gallery --config preset=$(PRESET)
	@echo
	@echo "gallery:  $(CURDIR)/runs/gallery-$(PRESET)/index.html  (opens in any browser, needs no network)"

outputs: $(READY)
	@$(BIN)/python tests/keep_outputs.py

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

# Files side by side, one thread each: more would wait for each other's cores. Tests of threads ask for their own.
test: lint
	@OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses=$(CORES) --dist=loadfile --no-loadscope-reorder

lab: $(READY)
	@$(BIN)/jupyter lab --ServerApp.ip=127.0.0.1 --ServerApp.root_dir='$(CURDIR)' --LabApp.default_url=/lab/tree/notebooks

report: $(READY)
	@$(BIN)/mhvae report --preset $(PRESET)

clean:
	@rm -rf .pytest_cache .ruff_cache .hypothesis .snakemake build dist *.egg-info runs/report-*
	@find . -path ./.venv -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
	@find notebooks -name .ipynb_checkpoints -type d -print0 | xargs -0 rm -rf

distclean: clean
	@rm -rf .venv
