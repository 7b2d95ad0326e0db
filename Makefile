# Start with `make demo` and `make test`. Each creates .venv if necessary and installs what it needs.
PYTHON ?= python3
# The build of ONNX Runtime to install: an extra of pyproject.toml (cpu, gpu, openvino).
ONNX_RUNTIME ?= cpu
# Package index for torch. Empty: the package registry, whose Linux build includes CUDA (3 GB). For a CPU build (200
# MB): make test TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: demo test quick test-slow test-all fuzz arm64 lint types encoders docs bench report figures guard gpu gpu-check model clean

demo: .venv/demo.done
	@$(BIN)/hbaf-edge demo

PYTEST := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest

test: .venv/test.done
	@echo "== tests (about six minutes on two cores; the first run also fetches the pretrained encoders, 300 MB)"
	@$(PYTEST) -m "not slow"

# For frequent use, at most a minute: tests of the runtime, except its benchmarks and tests that export a model.
quick: .venv/test.done
	@$(PYTEST) -m "not slow and not exports" --ignore tests/hbaf_edge/bench --ignore tests/hbaf_edge/cuda \
	  tests/hbaf_edge hbaf_edge

# Tests that `make test` leaves out: exhaustive sweeps, long training, killed processes, engines, compilers.
test-slow: .venv/test.done
	@$(PYTEST) -m slow

test-all: test test-slow

# Feed damaged inputs of every kind for FUZZ_SECONDS.
FUZZ_SECONDS ?= 60
fuzz: .venv/test.done
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

# Compare the wheel on emulated 64-bit Arm (QEMU) with this machine: about three minutes on two cores. On Debian or
# Ubuntu: sudo apt-get install qemu-user-static debootstrap. ARM64=--save writes benchmarks/results/arm64.json.
ARM64 ?=
arm64: .venv/test.done
	@tests/arm64/run.sh $(ARM64)

lint: .venv/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: .venv/test.done
	$(BIN)/mypy

encoders: .venv/test.done
	$(BIN)/python -m training.encoders

# The site, in runs/site. README and each page of docs/ are checked by tests/test_docs.py.
docs: .venv/test.done
	$(BIN)/python -m mkdocs build --strict

bench: .venv/test.done
	OMP_WAIT_POLICY=PASSIVE $(BIN)/hbaf-edge benchmark --quick

# The full report with all peers on one page: about five minutes on two cores, longer the first time.
REPORT ?= runs/report
report: .venv/test.done
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks.full_report --report $(REPORT)

# Write README's and the site's tables and pictures from the committed results; FIGURES=--check only compares.
FIGURES ?=
figures: .venv/test.done
	$(if $(FIGURES),,$(BIN)/python docs/how_it_works.py)
	$(BIN)/python -m benchmarks.publish $(FIGURES)

# Compare the counted cost of a turn with recorded budgets. If valgrind is installed, instructions are counted as well.
guard: .venv/test.done
	$(BIN)/python -m benchmarks.guard

# Prepare an eight-minute check on a GPU machine without network (benchmarks/gpu_check.py): pack the source and missing
# wheels into runs/gpu-check, and print the commands to run there. CHECK_PYTHON is an interpreter of the same version as
# on that machine; it builds pycuda with CUDA's headers.
CHECK_PYTHON ?= python3.12
gpu-check: .venv/test.done
	$(BIN)/python -m benchmarks.gpu_check prepare --python $(CHECK_PYTHON)

# On a machine with a GPU and enough time: the same check, then race detection, all sizes of the kernel benchmark and
# the full benchmark of turns. GPU_PYTHON is an interpreter whose PyTorch uses the GPU, with pytest, hypothesis,
# matplotlib and pycuda; HBAF_GPU_BUNDLE is a float16 bundle (python -m export.float16) for TensorRT.
GPU_PYTHON ?= $(BIN)/python
gpu:
	$(GPU_PYTHON) -m benchmarks.gpu_check run --minutes 60
	if command -v compute-sanitizer >/dev/null; then PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool racecheck \
	  --error-exitcode 1 --target-processes all $(GPU_PYTHON) -m pytest --noconftest tests/kernels/test_step.py \
	  tests/kernels/test_layer.py -k "every_position or share_a_program or more_conversations"; fi
	$(GPU_PYTHON) -m benchmarks.kernels --save
	$(GPU_PYTHON) -m hbaf_edge benchmark --provider cuda --report benchmarks/results/gpu-cuda
	if [ -n "$(HBAF_GPU_BUNDLE)" ]; then $(GPU_PYTHON) -m hbaf_edge benchmark --provider tensorrt \
	  --bundle "$(HBAF_GPU_BUNDLE)" --report benchmarks/results/gpu-tensorrt; fi

# Train the default model: about an hour on two cores; needs the corpora (HBAF_DATA). OPEN=1 leaves out data that forbid
# commercial use; AUDIO=audio-base uses the larger Whisper encoder. RUNS is the folder of checkpoints and logs, BUNDLE
# that of the result. After an interruption the same command continues. If espeak-ng is installed, its synthetic voices
# are added as audio without a particular emotion. FINAL=--final also scores test, once (training/ledger.py); a model
# that was scored before gets its scores from the ledger.
FINAL ?=
AUDIO ?= audio
RUNS ?= runs/$(if $(OPEN),open,default)
BUNDLE ?= $(if $(OPEN),$(RUNS)/bundle,hbaf_edge/models/default)
DIALOGUES := --corpus $(if $(OPEN),dailytalk,meld)
PAIRS := $(DIALOGUES) $(if $(OPEN),,--also dailytalk@0.1) --pair --clips $(if $(OPEN),emogator --repeats 1,ravdess nemo emogator) \
  --copies 2 --turns 120 --smoothing 0.1
# DailyTalk is more than twice as large as MELD. The share per epoch makes epochs of both take the same time.
SHARE := --share $(if $(OPEN),0.45,1)
TRAIN := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m training.train --threads 2 --ema 0.99 --balance 0.3
# Stages: text with a frozen encoder; text with a trained encoder; text and audio in separate turns; both together.
model: .venv/test.done
	$(TRAIN) $(DIALOGUES) $(SHARE) --use text --audio-encoder $(AUDIO) --epochs 4 --learning-rate 5e-4 --out $(RUNS)/frozen
	$(TRAIN) $(DIALOGUES) $(SHARE) --use text --init $(RUNS)/frozen --text-tuning full --epochs 2 --encoder-rate 6e-5 \
	  --learning-rate 2e-4 --turns 40 --out $(RUNS)/text
	$(TRAIN) $(PAIRS) --init $(RUNS)/text --paired 0 --share $(if $(OPEN),0.18,0.4) --epochs 7 --learning-rate 6e-4 --out $(RUNS)/apart
	$(TRAIN) $(PAIRS) $(SHARE) --init $(RUNS)/apart --epochs 2 --learning-rate 1.5e-4 --out $(RUNS)/whole
	$(BIN)/python -m training.evaluate $(RUNS)/whole --stress
	$(BIN)/python -m export.release $(RUNS)/whole --work $(RUNS)/release --out $(BUNDLE) \
	  --name "hbaf-edge $(if $(OPEN),open,default)" $(FINAL)

.venv/bin/python:
	@echo "== creating .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv

.venv/demo.done: pyproject.toml constraints.txt | .venv/bin/python
	@echo "== installing hbaf-edge and its runtime dependencies into .venv (no torch)"
	@$(PIP) -e ".[$(ONNX_RUNTIME)]"
	@touch $@

.venv/test.done: pyproject.toml constraints.txt | .venv/bin/python
	@echo "== installing hbaf-edge and the dependencies of its tests into .venv"
	@$(if $(TORCH_INDEX),$(PIP) --no-deps --index-url $(TORCH_INDEX) torch)
	@$(PIP) -e ".[$(ONNX_RUNTIME),dev]"
	@touch $@ .venv/demo.done

clean:
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache
