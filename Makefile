# PYTHON=python3.12 picks the Python that .venv is made with. PIP_ARGS, LAB_ARGS, SERVE_ARGS, TEST_ARGS and BENCH_ARGS
# are handed on, as in: make test TEST_ARGS="-k setup"
SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help setup lab test serve bench stubs constraints

STAGE ?= 1
STAMP := .venv/.installed
PY := PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/python
export PYTHON PIP_ARGS

# a .venv that came from another folder is made again
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## make .venv with everything in it
	@echo "Set up. Next: make lab, or: source .venv/bin/activate"

lab: $(STAMP) ## set up if needed, then open JupyterLab on the first notebook
	@$(PY) -m course.lab $(LAB_ARGS)

# four at a time also on two cores: most tests wait, a hanging answer's for its whole limit
test: $(STAMP) ## set up if needed, then run every test
	@$(PY) -m pytest -n 4 --dist worksteal $(TEST_ARGS)

serve: $(STAMP) ## run your own server: make serve STAGE=1
	@PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/course serve $(STAGE) $(SERVE_ARGS)

bench: $(STAMP) ## measure how long a check and a server's start take
	@$(PY) -m course.bench $(BENCH_ARGS)

stubs: $(STAMP) ## cut the notebooks' exercise cells from the solutions again
	@$(PY) -m course.stubs

constraints: $(STAMP) ## pin what pyproject.toml asks for, newest releases, for every platform
	@$(PY) -m pip install -q uv
	@$(PY) -m uv pip compile -q --universal --python-version 3.11 --all-extras --upgrade --no-annotate \
	  --custom-compile-command "make constraints" -o constraints.txt pyproject.toml

$(STAMP): pyproject.toml constraints.txt setup.sh
	@./setup.sh
