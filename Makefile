# make study   what stale embeddings cost, on real data     make study ARGS=--smoke
# make test    everything that CI runs
# make report-check   all smoke tests of studies, their report, and that a real browser shows it (needs chromium)
# make oracles embsim beside TensorFlow, PyTorch, FBGEMM and optax
# make tpu-check   the kernels on a real TPU, compared and timed; a report to send back. make tpu-check ARGS=--quick
#
# PyTorch is large, so its tests are skipped unless it is there: make test TORCH=torch==2.13.0 installs it. So is
# libtpu, the compiler of the tests of programs for TPUs: TPU='jax[tpu]' installs the version that goes with JAX.
# All do their own set-up in $(VENV). All that must be there is Python 3.11 to 3.13 and make.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
ARGS ?=
TORCH ?=
TPU ?=
ORACLES := tests/oracles
REPORT := results/smoke

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet

.PHONY: study report-check test lint types pytest format nightly bundles oracles tpu-check clean
.DELETE_ON_ERROR:

study: $(VENV)/installed-experiments
	$(BIN)/python -m experiments run staleness_on_flights $(ARGS)

test: lint types pytest

lint: $(VENV)/installed-test
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/lint-imports --no-cache

types: $(VENV)/installed-test
	$(BIN)/pyright

pytest: $(VENV)/installed-test
	$(BIN)/pytest -n $(WORKERS) --dist worksteal $(ARGS)

format: $(VENV)/installed-test
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# Many random examples; the reference as plain Python, without Numba's compiler; the other Pythons that are here.
nightly: $(VENV)/installed-test
	HYPOTHESIS_PROFILE=nightly $(BIN)/pytest -n $(WORKERS)
	NUMBA_DISABLE_JIT=1 $(BIN)/pytest -n $(WORKERS) tests/embsim
	$(BIN)/embsim conformance reference --level nightly
	$(BIN)/embsim conformance example --level nightly
	$(BIN)/embsim conformance jax --level nightly
	XLA_FLAGS="--xla_cpu_max_isa=AVX --xla_disable_hlo_passes=algsimp" $(BIN)/embsim conformance jax --level nightly
	$(BIN)/embsim conformance embsim_tpu.conformance:PipelineEngine
	@for version in 3.12 3.13; do \
	  if python$$version -c '' 2>/dev/null; then \
	    $(MAKE) pytest PYTHON=python$$version VENV=.venv-$$version || exit 1; \
	  else \
	    echo "nightly: no python$$version here, not tested"; \
	  fi; \
	done

report-check: $(VENV)/installed-test
	for name in $$($(BIN)/python -c 'from experiments.__main__ import NAMES; print(*NAMES)'); do \
	  $(BIN)/python -m experiments run $$name --smoke --out $(REPORT) || exit 1; \
	done
	$(BIN)/python -m experiments report --out $(REPORT)
	$(BIN)/python -m tests.experiments.browser $(REPORT)/report.html

# What kernels cost a TPU, against budgets.json. Needs libtpu and one of the versions that stand there.
bundles: $(VENV)/installed-test
	$(BIN)/python -m embsim_tpu.aot report --check

# embsim beside TensorFlow, PyTorch, FBGEMM and optax, live, each in an environment of its own: docs/oracles.md.
oracles:
	@failed=0; for library in tensorflow torch fbgemm optax; do \
	  venv=.venv-oracles-$$library; pins=$(ORACLES)/requirements-$$library.txt; \
	  if [ ! $$venv/installed -nt $$pins ]; then \
	    echo "installing $$pins in $$venv"; \
	    { [ -x $$venv/bin/python ] || $(PYTHON) -m venv $$venv; } && \
	    $$venv/bin/python -m pip --disable-pip-version-check --quiet --quiet install \
	      --requirement $$pins --editable . && touch $$venv/installed || exit 1; \
	  fi; \
	  $$venv/bin/python -m tests.oracles.live $$library $(ARGS) || failed=1; \
	done; exit $$failed

tpu-check: $(VENV)/installed-tpu-check
	$(BIN)/python -m embsim_tpu.hardware $(ARGS)

clean:
	rm -rf .venv .venv-* .hypothesis .pytest_cache .ruff_cache build dist *.egg-info
	find embsim experiments tests -name __pycache__ -prune -exec rm -rf {} +

# installed-EXTRA: the packages of that extra and embsim itself, as this checkout has it; for the tests the example
# plugin too, as a user would install it.
$(VENV)/installed-test: tests/example_plugin/pyproject.toml
$(VENV)/installed-%: pyproject.toml | $(VENV)/created
	@echo "installing embsim[$*] in $(VENV)"
	@$(PIP) install --editable '.[$*]' $(if $(filter test,$*),--editable ./tests/example_plugin $(TORCH) $(if $(TPU),'$(TPU)'))
	@touch $@

# Its own, since .venv may be there without libtpu.
$(VENV)/installed-tpu-check: pyproject.toml | $(VENV)/created
	@echo "installing embsim[jax,conformance] and $(or $(TPU),jax[tpu]) in $(VENV)"
	@$(PIP) install --editable '.[jax,conformance]' '$(or $(TPU),jax[tpu])'
	@touch $@

$(VENV)/created:
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	  (3, 11) <= v < (3, 14) or sys.exit(f"embsim needs Python 3.11 to 3.13, $(PYTHON) is {v[0]}.{v[1]}; make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv $(VENV)
	@touch $@
