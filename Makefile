# Two commands: `make demo` and `make test`. Each makes .venv if it is not there and installs what it needs into it.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint types encoders bench model clean

demo: .venv/demo.done
	@$(BIN)/hbaf-edge demo

test: .venv/test.done
	@echo "== tests (two and a half minutes on two cores; the first run also fetches the pretrained encoders, 300 MB)"
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest

lint: .venv/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/test.done
	$(BIN)/mypy

encoders: .venv/test.done
	$(BIN)/python -m training.encoders

bench: .venv/test.done
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks.first_look

# The default recipe, about 100 minutes on two cores; needs the corpora (HBAF_DATA). OPEN=--open leaves out all that
# forbids commercial use; AUDIO=audio-base takes the larger Whisper encoder. RUNS is where checkpoints and logs go,
# BUNDLE where the result goes. Debian's espeak-ng, where installed, adds synthetic voices that say nothing.
AUDIO ?= audio
RUNS ?= runs
BUNDLE ?= hbaf_edge/models/default
TRAIN := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m training.train
model: .venv/test.done
	$(TRAIN) text $(OPEN) --audio $(AUDIO) --out $(RUNS)/text --epochs 4 --dailytalk-share 0.3
	$(TRAIN) text $(OPEN) --init $(RUNS)/text --out $(RUNS)/text2 --epochs 3 --dailytalk-share 0.1 \
	  --encoder-rate 6e-5 --learning-rate 2e-4 --seed 1
	$(TRAIN) fusion $(OPEN) --init $(RUNS)/text2 --out $(RUNS)/apart --epochs 6 --paired 0 \
	  --talk-share 0.4 --dailytalk-share 0 --learning-rate 6e-4
	$(TRAIN) fusion $(OPEN) --init $(RUNS)/apart --out $(RUNS)/default --epochs 2 --dailytalk-share 0.1 \
	  --learning-rate 3e-4
	$(BIN)/python -m training.evaluate $(RUNS)/default
	$(BIN)/python -m export.release $(RUNS)/default --work $(RUNS)/release --out $(BUNDLE) \
	  --name "hbaf-edge $(if $(OPEN),open,default)"

.venv/bin/python:
	@echo "== making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv

.venv/demo.done: pyproject.toml constraints.txt | .venv/bin/python
	@echo "== installing hbaf-edge and its runtime dependencies into .venv (no torch)"
	@$(PIP) -e .
	@touch $@

.venv/test.done: pyproject.toml constraints.txt | .venv/bin/python
	@echo "== installing hbaf-edge with everything the tests need into .venv (CPU torch, about 1.7 GB)"
	@$(PIP) torch
	@$(PIP) -e ".[dev]"
	@touch $@ .venv/demo.done

clean:
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache
