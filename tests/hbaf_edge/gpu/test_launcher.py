"""The launcher: what it packs, what it says without a GPU; with one, bit for bit what Triton's own launch gives."""

import sys

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from hbaf_edge.errors import BackendError
from hbaf_edge.gpu.kernels import choose
from hbaf_edge.gpu.launcher import GateStep, driver
from hbaf_edge.gpu.packed import ALIGNMENT, check_inputs, check_weights, inputs_of


@drawn(batch=st.integers(1, 70), window=st.integers(1, 128), heads=st.integers(1, 8), e=st.sampled_from([8, 24, 64]))
def test_parts_are_aligned_and_do_not_overlap(batch, window, heads, e):
    packed = inputs_of(batch, window, heads, e, np.float16)
    buffer = np.zeros(packed.size, np.uint8)
    rng = np.random.default_rng(0)
    given = {n: rng.integers(0, 100, packed.shapes[n]).astype(packed.kinds[n]) for n in packed.kinds}
    packed.fill(buffer, given)
    for name, array in given.items():
        assert packed.offsets[name] % ALIGNMENT == 0
        assert np.array_equal(packed.view(buffer, name), array)


def test_every_input_is_an_argument_of_the_kernel():
    names = {name for name, _ in choose(87, "float16", 32, 4, 64)[0].arguments}
    assert set(inputs_of(1, 32, 4, 64, np.float16).kinds) <= names


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"asks": None}, "asks is nothing; the step takes float16"),
        ({"rows": np.zeros(2, np.int64)}, r"rows is int64 \(2,\); the step takes int32 \(2,\)"),
        ({"slots": np.zeros((2, 31), np.uint8)}, r"slots is uint8 \(2, 31\); the step takes uint8 \(2, 32\)"),
    ],
)
def test_what_does_not_fit_is_said_and_nothing_is_written(change, said):
    packed = inputs_of(2, 32, 4, 64, np.float16)
    buffer = np.zeros(packed.size, np.uint8)
    given = {n: np.ones(packed.shapes[n], packed.kinds[n]) for n in packed.kinds}
    with pytest.raises(BackendError, match=said):
        packed.fill(buffer, {**given, **change})
    assert not buffer.any()


def weights(window=32, heads=4, e=64, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"bias": (2, heads, window, 3), "w_r": (2, heads, 2 * e), "b_r": (2, heads), "w_g": (2, heads, e, 2 * e),
              "b_g": (2, heads, e)}  # fmt: skip
    return {n: (0.1 * rng.standard_normal(s)).astype(np.float32) for n, s in shapes.items()}


def test_weights_that_do_not_fit_one_another_are_refused():
    assert check_weights(weights()) == (4, 32, 64)
    wide = r"w_g is \(2, 4, 64, 64\); .* has to be \(2, 4, 64, 128\)"
    for change, said in (
        ({"w_g": np.zeros((2, 4, 64, 64))}, wide),
        ({"bias": np.zeros(3)}, r"bias has to be \(2, H, W, 3\)"),
        ({"more": 1}, "given were"),
    ):
        with pytest.raises(BackendError, match=said):
            check_weights({**weights(), **change})


def test_values_that_would_lead_elsewhere_are_refused():
    packed = inputs_of(2, 32, 4, 64, np.float16)
    given = {n: np.zeros(packed.shapes[n], packed.kinds[n]) for n in packed.kinds} | {
        "rows": np.array([0, 3], np.int32)
    }
    assert check_inputs(given, 4) == 2
    for change, said in (
        ({"rows": np.array([0, 4], np.int32)}, r"rows \[0, 4\] came; there are 4"),
        ({"rows": np.array([-1, 0], np.int32)}, "there are 4"),
        ({"rows": np.array([2, 2], np.int32)}, "each has one turn"),
        ({"turns": np.array([0, -1], np.int32)}, "turns count from 0"),
        ({"slots": np.full((2, 32), 12, np.uint8)}, "0 to 11"),
        ({"nows": np.array([0, 255], np.uint8)}, "0 to 11"),
    ):
        with pytest.raises(BackendError, match=said):
            check_inputs({**given, **change}, 4)
    del given["nows"]
    with pytest.raises(BackendError, match="needs nows as well"):
        check_inputs(given, 4)


SAID = r"cannot be reached through pycuda \(.+\): .*hbaf-edge\[tensorrt\].*provider='cpu'"


def test_without_pycuda_one_clear_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    for attempt in (driver, lambda: GateStep(weights(), 4)):
        with pytest.raises(BackendError, match=SAID):
            attempt()


def test_without_a_driver_too():
    """As it is on this machine: where pycuda is installed and there is no driver, importing it fails in its own way."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a driver")
    with pytest.raises(BackendError, match=SAID):
        driver()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("batch", [1, 3])
def test_on_a_gpu_it_is_tritons_launch_bit_for_bit(dtype, batch):
    """Turn after turn, so that rings fill and wrap and the graph is captured and replayed."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("pycuda.driver")
    from kernels.ring import Ring, Step, StepWeights
    from kernels.step import step

    kind, made = getattr(torch, dtype), weights()
    ours = GateStep(made, 4, dtype)
    cuda = {n: torch.from_numpy(x).cuda().to(torch.float32 if n == "bias" else kind) for n, x in made.items()}
    ring = Ring(*(torch.zeros(4, 32, 2, 4, 64, dtype=kind, device="cuda") for _ in range(2)))
    rng = np.random.default_rng(1)
    for turn in range(40):
        given = {
            "asks": rng.standard_normal((batch, 2, 2, 4, 64)).astype(dtype),
            "news": rng.standard_normal((batch, 2, 2, 4, 64)).astype(dtype),
            "rows": rng.permutation(4)[:batch].astype(np.int32), "turns": np.full(batch, turn, np.int32),
            "slots": rng.integers(0, 12, (batch, 32)).astype(np.uint8),
            "nows": rng.integers(0, 12, batch).astype(np.uint8),
        }  # fmt: skip
        new = Step(*(torch.from_numpy(x).cuda() for x in given.values()))
        expected = step(new, ring, StepWeights(**cuda), store=True).float().cpu().numpy()
        found = ours(given)
        if ours.kernel.form == "cubin":
            assert np.array_equal(found, expected)
        else:  # the driver's own compiler may add in another order
            np.testing.assert_allclose(found, expected, atol=2e-3)
        ours.commit()
