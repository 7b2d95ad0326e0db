"""Selection and verification of the shipped kernels, and the order of their arguments."""

import json
import shutil

import pytest

from hbaf_edge.backends.cuda.kernels import CUBINS, choose
from hbaf_edge.errors import BackendError

SIZES = (32, 4, 64)  # the default model's


@pytest.fixture
def cubins(tmp_path):
    return shutil.copytree(CUBINS, tmp_path / "cubins")


def rewrite_manifest(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("capability", "form", "compiled"),
    [(75, "cubin", 75), (80, "cubin", 80), (86, "cubin", 86), (87, "cubin", 87), (88, "cubin", 87), (89, "cubin", 89),
     (90, "cubin", 90), (100, "ptx", 80), (103, "ptx", 80), (110, "cubin", 110), (120, "cubin", 120),
     (121, "ptx", 80), (140, "ptx", 80)],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("name", ["gate_step", "keep", "project", "finish", "head"])
def test_the_best_build_is_chosen_for_every_gpu(capability, form, compiled, dtype, name):
    kernel, *others = choose(name, capability, dtype, *SIZES)
    assert all(other.form == "ptx" or other.capability < kernel.capability for other in others)
    assert capability == 75 or "ptx" in (form, *(other.form for other in others)), "a fallback for older drivers"
    assert (kernel.form, kernel.capability, kernel.dtype) == (form, compiled, dtype)
    assert kernel.content[:4] == (b"\x7fELF" if form == "cubin" else kernel.content[:4])
    assert kernel.name.encode() in kernel.content
    assert kernel.shared <= 48 << 10, "more needs an attribute, and Turing has only 64 KB"


@pytest.mark.parametrize("capability", [53, 62, 72, 74])
def test_a_gpu_older_than_turing_is_an_error(capability):
    with pytest.raises(BackendError, match=r"capability \d\.\d cannot run .* 7\.5 or later.*provider='cpu'"):
        choose("gate_step", capability, "float16", *SIZES)


def test_other_sizes_and_dtypes_are_errors():
    with pytest.raises(BackendError, match=r"a window of 32 and 4 heads of 64, the model has 64 and 4 of 64; build"):
        choose("gate_step", 87, "float16", 64, 4, 64)
    with pytest.raises(BackendError, match="holds float16, float32 gate_step, not bfloat16"):
        choose("gate_step", 87, "bfloat16", *SIZES)


def test_an_altered_or_missing_file_is_an_error(cubins):
    path = cubins / "gate_step-float16-87.cubin"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"?")
    with pytest.raises(BackendError, match=r"gate_step-float16-87.cubin was altered or damaged"):
        choose("gate_step", 87, "float16", *SIZES, folder=cubins)
    assert choose("gate_step", 86, "float16", *SIZES, folder=cubins)[0].capability == 86
    path.unlink()
    with pytest.raises(BackendError, match="cannot be read"):
        choose("gate_step", 87, "float16", *SIZES, folder=cubins)


def test_an_invalid_manifest_is_an_error(cubins, tmp_path):
    with pytest.raises(BackendError, match="cannot be read"):
        choose("gate_step", 87, "float16", *SIZES, folder=tmp_path / "nothing")
    rewrite_manifest(cubins, format=3)
    with pytest.raises(BackendError, match="has format 3, this version reads 2"):
        choose("gate_step", 87, "float16", *SIZES, folder=cubins)
    for broken in ("[1]", "{}", "nonsense", '{"format": 2, "builds": []}'):
        (cubins / "manifest.json").write_text(broken)
        with pytest.raises(BackendError, match="holds no kernels"):
            choose("gate_step", 87, "float16", *SIZES, folder=cubins)


def values(kernel, **changes):
    names = [n for n, _ in kernel.arguments if not n.endswith("_scratch")]
    pointers = {n: 256 * (i + 1) for i, n in enumerate(names)}
    return {**pointers, "batch": 3, "step_row": 1 << 40, "store": 1, "scale": 0.125, **changes}


def test_launch_arguments_have_the_kernels_order():
    kernel = choose("gate_step", 90, "float16", *SIZES)[0]
    assert kernel.launch_arguments(values(kernel)) == (*(256 * (i + 1) for i in range(14)), 3, 1 << 40, 1, 0.125, 0, 0)


def test_missing_and_unaligned_arguments_are_errors():
    kernel = choose("gate_step", 90, "float16", *SIZES)[0]
    with pytest.raises(BackendError, match=r"keys is at 0x1008; .*multiples of 16"):
        kernel.launch_arguments(values(kernel, keys=0x1008))
    with pytest.raises(BackendError, match=r"gate_step takes asks, .*, not asks"):
        kernel.launch_arguments({"asks": 0})
    with pytest.raises(BackendError, match="step_row is 24; gate_step takes multiples of 16"):
        kernel.launch_arguments(values(kernel, step_row=24))
