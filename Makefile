# Two commands do everything on a fresh machine: `make demo` and `make test`.
#   TORCH=2.12.0          the torch to install where none fits (2.13.0 by default)
#   VRAMKIT_CUDA_ARCHS=90 compiles the CUDA parts for one architecture: quicker while developing
#   ARGS=...              goes to the command: make test ARGS="tests/pool -x"
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check native build environment lint format docs doctest native-test bench torch-headers packages clean \
        print-python rebuild

export TORCH VRAMKIT_CUDA_ARCHS VRAMKIT_WERROR
PYTHON := $(shell TORCH='$(TORCH)' scripts/interpreter.sh)
# Inside .venv the stamps go when it goes; other environments are the user's and stay untouched.
STAMPS := $(if $(filter $(CURDIR)/.venv/%,$(PYTHON)),.venv,build)/stamps$(subst /,-,$(PYTHON))
# The folders too: their time tells of added and removed files.
SOURCES := $(shell find csrc) $(wildcard vramkit/_build/*.py) setup.py
# What changes the result besides the sources; the file is touched only when one of them changes.
SETTINGS := $(foreach name,CXX CXXFLAGS CUDA_HOME VRAMKIT_CUDA_ARCHS VRAMKIT_WERROR,\
  $(name)=$(if $(filter default undefined,$(origin $(name))),,$($(name)))) nvcc=$(shell command -v nvcc)
$(shell mkdir -p build; echo '$(SETTINGS)' | cmp -s - build/settings || echo '$(SETTINGS)' >build/settings)
BUILT := $(if $(wildcard vramkit/_lib/libvramkit_core.so),,rebuild)
NATIVE_FILES = $$(find csrc tests/cpp benchmarks -name '*.cpp' -o -name '*.h' -o -name '*.cu')
ARGS ?=

help:
	@sed -n 's/^\([a-z-]*\): .*## /\1\t/p' Makefile | expand -t 16

demo: $(STAMPS)/demo build ## train a small classifier inside a pool and draw its memory
	$(PYTHON) -m vramkit demo $(ARGS)

test: $(STAMPS)/test build ## run the Python tests
	$(PYTHON) -m pytest $(ARGS)

check: lint build ## what to run before each commit: style, types, the quick tests (under two minutes)
	$(PYTHON) -m pytest -q -m "not slow and not gpu" tests/architecture tests/core tests/ops tests/pool tests/simulate \
	  tests/test_errors.py tests/test_init.py tests/test_units.py $(ARGS)

build: $(STAMPS)/native ## compile what has changed in csrc/

environment: $(STAMPS)/demo $(STAMPS)/dev $(STAMPS)/docs $(STAMPS)/test # all that other targets install

lint: $(STAMPS)/dev ## check style and types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	clang-format --dry-run -Werror $(NATIVE_FILES)

format: $(STAMPS)/dev ## rewrite the sources in the project's style
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
	clang-format -i $(NATIVE_FILES)

docs: $(STAMPS)/docs build ## build the documentation; warnings are errors
	$(PYTHON) -m sphinx -W --keep-going -q -b html docs docs/_build/html

doctest: $(STAMPS)/test build ## run the examples in docstrings and documents
	$(PYTHON) -m pytest --doctest-modules --doctest-glob='*.md' vramkit README.md docs $(ARGS)

native-test: $(STAMPS)/base ## run the core's own tests plainly, under ASan+UBSan and under TSan
	$(PYTHON) scripts/native_tests.py $(ARGS)

bench: $(STAMPS)/bench build ## run the benchmarks
	for question in pool_core pool_cpu pool_cuda loader embedding together; do $(PYTHON) -m benchmarks.$$question $(ARGS) || exit; done

torch-headers: $(STAMPS)/base ## compile the adapters for each supported torch (needs network)
	$(PYTHON) scripts/check_torch_headers.py $(ARGS)

packages: $(STAMPS)/dev ## build an sdist and wheels from a clean copy and use them (needs network)
	$(PYTHON) scripts/check_packages.py

clean: ## remove what was built, but not .venv
	rm -rf build dist docs/_build vramkit/_lib/*.so *.egg-info $(STAMPS)/native

print-python: $(STAMPS)/base
	@echo $(PYTHON)

rebuild:

$(STAMPS)/native: $(SOURCES) build/settings $(BUILT) | $(STAMPS)/base
	@$(PYTHON) setup.py --quiet build_ext --inplace
	@touch $@

$(STAMPS)/base: pyproject.toml scripts/setup_env.sh
	@scripts/setup_env.sh $(PYTHON)
	@mkdir -p $(@D) && touch $@

$(STAMPS)/%: pyproject.toml scripts/setup_env.sh | $(STAMPS)/native
	@scripts/setup_env.sh $(PYTHON) $*
	@touch $@
