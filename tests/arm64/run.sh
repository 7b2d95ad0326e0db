#!/usr/bin/env bash
# Predict the same turns with the wheel on emulated 64-bit Arm (QEMU) and on this machine, and compare the results.
#
#   tests/arm64/run.sh [--save] [--data DIR] [WHEEL]
#
#   --save      write benchmarks/results/arm64.json
#   --data DIR  turns of MELD dev and RAVDESS (DIR/meld, DIR/ravdess) instead of the committed turns
#   WHEEL       the wheel to test; default: built from this checkout
#
# No root, chroot or binfmt is necessary: QEMU loads Debian's arm64 Python and its libraries from a folder. Downloads are
# cached in .cache/arm64 (about 450 MB). PYTHON is the interpreter of this machine (default: .venv/bin/python).
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly ONNX_RUNTIME=1.23.2  # JetPack 6's version; 1.32's aarch64 wheel crashes on import under QEMU 7.2
readonly DEBIAN=bookworm      # its Python is 3.11
readonly QEMU_MODEL=cortex-a76
readonly PYTHON=${PYTHON:-$PWD/.venv/bin/python}
readonly CACHE=$PWD/.cache/arm64
readonly WORK=$CACHE/work # temporary files of a run; deleted when the next run begins
readonly ROOT=$CACHE/root-$DEBIAN

step() { printf '\n== [%3d s] %s\n' "$SECONDS" "$*"; }
fail() {
  echo "$*" >&2
  exit 2
}

check_tools() {
  local tool
  for tool in qemu-aarch64-static debootstrap; do
    command -v "$tool" >/dev/null ||
      fail "$tool is not installed; on Debian or Ubuntu: sudo apt-get install qemu-user-static debootstrap"
  done
  [[ -x $PYTHON ]] || fail "there is no interpreter $PYTHON; 'make test' makes .venv, PYTHON=... names another"
}

# Allow only one run at a time: two would unpack into the same folders.
begin_work() {
  mkdir -p "$CACHE"
  exec 9>"$CACHE/lock"
  flock -n 9 || {
    echo "waiting for another run to end (lock: $CACHE/lock)"
    flock 9
  }
  rm -rf "$WORK"
  mkdir -p "$WORK/home" "$WORK/wheel"
}

# Run a command with its output in log file $1, and print the end of the log if the command fails.
quietly() {
  local log=$1
  shift
  "$@" >"$log" 2>&1 || {
    tail -n 20 "$log" >&2
    fail "failed: $* (log: $log)"
  }
}

# Set WHEEL and unpack it to $WORK/wheel.
prepare_wheel() {
  if [[ -z $WHEEL ]]; then
    quietly "$WORK/build.log" "$PYTHON" -m build --wheel --outdir "$WORK/dist" .
    WHEEL=$(echo "$WORK"/dist/*.whl)
  fi
  "$PYTHON" -m zipfile -e "$WHEEL" "$WORK/wheel"
}

# Cached folders are created under $WORK and moved when complete, so that a killed run leaves no incomplete folder.
prepare_root() {
  [[ ! -d $ROOT ]] || return 0
  local download=$WORK/debian unpacked=$WORK/root archive
  # --download-only, unlike --foreign, needs no root and unpacks nothing.
  quietly "$WORK/debootstrap.log" debootstrap --download-only --arch=arm64 --variant=minbase \
    --include=python3 "$DEBIAN" "$download"
  mkdir "$unpacked"
  for archive in "$download"/var/cache/apt/archives/{lib,python,zlib}*.deb; do
    dpkg -x "$archive" "$unpacked"
  done
  mv -T "$unpacked" "$ROOT"
  rm -rf "$download"
}

# Download the wheel's dependencies for Debian's Python in the versions of constraints.txt, and set PACKAGES.
prepare_packages() {
  local key wanted=$WORK/constraints.txt wheels=$WORK/wheels unpacked=$WORK/packages archive
  # Drop ONNX Runtime, whose version is given above, and markers, which pip would evaluate for this machine's Python.
  grep -v -e '^onnxruntime' -e 'python_version < "3.11"' constraints.txt | sed 's/;.*//' >"$wanted"
  key=$({ grep -h '^Requires-Dist' "$WORK"/wheel/*.dist-info/METADATA && cat "$wanted" && echo "$ONNX_RUNTIME"; } |
    sha256sum | cut -c1-12)
  PACKAGES=$CACHE/packages-$key
  [[ ! -d $PACKAGES ]] || return 0
  # Use only the package registry: pip settings of this machine may name a folder with local builds.
  quietly "$WORK/pip.log" env -u PIP_FIND_LINKS -u PIP_EXTRA_INDEX_URL -u PIP_CONSTRAINT PIP_CONFIG_FILE=/dev/null \
    "$PYTHON" -m pip download --disable-pip-version-check --dest "$wheels" --constraint "$wanted" \
    --only-binary=:all: --implementation cp --python-version 3.11 --platform manylinux_2_28_aarch64 \
    --platform manylinux_2_27_aarch64 --platform manylinux_2_26_aarch64 --platform manylinux_2_17_aarch64 \
    --platform manylinux2014_aarch64 "$WHEEL" "onnxruntime==$ONNX_RUNTIME"
  rm -f "$wheels"/hbaf_edge-*.whl # not cached: it changes with every commit, and prepare_wheel unpacks it
  for archive in "$wheels"/*.whl; do
    "$PYTHON" -m zipfile -e "$archive" "$unpacked"
  done
  rm -rf "$CACHE"/packages-* "$wheels"
  mv -T "$unpacked" "$PACKAGES"
}

prepare() {
  step "preparing arm64 Debian $DEBIAN, ONNX Runtime $ONNX_RUNTIME and the wheel in .cache/arm64"
  local root
  prepare_root & # in parallel with the other downloads
  root=$!
  prepare_wheel
  prepare_packages
  wait "$root"
}

emulated() {
  env -i HOME="$WORK/home" PATH=/usr/bin:/bin LANG=C.UTF-8 OMP_WAIT_POLICY=PASSIVE QEMU_CPU="$QEMU_MODEL" \
    PYTHONHOME="$ROOT/usr" PYTHONPATH="$WORK/wheel:$PACKAGES" PYTHONPYCACHEPREFIX="$CACHE/pycache" \
    "$(command -v qemu-aarch64-static)" -L "$ROOT" "$ROOT/usr/bin/python3.11" "$@"
}

native() {
  env PYTHONPATH="$WORK/wheel" OMP_WAIT_POLICY=PASSIVE "$PYTHON" "$@"
}

main() {
  local save=() data=() qemu demo
  WHEEL=
  while (($#)); do
    case $1 in
      --save) save=(--save) ;;
      --data)
        [[ -d ${2-} ]] || fail "--data needs a folder that holds meld/ and ravdess/"
        data=(--data "$(realpath "$2")")
        shift
        ;;
      -*) fail "unknown option $1; tests/arm64/run.sh [--save] [--data DIR] [WHEEL]" ;;
      *)
        [[ -f $1 ]] || fail "there is no wheel $1"
        WHEEL=$(realpath "$1")
        ;;
    esac
    shift
  done
  check_tools
  begin_work
  trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
  prepare
  qemu="qemu $(qemu-aarch64-static --version | sed -n '1s/.*version \([0-9.]*\).*/\1/p'), $QEMU_MODEL"

  step "the turns on this machine"
  native tests/arm64/turns.py --out "$CACHE/x86_64.json" "${data[@]}"
  step "hbaf-edge demo and the turns on arm64 ($qemu)"
  quietly "$WORK/demo.log" emulated -m hbaf_edge demo & # in parallel with the turns, to use all cores
  demo=$!
  emulated tests/arm64/turns.py --out "$CACHE/arm64.json" --emulator "$qemu" "${data[@]}"
  wait "$demo"
  echo "the demo finished; its output is in $WORK/demo.log"
  step "comparison"
  "$PYTHON" tests/arm64/compare.py "$CACHE/arm64.json" "$CACHE/x86_64.json" "${save[@]}"
}

main "$@"
