# make demo: train and evaluate on the embedded drawings    make test: every check
# make twins: the demo's three controls                     make lab: read the notebooks
export OMP_WAIT_POLICY = PASSIVE
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN = .venv/bin
RUN = $(BIN)/papermill --no-progress-bar --stdout-file /dev/stdout --stderr-file /dev/stderr

.PHONY: demo twins test lab

demo: .venv/installed
	mkdir -p outputs/demo
	$(RUN) nbs/train.ipynb outputs/demo/train.ipynb
	$(RUN) nbs/evaluate.ipynb outputs/demo/evaluate.ipynb

twins: .venv/installed
	for t in clip euclid poincare; do mkdir -p outputs/demo_$$t && \
	$(RUN) nbs/train.ipynb outputs/demo_$$t/train.ipynb -p preset demo_$$t && \
	$(RUN) nbs/evaluate.ipynb outputs/demo_$$t/evaluate.ipynb -p run outputs/demo_$$t || exit 1; done

test: .venv/installed
	$(BIN)/nbdev_test --path nbs --file_re '^[0-9]' --do_print --timing
	$(BIN)/python -m pytest tests -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

lab: .venv/installed
	$(BIN)/jupyter lab nbs

.venv/installed: requirements.lock setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@
