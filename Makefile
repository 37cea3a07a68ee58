# Two commands on a fresh machine: `make demo` and `make test`. Everything else is listed by `make help`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed-$(shell cat requirements.lock pyproject.toml index/torchvision_ops.py 2>/dev/null | cksum | cut -d' ' -f1)
OUT    ?= clearance-demo
export TOKENIZERS_PARALLELISM = false
# A worker that dies, or hangs where no signal reaches it, ends the suite and names its test: xdist 3.8 may wait for ever for another.
ENDS = --max-worker-restart 0 -o faulthandler_timeout=900 -o faulthandler_exit_on_timeout=true

.PHONY: help install demo test nightly card check bench lock clean
.DEFAULT_GOAL = help

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(STAMP) ## a virtual environment in .venv with the locked packages

$(STAMP):
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "Python 3.11 is needed: apt install python3.11 python3.11-venv, or make PYTHON=/path/to/python"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "python cannot make a virtual environment: apt install python3.11-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.installed-*; touch $@

demo: install ## the main job on the embedded world; prints where the report is
	$(BIN)/clearance demo --out $(OUT)

test: install ## the whole test suite, in as many processes as there are processors (at most 4)
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ENDS) $(ARGS)

nightly: install ## checks too heavy for every change: 40 kills, 200 tamperings, 200 damaged inputs, the fused kernel (Triton, 1 GB), SDXL's size (6 GB of memory)
	@test -d .triton/triton || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .triton triton==3.9.0
	PYTHONPATH=.triton $(BIN)/python -m pytest -q tests/pipeline/test_fused.py
	CLEARANCE_KILLS=20 $(BIN)/python -m pytest -q tests/kills tests/jobs/test_signals.py
	CLEARANCE_TAMPER=200 CLEARANCE_FUZZ=20 $(BIN)/python -m pytest -q tests/tampering tests/fuzz
	CLEARANCE_TRUE_SIZES=1 $(BIN)/python -m pytest -q tests/pipeline/test_waits.py tests/pipeline/test_feature_memory.py tests/pipeline/test_lora_formats.py
	CLEARANCE_COMPILED=1 $(BIN)/python -m pytest -q tests/pipeline/test_compiled.py
	CLEARANCE_REAL_SIZE=1 $(BIN)/python -m pytest -q -s tests/pipeline/test_real_size.py

card: install ## what only a CUDA device can show: bytes in company, recorded calls, calls that nothing waits for, the fused kernel
	$(BIN)/python -m pytest -q -m gpu

check: install ## format, lint, types
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

bench: install ## the benchmarks behind the numbers in the documents
	$(BIN)/clearance lab bench world

lock: ## write requirements.lock from the environment (no index addresses)
	@{ echo "# Made by 'make lock': every package the project is tested with. torch brings its own CUDA packages, if it has any."; \
	  $(BIN)/python -m pip freeze --disable-pip-version-check --exclude-editable --exclude clearance | grep -vE '^(#|nvidia-|cuda-|triton|uv=|pip=|py-spy=|ultralytics)' | sed -E 's/\+cpu$$//'; } > requirements.tmp
	@mv requirements.tmp requirements.lock

clean: ## remove the environment and caches
	rm -rf $(VENV) .triton .pytest_cache .mypy_cache .ruff_cache
