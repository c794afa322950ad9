# make run    a cluster on this machine, one box through its life, then serving until Ctrl-C
# make test   the tests; needs nothing prepared, and touches no interface, firewall rule or sysctl of the machine.
#             Tests that fail are run once more, alone; the failure stays in the output
# make clients  clients in Python, TypeScript, Go, Java and Rust, generated from the spec for clients into build/clients
# make test-clients  every generation of the released SDKs, where make test takes the oldest and the newest, and all
#             generated clients
# make fuzz   damaged packets against the supervisor, for a minute, 100,000 malformed requests, and requests of all kinds
#             against the API, until something fails or is interrupted (SECONDS=N: packets and requests for N seconds)
# make chaos  traffic while everything is killed and cut off, for 15 minutes (SECONDS=N, SEED=N, STORE=postgresql),
#             and then the simulation with many runs (RUNS=N)
# make docs   the table of operations in docs/api.md
# make lint   ruff, mypy, bandit, the rules for imports and, where Node is there, redocly and spectral for the specs
# make audit-dependencies  known vulnerabilities of what is installed here; asks the database of PyPI
# make vendor xterm.js for the page, from npm, after a look at its hash; needs Node
# make proto  the stubs of worker.proto
# make dist   the wheel, in dist/
# make bench  this server against the docker SDK on one engine, in turn (ONLY=NAME: one case; DOCS=1: into the pages)
# make clean  all that was made here

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
TESTS  ?=
SECONDS ?= 0
SEED   ?=
STORE  ?= sqlite
RUNS   ?= 10000
ONLY   ?=
DOCS   ?=

.PHONY: run test clients test-clients fuzz chaos docs lint audit-dependencies vendor proto dist bench clean

run: $(VENV)/.run
	exec $(BIN)/python -m boxlite_server.local.demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -q --durations=10 $(if $(TESTS),,-n 4 --dist loadfile --no-loadscope-reorder) $(TESTS) || \
	{ echo "once more, alone, the tests that failed:"; $(BIN)/python -m pytest -q --last-failed --last-failed-no-failures none $(TESTS); }

clients: $(VENV)/.dev
	PYTHONPATH=tests $(BIN)/python -m support.clients

test-clients: $(VENV)/.dev
	BOXLITE_TEST_CLIENTS=all $(BIN)/python -m pytest -q --durations=10 tests/sdk

fuzz: $(VENV)/.dev
	command -v clang gcc >/dev/null || $(BIN)/pip install -q ziglang
	BOXLITE_FUZZ_SECONDS=$(SECONDS) $(BIN)/python -m pytest -q -s tests/fuzz/test_supervisor.py tests/fuzz/test_malformed.py tests/fuzz/test_schemathesis.py

chaos: $(VENV)/.dev
	PYTHONPATH=tests $(BIN)/python -m chaos --store $(STORE) $(SEED:%=--seed %) $(patsubst %,--seconds %,$(filter-out 0,$(SECONDS)))
	BOXLITE_SIMULATION_RUNS=$(RUNS) $(BIN)/python -m pytest -q tests/simulation

docs: $(VENV)/.dev
	PYTHONPATH=tests $(BIN)/python -m support.operations

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit -q -c pyproject.toml -r boxlite_server hatch_build.py
	$(BIN)/lint-imports
	PYTHONPATH=tests $(BIN)/python -m support.spec_lint

audit-dependencies: $(VENV)/.dev
	$(BIN)/pip install -q pip-audit
	$(BIN)/pip-audit --skip-editable

vendor: $(VENV)/.dev
	PYTHONPATH=tests $(BIN)/python -m support.vendored

proto: $(VENV)/.dev
	$(BIN)/python -m grpc_tools.protoc -Iboxlite_server/_gen=. --python_out=. --grpc_python_out=. --pyi_out=. worker.proto

dist: | $(BIN)/pip
	$(BIN)/pip wheel -q --no-deps --wheel-dir dist .

bench: $(VENV)/.dev
	PYTHONPATH=tests $(BIN)/python -m bench $(ONLY:%=--only %) $(if $(DOCS),--docs)

clean:
	rm -rf $(VENV) build dist *.egg-info boxlite_server/worker/supervisor/init-* .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What is installed is stamped, and installed anew only when pyproject.toml changes or the supervisor, which the
# installation builds.
BUILT := pyproject.toml hatch_build.py $(wildcard boxlite_server/worker/supervisor/init/*.[ch])

$(VENV)/.run: $(BUILT) | $(BIN)/pip
	$(BIN)/pip install -q -e .
	touch $@

$(VENV)/.dev: $(BUILT) | $(BIN)/pip
	$(BIN)/pip install -q -e '.[dev]'
	touch $@ $(VENV)/.run

# Debian and Ubuntu carry venv in a package of its own, and a bare machine may have no Python at all.
$(BIN)/pip:
	@if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends python3 python3-venv; \
	fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "Python 3.11 or newer is needed; name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "Python's venv module is missing; install it (Debian, Ubuntu: apt-get install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
