# make demo: train and evaluate on the embedded drawings    make check: style, types, links, the quick tests
# make controls: the demo's three controls                  make test: every page and every test
# make lab: read and write the notebooks                    make export: meru/ from the notebooks
# make docs: the site, in _docs, without network
# without make: python -m meru demo, controls, test, lab (INSTALL.md)
# idle threads wait microseconds for more work, then sleep
export GOMP_SPINCOUNT = 1000
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN = .venv/bin
MERU = $(BIN)/python -m meru

.PHONY: demo controls twins check test lab export docs

demo: .venv/installed
	$(MERU) demo

twins: controls

controls: .venv/installed
	$(MERU) controls

check: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" .ci/check

test: .venv/installed
	$(MERU) test

lab: .venv/installed
	$(MERU) lab

docs: .venv/installed
	$(MERU) docs

export: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" .ci/export

.venv/installed: requirements.lock setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@
