# PYTHON=python3.12 picks the Python that .venv is made with. EXTRAS=ray,peers also installs these extras. PIP_ARGS,
# LAB_ARGS, SERVE_ARGS, TEST_ARGS and BENCH_ARGS are handed on, as in: make test TEST_ARGS="-k setup"
SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help setup lab test serve bench audit-peers stubs chinese constraints

STAGE ?= 1
STAMP := .venv/.installed
PY := PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/python
export PYTHON PIP_ARGS EXTRAS

# a .venv that came from another folder is made again; extras are brought into the one that is there
ifneq ($(shell cat $(STAMP) 2>/dev/null)$(EXTRAS),$(CURDIR))
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
	@$(PY) -m pytest -n 4 --dist loadscope $(TEST_ARGS)

serve: $(STAMP) ## run your own server: make serve STAGE=1
	@PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/course serve $(STAGE) $(SERVE_ARGS)

bench: $(STAMP) ## measure how long checks and servers take; PEERS=1: the last server beside transformers serve
	@$(PY) -m course.$(if $(PEERS)$(GPU),peers,bench) $(if $(GPU),--gpu) $(BENCH_ARGS)

audit-peers: $(STAMP) ## what transformers serve fails of course audit; needs EXTRAS=peers
	@$(PY) -m course.audit.peers

stubs: $(STAMP) ## cut the notebooks' exercise cells from the solutions again
	@$(PY) -m course.stubs

chinese: $(STAMP) ## copy the English notebooks' code to the Chinese ones; name the prose that is out of step
	@$(PY) -m course.chinese

constraints: $(STAMP) ## pin what pyproject.toml asks for, newest releases, for every platform
	@$(PY) -m pip install -q uv
	@$(PY) -m uv pip compile -q --universal --python-version 3.11 --all-extras --upgrade --no-annotate \
	  --custom-compile-command "make constraints" -o constraints.txt pyproject.toml

$(STAMP): pyproject.toml constraints.txt setup.sh
	@./setup.sh
