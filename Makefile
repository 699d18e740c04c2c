# Two commands to know: `make demo` tells the story and exits, `make test` runs everything that must pass.
PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo up down test test-slow lint format

# torch comes first and by plain pip; what follows finds it installed. A CPU build is enough: point pip at one where the default is not.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/headrace demo $(ARGS)

up: $(INSTALLED)
	$(BIN)/headrace up

down: $(INSTALLED)
	$(BIN)/headrace down

# Files side by side, three on two cores since they wait for processes over a quarter of the time; but for those that tell a story: each of
# these has the machine to itself.
test: lint
	$(BIN)/pytest -m 'not slow' -n 3 --dist loadfile --ignore tests/e2e
	$(BIN)/pytest -m 'not slow' tests/e2e

test-slow: $(INSTALLED)
	$(BIN)/pytest -m slow
	$(BIN)/pytest -m 'hypothesis and not slow' --hypothesis-profile explore -n 2

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
