# Everything starts from a fresh clone: each target makes what it needs, once. `make` alone lists what there is.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin
CORE := src/penstock/_native.abi3.so
CORE_SOURCES := $(shell find native \( -name target -o -path native/fuzz \) -prune -o -type f -print)
CARGO := path=$$(scripts/find-cargo) && PATH="$$path:$$PATH" VIRTUAL_ENV="$(CURDIR)/.venv"
# What maturin tells pyo3's build script: cargo's tests say the same and find its crates compiled.
PYO3 := PYO3_BUILD_EXTENSION_MODULE=1 PYO3_CONFIG_FILE="$$(echo "$(CURDIR)"/native/target/maturin/pyo3-config-*-abi3.txt)"
SIMULATE = $(CARGO) $(PYO3) SEED=$(SEED) SEEDS=$(SEEDS) FROM=$(FROM) cargo test --manifest-path native/Cargo.toml --release --locked --features python --lib
export CARGO_TARGET_DIR := $(CURDIR)/native/target

# A clone of RustSec's advisory database, for `make audit` on a machine without network.
ADVISORIES ?=
# What the targets that run something pass on: make demo ARGS="--seconds 20"
ARGS ?=
# One of the core's tests: make test-core TEST=what_has_left_every_window_is_freed
TEST ?=

# The simulator: make simulate SEED=0x2a; make test-long SEEDS=100000 FROM=5000. Other seeds each day.
SEED ?=
SEEDS ?= 5000
FROM ?= $(shell date +%Y%m%d)00000
# How long: make soak MINUTES=480
MINUTES ?= 20
# How long for each reader of bytes, and which: make fuzz FOR=600 TARGET="json arrow"
FOR ?= 60
TARGET ?=
# Bytes that failed, once more: make fuzz AGAIN=native/target/fuzz/failed/json-crash-…
AGAIN ?=

.PHONY: help demo test test-long test-core test-python simulate simulate-long fuzz bench bench-ids bench-peers soak check audit clean ready test-ready

help:
	@echo "make demo          payments decided while their sender waits, for 60 seconds (ARGS=\"--seconds 20\")"
	@echo "make test          checks and tests, all of them but the long ones"
	@echo "make test-long     the tests that take minutes"
	@echo "make simulate      run one seed of the simulator again and tell its steps (SEED=0x2a)"
	@echo "make fuzz          libFuzzer on everything that reads bytes (FOR=600 seconds each, TARGET=json)"
	@echo "make check         linters, types and formatting"
	@echo "make audit         known vulnerabilities of what we depend on (needs the network)"
	@echo "make bench         measure this machine and write bench/RESULTS.md"
	@echo "make bench-peers   the same task in Bytewax and Pathway, beside it"
	@echo "make soak          hours under load, with a fault every half minute; writes bench/SOAK.md (MINUTES=20)"
	@echo "make bench-ids     the index of ids at fifty million, by itself"
	@echo "make clean         remove what was built"
	@echo
	@echo "Each sets up what it needs: Python >= 3.11 and, for the core, cargo >= 1.88."

demo: ready
	@$(BIN)/penstock demo $(ARGS)

test: check test-core test-python

test-core: test-ready
	@$(CARGO) $(PYO3) cargo test --manifest-path native/Cargo.toml --release --locked --features python $(TEST)

test-python: test-ready
	@$(BIN)/python -m pytest $(ARGS)

simulate: test-ready
	@test -n "$(SEED)" || { echo "name the seed: make simulate SEED=0x2a"; exit 1; }
	@$(SIMULATE) one_seed -- --ignored --nocapture

simulate-long: test-ready
	@$(SIMULATE) whatever_happens -- --nocapture

fuzz: test-ready
	@$(CARGO) $(PYO3) AGAIN="$(AGAIN)" scripts/fuzz $(FOR) $(TARGET)

test-long: test-ready
	@$(MAKE) -s bench-ids
	@$(MAKE) -s fuzz
	@PENSTOCK_FUZZ_CASES=200000 $(MAKE) -s test-core TEST=test_fuzz
	@$(MAKE) -s simulate-long
	@$(BIN)/python -m pytest -m long $(ARGS)

check: test-ready
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@$(CARGO) scripts/find-cargo --tools
	@$(CARGO) cargo fmt --manifest-path native/Cargo.toml --check
	@$(CARGO) cargo fmt --manifest-path native/fuzz/Cargo.toml --check
	@$(CARGO) $(PYO3) cargo clippy --manifest-path native/Cargo.toml --release --locked --all-targets --features python -- -D warnings

# Not part of `make test`: what was sound yesterday may not be today, whatever was changed.
audit: test-ready
	@$(CARGO) ADVISORIES="$(ADVISORIES)" scripts/audit

bench: ready .venv/.bench
	@$(BIN)/python bench/run.py $(ARGS)

# Fifty million ids: a minute of one core and a gigabyte of disk. `make bench` calls it.
bench-ids: ready
	@$(CARGO) $(PYO3) cargo test --manifest-path native/Cargo.toml --release --locked --features python \
		--test ids -- --ignored --nocapture measure

bench-peers: ready .venv/.bench
	@$(BIN)/python bench/peers.py $(ARGS)

soak: ready .venv/.bench
	@$(BIN)/python bench/soak/run.py --minutes $(MINUTES) $(ARGS)

clean:
	rm -rf .venv .bench native/target $(CORE) .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests examples bench -name __pycache__ -prune -exec rm -rf {} +

# Set-up. pip downloads while cargo compiles; then the two meet.
ready: .venv/.tools
	@$(MAKE) -s -j2 .venv/.packages $(CORE)
	@$(MAKE) -s .venv/.installed

test-ready: ready
	@$(MAKE) -s .venv/.test

.venv/.tools: scripts/find-python
	@python=$$(scripts/find-python) && echo "setting up .venv with $$python" && "$$python" -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "maturin>=1.13,<2"
	@touch $@

.venv/.packages: pyproject.toml scripts/requirements | .venv/.tools
	@echo "installing the Python packages (pyarrow, polars and others, about 150 MB)"
	@$(BIN)/python scripts/requirements | $(BIN)/python -m pip install --quiet --disable-pip-version-check -r /dev/stdin
	@echo "the Python packages are installed"
	@touch $@

$(CORE): $(CORE_SOURCES) | .venv/.tools
	@echo "building the core (Rust); the first time takes minutes"
	@$(CARGO) $(BIN)/maturin develop --release --locked --skip-install
	@touch $@

.venv/.installed: pyproject.toml .venv/.packages | $(CORE)
	@$(CARGO) PIP_QUIET=1 $(BIN)/maturin develop --release --locked --quiet
	@touch $@

.venv/.test: pyproject.toml scripts/find-fuse
	@echo "installing what the tests need"
	@$(BIN)/python scripts/requirements test | $(BIN)/python -m pip install --quiet --disable-pip-version-check -r /dev/stdin
	@scripts/find-fuse
	@touch $@

.venv/.bench: pyproject.toml | ready
	@echo "installing what the benchmarks need"
	@$(BIN)/python scripts/requirements bench | $(BIN)/python -m pip install --quiet --disable-pip-version-check -r /dev/stdin
	@touch $@
