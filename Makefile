# Two commands are enough: `make demo` and `make test`. Both create the environment in .venv first.
PYTHON ?= python3
BIN := .venv/bin
# one thread per worker: several threads in each of several workers slow each other down
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1

.PHONY: env demo test slow lint bench clean
.DELETE_ON_ERROR:

env: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "qsim needs Python 3.11 or newer; call make PYTHON=python3.11 env")'
	@echo "installing into .venv (a minute or two)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: env
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh demo

test: env
	$(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist loadfile

slow: env
	$(BIN)/python -m pytest -m "slow or gpu"

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: env
	for b in benchmarks/bench_*.py; do $(BIN)/python $$b || exit 1; done

clean:
	rm -rf demo .venv
