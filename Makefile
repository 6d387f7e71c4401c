# From a fresh clone: `make quickstart` shows the whole system, `make test` tests it. `make help` lists the rest.
#
# Variables, e.g. `make quickstart VENV=/tmp/venv`:
#   PYTHON  an interpreter from 3.11 to 3.13 that has venv; the first one found unless said
#   VENV    where everything is installed
#   TORCH   what pip is asked for to get PyTorch: a requirement, the path of a wheel, or pip's options and a requirement.
#           The plain default is, on Linux, the build for NVIDIA GPUs: several gigabytes. A CPU needs a twentieth of that
#           and is enough for everything here, so without a GPU name a CPU build, in one of these ways:
#             make quickstart TORCH='--index-url URL torch==2.13.0'    with PyTorch's own index of CPU builds, whose URL
#                                                                      its "Get started" page gives (Linux, pip, CPU)
#             make quickstart TORCH=/downloads/torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl
#           pip settings of yours (PIP_FIND_LINKS, PIP_INDEX_URL, ...) count too. Whatever is installed stays: the other
#           packages are chosen to fit that very torch.

VENV ?= .venv
TORCH ?= torch==2.13.0
AUDIOCRAFT := audiocraft==1.3.0
PYTEST_ARGS ?=
OUT ?= outputs

PYTHONS := python3.13 python3.12 python3.11 python3
FITS := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in $(PYTHONS); do \
	if $$python -c '$(FITS)' >/dev/null 2>&1; then echo $$python; break; fi; done)

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_TEST := $(VENV)/.installed-test
INSTALLED_PEERS := $(VENV)/.installed-peers
export TORCH

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install quickstart test lint validate validate-peers bench wheel clean force

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

install: $(INSTALLED)  ## make .venv and install everything into it

quickstart: $(INSTALLED)  ## the whole system once: catalogue, training, fingerprints, generations, reports
	$(BIN)/lumina quickstart --out $(OUT)

test: $(INSTALLED_TEST)  ## all tests; the last lines say what was left out
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(INSTALLED_TEST)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

validate: $(INSTALLED)  ## measure attributions against the truth; writes docs/validation.md (about two hours the first time)
	$(BIN)/python benchmarks/validation.py

bench: $(INSTALLED)  ## measure speed, scale and safety; writes docs/benchmarks.md (long: full-size models)
	$(BIN)/python benchmarks/all.py

validate-peers: $(INSTALLED_PEERS)  ## other libraries' methods beside ours, against a ground truth that was made before
	$(BIN)/lumina validate lds --peers --out $(OUT)/validation

wheel: $(INSTALLED)  ## build dist/lumina_plugin-*.whl
	rm -rf build
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .
	rm -rf build

clean:  ## remove builds and caches; the environment and outputs/ stay
	rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find lumina_plugin config grids tests demo -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are written last: an install that was interrupted is done again, a finished one is not. They are as old as
# setup.py, this file and the choice of TORCH.
$(VENV)/pyvenv.cfg:
	@test -n '$(PYTHON)' || { echo "No Python from 3.11 to 3.13 with venv was found among: $(PYTHONS)."; \
	  echo "Install one (Debian, Ubuntu: apt-get install python3 python3-venv) or name one: make ... PYTHON=/path/to/python3"; \
	  exit 1; } >&2
	@$(PYTHON) -c '$(FITS)' || { echo "$(PYTHON) will not do: a Python from 3.11 to 3.13 with venv and ensurepip is" \
	  "needed (Debian, Ubuntu: apt-get install python3-venv)."; exit 1; } >&2
	$(PYTHON) -m venv $(VENV)

# An environment that was half made, or whose Python is gone, has no working pip: it is made anew.
$(VENV)/.torch: $(VENV)/pyvenv.cfg force
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@test "$$(cat $@ 2>/dev/null)" = "$$TORCH" || printf '%s\n' "$$TORCH" > $@

$(INSTALLED): $(VENV)/.torch setup.py Makefile
	@rm -f $@
	@set -f; echo "Installing $$TORCH and what goes with it into $(VENV); this takes some minutes the first time."
	@command -v nvidia-smi >/dev/null 2>&1 || echo "(No NVIDIA GPU here: if pip now fetches gigabytes, stop it and choose" \
	  "a CPU build by TORCH=..., see the top of the Makefile.)"
	set -f; $(BIN)/python -m pip install -q $$TORCH
	$(BIN)/python -c "from importlib.metadata import version; print('torch==' + version('torch'))" > $(VENV)/constraints.txt
	$(BIN)/python -m pip install -q -c $(VENV)/constraints.txt -e .
	$(BIN)/python -m pip install -q --no-deps $(AUDIOCRAFT)
	@touch $@

$(INSTALLED_TEST): $(INSTALLED)
	@rm -f $@
	$(BIN)/python -m pip install -q -c $(VENV)/constraints.txt -e '.[test]'
	@touch $@

# Alone, without what they ask for: setup.py says why.
$(INSTALLED_PEERS): $(INSTALLED)
	@rm -f $@
	$(BIN)/python -c "import importlib.metadata as m; \
	  print(*(r.split(';')[0] for r in m.requires('lumina_plugin') if 'peers' in r), sep='\n')" > $(VENV)/peers.txt
	$(BIN)/python -m pip install -q --no-deps -c $(VENV)/constraints.txt -r $(VENV)/peers.txt
	@touch $@
