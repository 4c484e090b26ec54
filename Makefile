# Each target works alone in a fresh clone.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
EXTRA  := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
STAMP  := $(VENV)/.installed-$(EXTRA)

.PHONY: setup kernels models demo test test-all lint bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard kernels/cpu/*.cpp kernels/cpu/*.h)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing preread[$(EXTRA),test] into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRA),test]"
	@rm -f $(VENV)/.installed-* && touch $@

# compile the C++ kernels again, in place
kernels: setup
	@$(BIN)/python setup.py --quiet build_ext --inplace

models: setup
	@$(BIN)/rag model pull smollm2-135m
	@$(BIN)/rag model pull minilm

demo: models
	@$(BIN)/rag demo

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

test: lint models
	@$(BIN)/python -m pytest

test-all: lint models
	@$(BIN)/python -m pytest -m ""

bench: models
	@$(BIN)/rag bench run quick

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
