# One environment for everything; it is made once, and again only when pyproject.toml or requirements.lock change.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name) 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCHES := $(filter-out __init__ report features_pandas,$(basename $(notdir $(wildcard bench/*.py))))

.PHONY: run test check bench clean
.DELETE_ON_ERROR:

run: $(READY)
	$(BIN)/perennial run

test: $(READY)
	$(BIN)/pytest -n 2

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	@missed=; for name in $(BENCHES); do \
		echo "== $$name"; $(BIN)/python -m bench.$$name --quick || missed="$$missed $$name"; \
	done; test -z "$$missed" || { echo "missed:$$missed"; exit 1; }

# Leaves .perennial, which holds your data.
clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# Written last, so that an interrupted installation is done again.
$(READY): pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "Perennial needs Python 3.11, 3.12 or 3.13 and found none: sudo apt-get install python3.11 python3.11-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "Perennial needs Python 3.11, 3.12 or 3.13; $(PYTHON) is $$($(PYTHON) --version). Name another: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
		echo "$(PYTHON) can't make environments: sudo apt-get install $$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"; exit 1; }
	@test "$$(uname)" != Linux || $(PYTHON) -c 'import ctypes; ctypes.CDLL("libgomp.so.1")' 2>/dev/null || { \
		echo "LightGBM needs libgomp.so.1: sudo apt-get install libgomp1"; exit 1; }
	@echo 'Making the environment in $(VENV); the first time takes some minutes ...'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[dev]'
	@touch $@
