# make demo: train and evaluate on the embedded drawings    make check: style, types, links, the quick tests
# make controls: the demo's three controls                  make test: every page and every test
# make lab: read and write the notebooks                    make export: meru/ from the notebooks
export OMP_WAIT_POLICY = PASSIVE
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN = .venv/bin
RUN = $(BIN)/papermill --no-progress-bar --stdout-file /dev/stdout --stderr-file /dev/stderr

.PHONY: demo controls twins check test lab export

demo: .venv/installed
	mkdir -p outputs/demo
	$(RUN) nbs/train.ipynb outputs/demo/train.ipynb
	$(RUN) nbs/evaluate.ipynb outputs/demo/evaluate.ipynb

twins: controls

controls: .venv/installed
	for t in clip euclid poincare; do mkdir -p outputs/demo_$$t && \
	$(RUN) nbs/train.ipynb outputs/demo_$$t/train.ipynb -p preset demo_$$t && \
	$(RUN) nbs/evaluate.ipynb outputs/demo_$$t/evaluate.ipynb -p run outputs/demo_$$t || exit 1; done

check: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" .ci/check

test: .venv/installed
	$(BIN)/python -m pytest tests -n logical --maxprocesses 8 --dist loadgroup --no-loadscope-reorder

lab: .venv/installed
	JUPYTER_CONFIG_PATH="$(CURDIR)/.jupyter" $(BIN)/jupyter lab nbs

export: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" .ci/export

.venv/installed: requirements.lock setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@
