# The two commands of the README are `make demo` and `make test`; everything else is for development.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1
# processes that share the tests; each runs on one thread and takes up to 2 GB
WORKERS ?= 2
# what some tests skip without: 'make test EXTRAS=,browser,dask,slurm,tensorboard,mlflow,wandb' (and Chromium)
EXTRAS ?=

.PHONY: demo test sanitize check lint types imports clean

demo: .venv/tasks          ## install, then train, prune and rewind on real digits, three techniques side by side
	$(BIN)/rewound run

test: .venv/dev            ## install, then run all tests (examples and the README's code among them)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

SANITIZED := build/sanitized
sanitize: .venv/dev        ## the native code under address and undefined-behaviour sanitizers (GCC on Linux)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(SANITIZED) \
		--config-settings=cmake.define.REWOUND_SANITIZE=ON --config-settings=cmake.build-type=None \
		--config-settings=build-dir=build/sanitize .
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
		REWOUND_SANITIZED=$(SANITIZED) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -p tests.runtime.sanitized \
		tests/runtime/test_kernels.py tests/runtime/test_program_*.py

check: lint types imports test sanitize   ## everything that CI runs

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev
	$(BIN)/mypy

imports: .venv/dev         ## imports go strictly down
	$(BIN)/lint-imports

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/tasks .venv/dev: pyproject.toml constraints.txt CMakeLists.txt $(wildcard src/rewound/runtime/csrc/*) | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(@F)$(EXTRAS)]"
	touch $@

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
