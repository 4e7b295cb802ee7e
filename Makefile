# Two commands do everything: `make cartpole` learns to balance the pole, `make test` passes the tests. Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: cartpole test types behaviour test-learning test-embedded test-extras tables clean

cartpole: .venv/installed
	$(BIN)/spikedream train cartpole

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory --jobs 2 types behaviour

types: .venv/installed-dev
	$(BIN)/pyright

behaviour: .venv/installed-dev
	$(BIN)/pytest

# Trains one seed or more of the presets that `make test` does not, and the witnesses of the tables: hours.
test-learning: .venv/installed-dev
	$(BIN)/pytest -m learning -n 2 --dist load --maxschedchunk 1

# Exported actors on emulated small computers; installs cross compilers and QEMU by Debian's package manager, as root or by sudo.
EMBEDDED := gcc-arm-none-eabi qemu-system-arm gcc-riscv64-unknown-elf qemu-system-misc
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)
test-embedded: .venv/installed-dev
	dpkg -s $(EMBEDDED) >/dev/null 2>&1 || { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends $(EMBEDDED); }
	$(BIN)/pytest -m embedded -n 0

# Runs in many processes, agents and baselines of Stable-Baselines3, W&B's own files, dm_control, and other tool chains for chips.
test-extras: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --editable '.[dev,ray,sb3,wandb,dm-control,chips]'
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --no-deps neurobench  # what it wants besides is for its data sets
	$(BIN)/pytest -m extras -n 0

# The tables of README.md and docs, from the files in results/.
tables: .venv/installed
	$(BIN)/python -m spikedream.experiments.results --write

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --editable .
	touch $@

.venv/installed-dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --editable '.[dev]'
	touch .venv/installed $@

clean:
	rm -rf .venv
