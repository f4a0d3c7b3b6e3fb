# Every target makes .venv by itself, with what it needs, when it is not there, or when pyproject.toml or constraints.txt
# have changed: $(READY) is what an edit needs, $(TESTING) what the tests, lint and the longer benchmarks need besides.

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
BIN := .venv/bin
READY := .venv/ready
TESTING := .venv/testing
# Most of what is installed is never imported, and compiling it takes a third of the time.
INSTALL := $(BIN)/pip install --no-compile

# Where no GPU is seen, torch is taken without CUDA, 5 GB less; `TORCH_INDEX=` takes what pip finds by itself.
HAS_GPU := $(wildcard /dev/nvidia0 /dev/nvhost-gpu /dev/dxg)$(shell command -v nvidia-smi)
ON_LINUX := $(filter Linux,$(shell uname -s))
TORCH_INDEX ?= $(if $(ON_LINUX),$(if $(HAS_GPU),,https://download.pytorch.org/whl/cpu))
DISK := $(if $(TORCH_INDEX),1.2 GB of disk: no GPU is seen and torch comes without CUDA,$(if $(ON_LINUX),6 GB of disk for torch with CUDA,1.2 GB of disk))

# What `make edit` edits when no IMG is given.
EXAMPLE := examples/mug.png
EXAMPLE_SOURCE := a photograph of a big shiny blue mug in the centre, with a tiny green cone next to it, on stone tiles, a brick wall in the background
EXAMPLE_TARGET := a photograph of a big shiny purple mug in the centre, with a tiny green cone next to it, on stone tiles, a brick wall in the background

# As text, never expanded again: a prompt may hold quotes and dollars.
export SAGE_IMG := $(value IMG)
export SAGE_SRC := $(value SRC)
export SAGE_TGT := $(value TGT)
export SAGE_MODEL := $(value MODEL)
export SAGE_OUT := $(value OUT)
export SAGE_PROMPT := $(value PROMPT)
export SAGE_METHOD := $(value METHOD)
unexport IMG SRC TGT MODEL OUT PROMPT METHOD

.DEFAULT_GOAL := help
.PHONY: help setup edit generate demo tour ui weights train train-encoder train-report train-turbo turbo-report test test-slow test-fuzz fuzz-guided test-cluster test-ui lint docs docs-site audit bench bench-speed load experiments
.PHONY: .picture-named

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(TESTING)  ## make .venv with everything in it [TORCH_INDEX= for torch with CUDA where no GPU is seen]

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or later is needed: make setup PYTHON=/path/to/python3" >&2; exit 2; }
	@echo "making .venv, once, some minutes: $(DISK)"
	$(PYTHON) -m venv .venv
	$(INSTALL) --retries 1 --constraint constraints.txt $(addprefix --extra-index-url=,$(TORCH_INDEX)) torch
	$(INSTALL) --constraint constraints.txt --editable .
	@touch $@

$(TESTING): $(READY)
	@echo "adding what tests and lint need to .venv: 0.4 GB of disk"
	$(INSTALL) --constraint constraints.txt --editable '.[test,lint,ui,docs]'
	@touch $@

.picture-named:  # before anything is installed
	@[ -n "$$SAGE_IMG" ] || [ -z "$$SAGE_SRC" ] || \
	    { echo "make edit: SRC describes a picture, and none is named: give IMG=picture.jpg too" >&2; exit 2; }

edit: .picture-named $(READY)  ## edit a picture: IMG=cat.jpg SRC="a cat" TGT="a dog" [MODEL=sd-1.4] [OUT=] [ARGS=--yes]; alone: the example
	@if [ -z "$$SAGE_IMG" ]; then \
	    SAGE_IMG='$(EXAMPLE)'; \
	    SAGE_SRC="$${SAGE_SRC:-$(EXAMPLE_SOURCE)}"; \
	    SAGE_TGT="$${SAGE_TGT:-$(EXAMPLE_TARGET)}"; \
	    SAGE_MODEL="$${SAGE_MODEL:-stilllife}"; \
	fi; \
	set -- "$$SAGE_IMG"; \
	[ -z "$$SAGE_SRC" ] || set -- "$$@" --source="$$SAGE_SRC"; \
	[ -z "$$SAGE_TGT" ] || set -- "$$@" --target="$$SAGE_TGT"; \
	[ -z "$$SAGE_MODEL" ] || set -- "$$@" --model="$$SAGE_MODEL"; \
	[ -z "$$SAGE_OUT" ] || set -- "$$@" --out="$$SAGE_OUT"; \
	[ "$$SAGE_IMG" != '$(EXAMPLE)' ] || set -- "$$@" --sheet; \
	$(BIN)/sage edit "$$@" $(ARGS)

generate: $(READY)  ## make a picture from nothing: PROMPT="a cat" [METHOD=sag] [MODEL=sd-1.4] [OUT=] [ARGS=]; alone: the example
	@set --; \
	if [ -z "$$SAGE_PROMPT" ]; then \
	    SAGE_PROMPT='$(EXAMPLE_TARGET)'; \
	    SAGE_MODEL="$${SAGE_MODEL:-stilllife}"; \
	    set -- --count=5 --sheet; \
	fi; \
	[ -z "$$SAGE_METHOD" ] || set -- "$$@" --method="$$SAGE_METHOD"; \
	[ -z "$$SAGE_MODEL" ] || set -- "$$@" --model="$$SAGE_MODEL"; \
	[ -z "$$SAGE_OUT" ] || set -- "$$@" --out="$$SAGE_OUT"; \
	$(BIN)/sage generate "$$@" $(ARGS) -- "$$SAGE_PROMPT"

demo: $(READY)  ## several edits by the bundled model, on one sheet
	$(BIN)/python examples/demo.py $(ARGS)

tour: $(READY)  ## install JupyterLab, and open the notebook examples/tour.ipynb in a browser
	@echo "adding JupyterLab to .venv, which takes a while the first time"
	$(INSTALL) --quiet jupyterlab ipywidgets
	$(BIN)/jupyter lab examples/tour.ipynb $(ARGS)

ui: $(READY)  ## edit in a browser: [MODEL=] [ARGS="--host 0.0.0.0 --port 8000"]
	@echo "adding what the studio needs to .venv, which takes a while the first time"
	$(INSTALL) --quiet --constraint constraints.txt --editable '.[ui]'
	@$(INSTALL) --quiet --constraint constraints.txt --editable '.[fast]' || echo "without OpenVINO, which is not to be had here: edits take twice as long"
	@set -- ; [ -z "$$SAGE_MODEL" ] || set -- --model="$$SAGE_MODEL"; \
	$(BIN)/sage ui "$$@" $(ARGS)

weights: $(READY)  ## download a known model: MODEL=sd-1.4 (sage models lists them)
	$(BIN)/sage fetch "$${SAGE_MODEL:-sd-1.4}"

# glibc's allocator costs training on a CPU more than half of its speed.
TCMALLOC := $(firstword $(wildcard /usr/lib/*/libtcmalloc_minimal.so.4 /usr/lib*/libtcmalloc_minimal.so.4))

train: $(READY)  ## train the bundled model from nothing; goes on where it stopped
	LD_PRELOAD='$(TCMALLOC)' $(BIN)/python -m training $(ARGS)

train-encoder: $(READY)  ## train the encoder that judges still lifes; goes on where it stopped
	LD_PRELOAD='$(TCMALLOC)' $(BIN)/python -m training.encoder $(ARGS)

train-report: $(READY)  ## measure the bundled model on held-out scenes
	$(BIN)/python -m training.report $(ARGS)

train-turbo: $(READY)  ## train a student of four calls, and what inverts it, from a trained model; goes on where it stopped
	LD_PRELOAD='$(TCMALLOC)' $(BIN)/python -m training.turbo $(ARGS)

turbo-report: $(READY)  ## measure them on held-out scenes
	$(BIN)/python -m training.turbo.report $(ARGS)

test: $(TESTING)  ## the tests, on up to four cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile $(ARGS)

test-slow: $(TESTING)  ## the tests that take minutes or gigabytes
	$(BIN)/python -m pytest -q -m slow $(ARGS)

FUZZED := tests/hardening tests/trajectory/test_hostile.py tests/models/test_tokenizer.py --ignore tests/hardening/faults
GUIDED := settings tables labels mapping indexes masks

test-fuzz: $(TESTING)  ## thousands of hostile inputs, others each time, and how they ended
	SAGE_FUZZ=1 $(BIN)/python -m pytest -q $(FUZZED) $(ARGS)

fuzz-guided: $(TESTING)  ## install atheris, and fuzz six parsers guided by coverage: [SECONDS=150] each
	@echo "adding atheris to .venv, which takes a while the first time"
	$(INSTALL) --quiet 'atheris>=3'
	for entry in $(GUIDED); do $(BIN)/python -m tests.hardening.guided $$entry $(or $(SECONDS),150) || exit 1; done

test-cluster: $(TESTING)  ## install Ray, and test the benchmark on a cluster of this machine
	@echo "adding Ray to .venv, which takes a while the first time"
	$(INSTALL) --quiet --constraint constraints.txt --editable '.[cluster]'
	$(BIN)/python -m pytest -q -m "slow or not slow" tests/bench/test_cluster.py $(ARGS)

AXE := .venv/axe/node_modules/axe-core/axe.min.js

test-ui: $(TESTING)  ## install Playwright, and test the studio in a real browser (needs Chromium)
	@echo "adding Playwright and axe-core to .venv, which takes a while the first time"
	$(INSTALL) --quiet --constraint constraints.txt --editable '.[browser]'
	@[ -e '$(AXE)' ] || npm install --silent --no-save --no-audit --no-fund --prefix .venv/axe axe-core@4 || \
	    { echo "without axe-core, which npm gets, its tests fail" >&2; }
	SAGE_AXE='$(abspath $(AXE))' $(BIN)/python -m pytest -q -m "slow or not slow" tests/studio $(ARGS)

lint: $(TESTING)  ## style, docstrings and types
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(READY)  ## docs/api.md, from the docstrings
	$(BIN)/python docs/make_api.py

docs-site: $(READY)  ## the pages of docs/ with search, in build/site
	@echo "adding what makes the site to .venv, which takes a while the first time"
	$(INSTALL) --quiet --constraint constraints.txt --editable '.[docs]'
	@echo "making the site, which takes a while"
	$(BIN)/mkdocs build --strict --quiet

audit: $(READY)  ## look up what is pinned in the advisory databases; fails too where they cannot be reached
	@echo "adding pip-audit to .venv/audit, which takes a while"
	$(BIN)/python -m venv .venv/audit
	.venv/audit/bin/pip install --quiet pip-audit
	.venv/audit/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt $(ARGS)

experiments: $(TESTING)  ## every experiment of docs/experiments.md; hours on two cores, goes on where it stopped
	$(BIN)/python -m benchmarks.experiments $(ARGS)

bench: $(READY)  ## measure the bundled model on 40 still lifes, and write a report: [OUT=runs/bench/quick] [ARGS=]
	@$(BIN)/sage bench stilllife --quick --out="$${SAGE_OUT:-runs/bench/quick}" $(ARGS)

load: $(TESTING)  ## 50 clients for a minute against the studio and its API, each checking its own results
	$(BIN)/python -m benchmarks.studio_load $(ARGS)

bench-speed: $(TESTING)  ## seconds and memory of an edit beside the released way, some 25 minutes: [ARGS="--only ..."]
	$(BIN)/python -m benchmarks.speed $(ARGS)
