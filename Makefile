# make demo    what lpips_fast does, in a minute; writes demo.png
# make test    the tests
# make lint    ruff, mypy, and import-linter, which holds the floors of docs/design.md
# make docs    the documentation as a site, in build/site
# make wheel   sdist and wheel, in dist
# make smoke   these, and their use in clean environments, with the newest torch and the oldest (5 GB to download for each);
#              ARGS="2.13.0 2.12.1" tries others
# make bench   the head's benchmarks, each after its correctness check
# make cost    what the compiled GPU kernels take, beside what is recorded; needs no GPU. ARGS=--record records anew,
#              ARGS="--table head" prints tables (python -m benchmarks.cost --help)
# make gpu     on a machine with an NVIDIA GPU: build, tests on the device, benchmarks, records; without network, with the
#              torch that is there. ARGS="--output FOLDER" puts the results elsewhere (python tools/gpu.py --help)
# make sanitize  the tests of the CPU library and of the CUDA kernels, in their emulator, under AddressSanitizer,
#              UndefinedBehaviorSanitizer and ThreadSanitizer; and the lines of the kernels that the tests execute.
#              ARGS="thread" does one of these (python tools/sanitize.py)
# make clean   removes what was built, but for the virtual environment
#
# Each but gpu first sets up what it needs (some 5 GB with torch's default CUDA build): in the active virtual environment, or
# else in .venv, which it makes with $(PYTHON).

PYTHON ?= python3
VENV := $(or $(VIRTUAL_ENV),$(CURDIR)/.venv)
BIN := $(VENV)/bin
TORCH := torch torchvision ninja $(if $(filter Linux,$(shell uname -s)),triton)
NATIVE := setup.py pyproject.toml $(shell find csrc -type f)
SETUP := $(VENV)/.lpips_fast-setup

.PHONY: demo test lint docs wheel smoke bench cost sanitize gpu setup clean

demo: setup
	$(BIN)/python -m lpips_fast.demo

test: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 8

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --show-timings

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

wheel: setup
	rm -rf dist
	$(BIN)/python -m build --no-isolation

smoke: wheel
	$(BIN)/python tools/smoke.py $(ARGS)

bench: setup
	$(BIN)/python -m pytest benchmarks --benchmark-only

cost: setup
	$(BIN)/python -m benchmarks.cost $(ARGS)

sanitize: setup
	$(BIN)/python tools/sanitize.py $(ARGS)

gpu:
	$(firstword $(wildcard $(BIN)/python) $(PYTHON)) tools/gpu.py $(ARGS)

setup: $(SETUP)

# torch first, for the C++ extension is compiled against it; without build isolation, which would download torch again.
$(SETUP): $(NATIVE) | $(BIN)/python
	$(BIN)/python -m pip install --upgrade pip setuptools wheel
	$(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install --no-build-isolation --editable ".[dev]"
	echo $(CURDIR) > $@

# An environment may be shared by several checkouts: set up again where the last one was another.
ifneq ($(shell cat $(SETUP) 2>/dev/null),$(CURDIR))
.PHONY: $(SETUP)
endif

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf build dist *.egg-info demo.png $(SETUP)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find lpips_fast -name '*.so' -delete
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
