# Two commands: `make demo` and `make test`. Each makes .venv if it is not there and installs what it needs into it.
PYTHON ?= python3
# Which ONNX Runtime .venv gets: an extra of pyproject.toml (cpu, gpu, openvino).
ONNX_RUNTIME ?= cpu
# Where torch comes from. Empty: the package registry, whose Linux build brings CUDA (3 GB to download). A CPU build
# (200 MB): make test TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: demo test quick test-slow test-all fuzz arm64 lint types encoders docs bench report guard gpu gpu-check model clean

demo: .venv/demo.done
	@$(BIN)/hbaf-edge demo

PYTEST := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest

test: .venv/test.done
	@echo "== tests (about six minutes on two cores; the first run also fetches the pretrained encoders, 300 MB)"
	@$(PYTEST) -m "not slow"

# The inner loop, at most a minute: the runtime, without what exports a model first and without its benchmarks.
quick: .venv/test.done
	@$(PYTEST) -m "not slow and not exports" --ignore tests/hbaf_edge/bench --ignore tests/hbaf_edge/cuda \
	  tests/hbaf_edge hbaf_edge

# What `make test` leaves out: exhaustive sweeps, long trainings, kills, engines, compilers.
test-slow: .venv/test.done
	@$(PYTEST) -m slow

test-all: test test-slow

# Damaged input of every kind, for FUZZ_SECONDS.
FUZZ_SECONDS ?= 60
fuzz: .venv/test.done
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

# The wheel on 64-bit Arm under QEMU against this machine: about three minutes on two cores. Debian or Ubuntu:
# sudo apt-get install qemu-user-static debootstrap. ARM64=--save writes benchmarks/results/arm64.json.
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
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks.first_look

# The whole report on one page, beside its peers: about fifteen minutes on two cores, a few more the first time.
REPORT ?= runs/report
report: .venv/test.done
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks.whole --report $(REPORT)

# What a turn costs, counted, against recorded budgets; valgrind, where installed, counts instructions too.
guard: .venv/test.done
	$(BIN)/python -m benchmarks.guard

# For a machine with an NVIDIA GPU that is at hand for minutes and has no network: a folder to carry there, runs/gpu-check
# (the tree, and as wheels what is missing there), and what to run there, in eight minutes (benchmarks/gpu_check.py).
# CHECK_PYTHON is an interpreter of that machine's version; pycuda is built with it and CUDA's headers.
CHECK_PYTHON ?= python3.12
gpu-check: .venv/test.done
	$(BIN)/python -m benchmarks.gpu_check prepare --python $(CHECK_PYTHON)

# On a machine with a card, without a hurry: the same check, then races, every size of the kernels' benchmark and the
# whole benchmark of turns. GPU_PYTHON is an interpreter whose PyTorch sees the card, with pytest, hypothesis, matplotlib
# and pycuda; HBAF_GPU_BUNDLE a float16 bundle (python -m export.half) for TensorRT.
GPU_PYTHON ?= $(BIN)/python
gpu:
	$(GPU_PYTHON) -m benchmarks.gpu_check run --minutes 60
	if command -v compute-sanitizer >/dev/null; then PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool racecheck \
	  --error-exitcode 1 --target-processes all $(GPU_PYTHON) -m pytest --noconftest tests/kernels/test_step.py \
	  tests/kernels/test_layer.py -k "every_place or share_a_program or more_conversations"; fi
	$(GPU_PYTHON) -m benchmarks.kernels --save
	$(GPU_PYTHON) -m hbaf_edge benchmark --provider cuda --report benchmarks/results/gpu-cuda
	if [ -n "$(HBAF_GPU_BUNDLE)" ]; then $(GPU_PYTHON) -m hbaf_edge benchmark --provider tensorrt \
	  --bundle "$(HBAF_GPU_BUNDLE)" --report benchmarks/results/gpu-tensorrt; fi

# The default recipe, about an hour on two cores; needs the corpora (HBAF_DATA). OPEN=1 leaves out all that forbids
# commercial use; AUDIO=audio-base takes the larger Whisper encoder. RUNS is where checkpoints and logs go, BUNDLE where
# the result goes. Killed, it goes on where it was. Debian's espeak-ng, where installed, adds synthetic voices that say
# nothing.
AUDIO ?= audio
RUNS ?= runs/$(if $(OPEN),open,default)
BUNDLE ?= $(if $(OPEN),$(RUNS)/bundle,hbaf_edge/models/default)
TALK := --corpus $(if $(OPEN),dailytalk,meld)
PAIRS := $(TALK) $(if $(OPEN),,--also dailytalk@0.1) --pair --clips $(if $(OPEN),emogator --repeats 1,ravdess tess emogator) \
  --copies 2 --turns 120 --smoothing 0.1
# DailyTalk is more than twice as large as MELD: an epoch draws so much of either that it takes the same time.
SHARE := --share $(if $(OPEN),0.45,1)
TRAIN := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m training.train --threads 2 --ema 0.99 --balance 0.3
# Words on a frozen encoder, then with it; then words alone and voices alone; then both together.
model: .venv/test.done
	$(TRAIN) $(TALK) $(SHARE) --use text --audio-encoder $(AUDIO) --epochs 4 --learning-rate 5e-4 --out $(RUNS)/frozen
	$(TRAIN) $(TALK) $(SHARE) --use text --init $(RUNS)/frozen --text-tuning full --epochs 2 --encoder-rate 6e-5 \
	  --learning-rate 2e-4 --turns 40 --out $(RUNS)/text
	$(TRAIN) $(PAIRS) --init $(RUNS)/text --paired 0 --share $(if $(OPEN),0.18,0.4) --epochs 7 --learning-rate 6e-4 --out $(RUNS)/apart
	$(TRAIN) $(PAIRS) $(SHARE) --init $(RUNS)/apart --epochs 2 --learning-rate 1.5e-4 --out $(RUNS)/whole
	$(BIN)/python -m training.evaluate $(RUNS)/whole --stress
	$(BIN)/python -m export.release $(RUNS)/whole --work $(RUNS)/release --out $(BUNDLE) \
	  --name "hbaf-edge $(if $(OPEN),open,default)"

.venv/bin/python:
	@echo "== making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv

.venv/demo.done: pyproject.toml constraints.txt | .venv/bin/python
	@echo "== installing hbaf-edge and its runtime dependencies into .venv (no torch)"
	@$(PIP) -e ".[$(ONNX_RUNTIME)]"
	@touch $@

.venv/test.done: pyproject.toml constraints.txt | .venv/bin/python
	@echo "== installing hbaf-edge with everything the tests need into .venv"
	@$(if $(TORCH_INDEX),$(PIP) --no-deps --index-url $(TORCH_INDEX) torch)
	@$(PIP) -e ".[$(ONNX_RUNTIME),dev]"
	@touch $@ .venv/demo.done

clean:
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache
