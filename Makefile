# make demo      set up, then train three runs on real text and draw the report (under 5 minutes on 2 cores)
# make demo-high the same at five times the learning rate, where replacing helps
# make test      set up, then all unit and contract tests
# make check     set up, then lint, types and import rules
# make test-all  set up, then what is slow: several processes, kills, a browser
# make test-exhaustive  set up, then the same on more numbers of ranks and layouts
# make bench     set up, then every benchmark that runs without a GPU
#
#   PYTHON=python3.12        which Python (3.11 or later)
#   TORCH_INDEX=URL          where torch comes from; for the CPU build on Linux: https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt

.PHONY: demo demo-high test check test-all test-exhaustive bench clean

demo: RUNS = runs/demo
demo: ARMS = slide clear
demo-high: RUNS = runs/demo-high
demo-high: ARMS = slide-3 slide clear
demo-high: FLAGS = --training.lr 2e-2 --training.min_lr 2e-3
demo demo-high: $(VENV)/demo.done
	$(BIN)/python examples/demo_corpus.py .demo/corpus
	@rm -rf $(RUNS)
	$(BIN)/lawa train configs/demo.yaml --output $(RUNS)/plain $(FLAGS)
	set -e; for arm in $(ARMS); do \
	    $(BIN)/lawa train configs/demo.yaml --output $(RUNS)/$$arm --arm $$arm $(FLAGS); done
	@echo
	@$(BIN)/lawa report $(RUNS)/plain $(ARMS:%=$(RUNS)/%) --output $(RUNS)/report

test: $(VENV)/dev.done
	$(BIN)/python -m pytest -m "not slow"

test-all: $(VENV)/dev.done
	$(BIN)/python -m pytest -m "slow and not exhaustive"

test-exhaustive: $(VENV)/dev.done
	$(BIN)/python -m pytest -m exhaustive

check: $(VENV)/dev.done
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache

bench: $(VENV)/dev.done
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(VENV) .demo runs/demo runs/demo-high build src/*.egg-info

$(VENV)/torch.done: constraints.txt
	@PYTHON="$(PYTHON)" VENV="$(VENV)" TORCH_INDEX="$(TORCH_INDEX)" sh tools/environment.sh
	@touch $@

$(VENV)/demo.done: $(VENV)/torch.done pyproject.toml $(wildcard src/lawa/*/_*.c) examples/demo-requirements.txt
	$(PIP) -e '.[train,report]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r examples/demo-requirements.txt
	@touch $@

$(VENV)/dev.done: $(VENV)/demo.done
	$(PIP) -e '.[train,report,lightning,trl,deepspeed,eval,bench,dev]'
	@touch $@
