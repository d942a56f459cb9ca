# What a person types. Everything runs in .venv, which is made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PREFIX ?= $(HOME)/.local

.PHONY: help install demo picture local soak soak-mutants mutants test quick lint lock build clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    send real emails through the real workflow, and show what happened to each"
	@echo "             (make demo EMAIL=path.eml FROM=a@x RCPT=b@y,c@z sends your own)"
	@echo "make install put sesmail, the operator's command, into $(PREFIX)/bin"
	@echo "make local   the same cloud, kept running until Ctrl-C, SMTP on 127.0.0.1:2525"
	@echo "make picture draw docs/email-path.svg again from a demo run"
	@echo "make soak    1,000 emails through random faults, and an account of each (EMAILS=1000 SEED=1)"
	@echo "             (make soak FAULTS=killed-after@gmail:Chunk=0.1 injects faults of your own)"
	@echo "make soak-mutants  take out one safeguard after the other: the soak must notice each"
	@echo "make mutants change names, policies, retries, constants …: a test must notice each; all take"
	@echo "             hours (make mutants SAMPLE=200 SEED=1 KIND=policy,number ONLY=gmail.py)"
	@echo "make test    lint, types, templates and all tests"
	@echo "make quick   lint, types and the tests that take seconds"
	@echo "make build   sam build"
	@echo "make lock    renew requirements-dev.txt from pyproject.toml"

$(READY): requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, this is " + sys.version)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing what is needed into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --require-hashes -r requirements-dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --no-build-isolation --editable .
	@touch $@

# In a virtual environment of its own, without the tools of development.
install:
	@$(PYTHON) -m venv "$(PREFIX)/share/sesmail"
	@rm -rf build # or modules that are gone would be installed from there
	@"$(PREFIX)/share/sesmail/bin/python" -m pip install --quiet --disable-pip-version-check \
	  --upgrade --force-reinstall .
	@mkdir -p "$(PREFIX)/bin"
	@ln -sf "$(PREFIX)/share/sesmail/bin/sesmail" "$(PREFIX)/bin/sesmail"
	@echo "Installed $(PREFIX)/bin/sesmail. If your shell does not find it, add $(PREFIX)/bin to PATH."

# Only from the command line: many a shell has a variable EMAIL of its own.
ifeq ($(origin EMAIL),command line)
DEMO_ARGUMENTS = --email "$(EMAIL)" --sender "$(FROM)" --recipients "$(RCPT)"
endif

demo: $(READY)
	@$(BIN)/python -m local.demo $(DEMO_ARGUMENTS)

picture: $(READY)
	@$(BIN)/python -m local.demo --picture docs/email-path.svg

local: $(READY)
	@exec $(BIN)/python -m local.serve

soak: $(READY)
	@$(BIN)/python -m local.soak --emails $(or $(EMAILS),1000) --seed $(or $(SEED),1) --faults "$(FAULTS)"

soak-mutants: $(READY)
	@$(BIN)/python -m tests.e2e.soak_mutants

mutants: $(READY)
	@$(BIN)/python -m tests.mutants --kind "$(KIND)" --only "$(ONLY)" --sample $(or $(SAMPLE),0) \
	  --seed $(or $(SEED),1)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/cfn-lint template.yaml monitoring.yaml

# In two processes; files that share a cloud or a folder stay together (tests/fixtures/schedule.py).
test: lint
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term --cov-fail-under=95

quick: lint
	$(BIN)/python -m pytest -m "not slow"

build: $(READY)
	$(BIN)/sam build

lock: $(READY)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --group dev --generate-hashes \
	  --custom-compile-command "make lock" -o requirements-dev.txt

clean:
	rm -rf $(VENV) .local .aws-sam .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
