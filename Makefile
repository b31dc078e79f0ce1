PYTHON ?= python3
# Given to pytest: make test ARGS="tests/policy -k budget"
ARGS ?=
# A run folder: make peers RUN=runs/stickers
RUN ?= runs/stickers
VENV := .venv
OLD := .venv-oldest
KVPRESS := .venv-kvpress

# The oldest of every dependency that pyproject.toml admits, but for torch, and what these need in place of the lock's.
OLDEST := huggingface_hub==1.5.0 Jinja2==3.1.2 matplotlib==3.10.0 numpy==2.0.0 optuna==5.0.0 pandas==2.2.2 pillow==10.3.0 \
	pydantic==2.8.0 pyarrow==17.0.0 rich==13.8.0 safetensors==0.5.0 scikit-learn==1.5.0 scipy==1.15.0 seaborn==0.13.2 \
	tokenizers==0.22.2 transformers==5.5.0 typer==0.26.0
LOCKED := torch|torchmetrics|triton|hypothesis|pytest|pytest-xdist|packaging|hatchling|editables|efficientnet[a-z0-9-]*|resvg_py

# Two OpenMP threads in one process collapse as soon as anything else runs: two processes of one thread each.
# In the order of tests/conftest.py, which begins with the files that take longest.
PYTEST := -m pytest -n 2 --dist loadfile --no-loadscope-reorder

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test fuzz test-oldest test-postgres test-ray test-triton test-janus test-kvpress peers lint clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.ready ## Tune the bundled model's cache from nothing, into runs/demo/
	$(VENV)/bin/headscope demo --out runs/demo --overwrite
	@echo "Open $(CURDIR)/runs/demo/report.html in a browser."

test: $(VENV)/.ready ## Run the tests
	OMP_NUM_THREADS=1 $(VENV)/bin/python $(PYTEST) $(ARGS)

fuzz: $(VENV)/.ready ## Read 2,000 mutants of each kind of file that a stranger may hand over
	OMP_NUM_THREADS=1 HEADSCOPE_FUZZ=2000 $(VENV)/bin/python $(PYTEST) tests/fuzz $(ARGS)

test-oldest: $(OLD)/.ready ## Run the tests on the oldest of every dependency but torch
	OMP_NUM_THREADS=1 $(OLD)/bin/python $(PYTEST) $(ARGS)

test-postgres: $(VENV)/.ready ## Share a study through a PostgreSQL server that the test starts
	$(VENV)/bin/python -m pip install --quiet "psycopg[binary]>=3.2"
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m postgres tests/servers

test-ray: $(VENV)/.ready ## Search and trace on a local Ray cluster, with a worker killed
	$(VENV)/bin/python -m pip install --quiet "ray>=2.50"
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m ray tests/servers

test-triton: $(VENV)/.ready ## Run all tests of the GPU's kernels in Triton's interpreter, against the CPU's cache
	OMP_NUM_THREADS=1 $(VENV)/bin/python $(PYTEST) -m "" tests/runtime/test_flat*.py tests/runtime/test_graph.py $(ARGS)

test-janus: $(VENV)/.ready ## Take Janus-Pro's true width and image through every step
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m janus tests/pipeline/test_janus_pro.py $(ARGS)

test-kvpress: $(VENV)/.ready $(KVPRESS)/.ready ## Compare an exported policy with what kvpress makes of it
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m kvpress tests/servers $(ARGS)

peers: $(VENV)/.ready $(KVPRESS)/.ready ## Measure kvpress' presses beside headscope's policies: make peers RUN=runs/stickers
	OMP_NUM_THREADS=1 $(VENV)/bin/python reports/peers/peers.py $(RUN) -o reports/peers/peers.csv $(ARGS)

lint: $(VENV)/.ready ## Check style, format and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean: ## Remove the environments and what tools left behind; runs/ stays
	rm -rf $(VENV) $(OLD) $(KVPRESS) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find headscope tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: made last, so that an install that stopped half-way is begun again, and a finished one is not repeated.
$(VENV)/.ready: requirements.lock pyproject.toml
	$(call environment,$(VENV))
	@echo "Installing into $(VENV); the first time takes some minutes."
	$(VENV)/bin/python -m pip install --quiet -r requirements.lock
	$(VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(OLD)/.ready: requirements.lock pyproject.toml Makefile
	$(call environment,$(OLD))
	@echo "Installing into $(OLD); the first time takes some minutes."
	grep -E '^($(LOCKED))==' requirements.lock > $(OLD)/others.txt
	$(OLD)/bin/python -m pip install --quiet -r $(OLD)/others.txt $(OLDEST)
	$(OLD)/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

# Apart, because kvpress asks for transformers before 5.3, and headscope for 5.5 or newer.
$(KVPRESS)/.ready: requirements.lock Makefile
	$(call environment,$(KVPRESS))
	@echo "Installing into $(KVPRESS); the first time takes some minutes."
	$(KVPRESS)/bin/python -m pip install --quiet kvpress==0.5.5 transformers==5.2.0 $$(grep -E '^torch==' requirements.lock)
	@touch $@

define environment
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "headscope needs Python 3.11 or newer; name one: make PYTHON=python3.11")'
$(PYTHON) -m venv $(1) || $(PYTHON) -m virtualenv $(1)
endef
