# Needs make and Python 3.11 or newer with venv and pip; nothing else. `make` lists the targets.

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.PHONY: help demo test check faults migrations test-matrix bench load flip index mutants lock clean \
	eval-docs docs-times python venv venv-sqlalchemy20 venv-bench

ARGS ?=
VENVS ?= .venv-sqlalchemy20 .venv
MATRIX := tests/layer tests/migrations tests/test_example.py references
SOURCES := assets scripts tests evals
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'

# The first Python that is new enough. To choose another: make test PYTHON=python3.12
ifndef PYTHON
PYTHON := $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python $(NEW_ENOUGH) 2>/dev/null && echo $$python && break; done)
endif

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | \
		awk -F ':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

demo: python ## a new FastAPI app on SQLite in .demo/app, proven over real HTTP
	@$(PYTHON) scripts/scaffold.py new .demo/app --name demo --prove --force

test: venv ## everything that is proven; make test ARGS='-k models -x' for a part of it
	@.venv/bin/python -m pytest -n logical $(ARGS)

# mypy runs twice: the example app has a package called `tests`, as we do.
# pyright would ask the network whether there is a newer one.
check: venv ## lint, format, types, and the form of the guide
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy assets
	.venv/bin/python -m mypy $(filter-out assets,$(SOURCES))
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 .venv/bin/python -m pyright \
		--pythonpath .venv/bin/python $(SOURCES)
	@.venv/bin/python -m tests.test_packaging # the installed size; a test bounds it
	.venv/bin/python -m pytest -q tests/test_pitfalls.py tests/test_packaging.py # links, index, sizes

test-matrix: venv venv-sqlalchemy20 ## the layer, the example and the references on SQLAlchemy 2.0 and 2.1
	@failed=0; for venv in $(VENVS); do \
		$$venv/bin/python -c 'import sqlalchemy; print("SQLAlchemy", sqlalchemy.__version__)' && \
		$$venv/bin/python -m pytest -n logical $(MATRIX) $(ARGS) || failed=1; \
	done; exit $$failed

bench: venv-bench ## ServiceBase against its peers; make bench ARGS='--quick --databases sqlite'
	@PYTHONPATH=assets/example .venv-bench/bin/python -m evals.performance.bench $(ARGS)

faults: venv ## servers killed, stalled, full, behind PgBouncer: what the layer answers, what is lost
	@.venv/bin/python -m pytest -n logical tests/faults $(ARGS)

migrations: venv ## from an empty folder to migrated tables on three databases, printed
	@.venv/bin/python -m tests.migrations.cycle

load: venv-bench ## 200 clients while backends are killed; make load ARGS='--seconds 10'
	@PYTHONPATH=assets/example .venv-bench/bin/python -m evals.load $(ARGS)

eval-docs: venv ## how often a look-up in the documentation finds a section that answers
	@PYTHONPATH=scripts .venv/bin/python -m evals.docs $(ARGS)

docs-times: venv ## how long a look-up takes, cold (with download) and warm
	@.venv/bin/python -m evals.docs.times

flip: venv ## exchange the promises of each wrong and right example: all must fail
	@.venv/bin/python -m pytest -n logical --flip references $(ARGS)

index: venv ## references/pitfalls.md from the entries of references/pitfalls-*.md
	@.venv/bin/python -m tests.pitfalls

mutants: venv ## what no test would notice; make mutants ARGS='--databases sqlite --files paging'
	@.venv/bin/python -m evals.mutation $(ARGS)

lock: python ## newest versions and their hashes into requirements*.txt
	@test -d .venv-lock || $(PYTHON) -m venv .venv-lock
	@.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check --upgrade uv
	@$(call compile,dev,requirements.txt)
	@$(call compile,sqlalchemy20,requirements-sqlalchemy20.txt,--no-deps)
	@$(call compile,bench,requirements-bench.txt,--constraint requirements.txt \
		$$(sed -nE 's/^([a-z0-9-]+)==.*/--no-emit-package \1/p' requirements.txt))

clean: ## remove virtual environments, the demo and caches
	rm -rf .venv .venv-sqlalchemy20 .venv-bench .venv-lock .demo .bench .load .mutants .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

python:
	@$(if $(PYTHON),$(PYTHON) $(NEW_ENOUGH),false) || { \
		echo "make: Python 3.11 or newer is needed; found $$($(or $(PYTHON),python3) -V 2>&1)." \
		"Install one, or name it: make $(or $(MAKECMDGOALS),test) PYTHON=/path/to/python3.13" >&2; \
		exit 1; }

venv: python
	@$(call install,.venv,requirements.txt)

venv-sqlalchemy20: python
	@$(call install,.venv-sqlalchemy20,requirements.txt requirements-sqlalchemy20.txt)

venv-bench: python
	@$(call install,.venv-bench,requirements.txt requirements-bench.txt)

# $(call install,FOLDER,REQUIREMENTS): a virtual environment, made again only when the
# interpreter or the requirements differ from those that it was made with. A later file takes the
# place of what an earlier one installed.
install = { $(PYTHON) -VV; cat $(2); } | cmp -s - $(1)/made-with || { \
	echo "Installing $(2) into $(1) (only when it changes)"; \
	$(PYTHON) -m venv --clear $(1) && \
	for file in $(2); do \
		$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
			--require-hashes --requirement $$file || exit 1; \
	done && \
	{ $(PYTHON) -VV; cat $(2); } > $(1)/made-with; }

# $(call compile,GROUP,FILE,OPTIONS): one file for every platform and Python from 3.11 on.
compile = .venv-lock/bin/uv pip compile --quiet --no-config --upgrade --universal \
	--python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
	--custom-compile-command 'make lock' --group $(1) --output-file $(2) $(3)
