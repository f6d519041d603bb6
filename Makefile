# `make run` grows the quickstart's model, `make test` runs everything that is checked.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
LOAM   := $(BIN)/loam

.PHONY: run test lint fmt bench bench-deps up down clean

run: $(VENV)/.runtime
	$(LOAM) run flows/configs/quickstart.toml

# The servers, workers and trainings of tests/deploy want the cores for themselves.
test: $(VENV)/.test lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/deploy
	$(BIN)/python -m pytest tests/deploy

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Every benchmark of tests/bench; `python -m tests.bench NAME --quick` runs one.
bench: $(VENV)/.test bench-deps
	$(BIN)/python -m tests.bench all

bench-deps: .venv-peers/.done

# litgpt asks for an older huggingface_hub than transformers does, and works with the newer.
.venv-peers/.done: tests/bench/constraints-peers.txt tests/bench/constraints-litgpt.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --requirement tests/bench/constraints-peers.txt
	.venv-peers/bin/python -m pip install --quiet --no-deps --requirement tests/bench/constraints-litgpt.txt
	@touch $@

up: $(VENV)/.runtime
	$(BIN)/python -m deploy.up

down: $(VENV)/.runtime
	$(BIN)/python -m deploy.down

clean:
	rm -rf $(VENV) .venv-peers .loam

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@ $(VENV)/.runtime
