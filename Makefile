# Two commands for a newcomer: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo docs test test-slow fuzz check format bench attack film gpu sbom lock release clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; this is $$($(PYTHON) --version). Try: make PYTHON=python3.11 ..."; exit 1; }
	@echo "Installing into $(VENV) (about 3.5 GB, one to three minutes) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY) ## Set up, then run the whole way on a small made-up archive and write a page
	@$(BIN)/clvr demo

test: check ## Set up, then run lint, types and the tests with real S3, Milvus and Ray on this machine
	@$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadgroup $(PYTEST_ARGS)

test-slow: $(READY) ## Run the tests that take minutes each
	@$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

docs: $(READY) ## Build the documentation into site/; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The site: file://$(CURDIR)/site/index.html"

fuzz: $(READY) ## Feed 600,000 mutated pictures, tables, containers, keys and documents to the readers (FUZZ="--seconds 600")
	@$(BIN)/python tests/fuzz/run.py $(FUZZ)

check: $(READY) ## Lint, format check, strict types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(READY) ## Put the code in the house format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(READY) ## Run the benchmarks and write docs/benchmarks.md (about 15 minutes)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@$(BIN)/python tests/benchmarks/report.py $(BENCH)

attack: $(READY) ## Kill, flip bits, start pairs of commands, look for erased crops (about 30 minutes)
	@$(BIN)/python tests/attacks $(ATTACK)

film: $(READY) ## Take the pictures of one case on the desk, from upload to verified export
	@$(BIN)/python tests/film/run.py $(FILM)

gpu: ## Run every GPU path of this machine against its CPU, and measure it, in less than 8 minutes
	@$(PYTHON) tests/gpu/packages.py
	@PYTHONPATH=. $$([ -x .venv-gpu/bin/python ] && echo .venv-gpu/bin/python || echo $(PYTHON)) tests/gpu/run.py $(GPU)

# The tools of a release have an environment of their own: .venv is what a list of its packages describes.
TOOLS := .venv-release
$(TOOLS)/.ready: Makefile
	@$(PYTHON) -m venv $(TOOLS)
	@$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check \
	  build==1.6.1 cyclonedx-bom==7.5.0 pip-licenses==5.5.5 twine==7.0.0
	@touch $@

sbom: $(READY) $(TOOLS)/.ready ## Write sbom.json (CycloneDX) and licenses.csv of the packages in .venv
	@$(TOOLS)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o sbom.json $(BIN)/python
	@$(TOOLS)/bin/pip-licenses --python=$(BIN)/python --format=csv --with-urls --output-file=licenses.csv

lock: $(READY) ## Write requirements.lock: the packages of .venv with the hashes of their files, for this platform
	@$(BIN)/python .ci/lock.py

release: $(TOOLS)/.ready ## Version, changelog, checked wheel and sdist, commit and tag (VERSION=0.2.0); uploads nothing
	@$(TOOLS)/bin/python .ci/release.py $(VERSION)

clean: ## Remove what the commands above made
	rm -rf $(VENV) $(TOOLS) .venv-gpu gpu.json demo dist film site build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
