# `make run` and `make test` do everything on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
BENCH_STAMP := $(VENV)/.set-up-bench
RIVALS := $(VENV)/rivals

.PHONY: help setup run test test-faults test-defects lint docs bench-gpu bench-train bench-optimizer bench-decode bench-stream bench-service bench-experiments bench-tasks bench-specialists bench-levers clean

help: ## show this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## create the virtual environment and install what the project needs

$(STAMP): pyproject.toml constraints.txt static/package.json static/package-lock.json
	@echo "setting up in $(VENV) (a minute or more the first time)"
	@$(PYTHON) -c 'import sys; sys.exit("Cognate needs Python 3.11 or newer: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@PATH="$(CURDIR)/$(BIN):$$PATH" tools/vendor.sh
	@touch $(STAMP)

run: setup ## set up, migrate, serve on 127.0.0.1:8000, start a quickstart run if there is none
	@exec $(BIN)/python -m app

test: setup ## everything that must hold: linters, types, boundaries, tests
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile

test-faults: setup ## every row of docs/reliability.md at its full count (about half an hour)
	COGNATE_FAULTS_SCALE=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile tests/faults tests/services/test_machine.py tests/api/test_openapi.py tests/test_mirror.py -m "faults or not faults"

test-defects: setup ## whether the tests of model and optimizer find a hundred planted defects (five minutes)
	$(BIN)/python -m pytest --numprocesses 2 -m defects tests/defects

lint: setup ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: setup ## write the generated tables of docs/ anew
	$(BIN)/python -m tools.docs

$(BENCH_STAMP): $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $(BENCH_STAMP)

bench-train: $(BENCH_STAMP) ## training speed beside other libraries' models; ARGS="--help" for its options
	$(BIN)/python -m benchmarks.train $(ARGS)

bench-optimizer: $(BENCH_STAMP) ## milliseconds a step and bytes of state of MuGrokfast, Muon, AdamW; ARGS="--help" for its options
	$(BIN)/python -m benchmarks.optimizer_step $(ARGS)

bench-decode: setup ## milliseconds a new token, cached and not, by recursions; ARGS="--help" for its options
	$(BIN)/python -m benchmarks.decode $(ARGS)

bench-stream: setup ## a thousand websockets: latency, one that never reads, one that is cut; ARGS="--help" for its options
	$(BIN)/python -m benchmarks.stream $(ARGS)

# An environment of their own: beside our constraints pip finds only an MLflow of years ago.
$(RIVALS)/.set-up: $(STAMP)
	@$(PYTHON) -m venv $(RIVALS) && $(RIVALS)/bin/python -m pip install --quiet --disable-pip-version-check 'mlflow>=3.17' 'trackio>=0.43' \
		&& touch $@ || echo "no mlflow and trackio here: the comparison goes without them"

bench-service: setup $(RIVALS)/.set-up ## metrics kept and read a second beside MLflow and trackio; ARGS="--help" for its options
	$(BIN)/python -m benchmarks.service --rivals $(RIVALS)/bin/python $(ARGS)

bench-gpu: $(BENCH_STAMP) ## everything that only a GPU can show, one after another; ARGS="--json FILE"
	$(BIN)/python -m benchmarks.gpu $(ARGS)

bench-experiments: $(BENCH_STAMP) ## what parts and optimizers are worth on real data (hours); ARGS="RESULTS.jsonl [STUDY ...]"
	$(BIN)/python -m benchmarks.experiments $(ARGS)

bench-tasks: setup ## what memory and recursion are worth on two tasks that need them (an hour); ARGS="RESULTS.jsonl [recall hops]"
	$(BIN)/python -m benchmarks.tasks $(ARGS)

bench-specialists: setup ## the three specialists from launch to hand-off (minutes on a GPU); ARGS="--data FOLDER"
	$(BIN)/python -m benchmarks.specialists $(ARGS)

bench-levers: setup ## what each lever for little data is worth on real data (hours); ARGS="RESULTS.jsonl [LEVER ...]"
	$(BIN)/python -m benchmarks.levers $(ARGS)

clean: ## remove the environment and caches; runs and data stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache static/vendor static/node_modules
