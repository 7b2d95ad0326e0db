"""Seeded random inputs for the kernels, and the error bound that kernels must meet."""

from pathlib import Path

import torch

from kernels.ring import Ring, Step, StepWeights

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# For two float32 results: a GPU's exponential is approximate, the interpreter uses NumPy's.
CLOSE = {"rtol": 1e-5, "atol": 1e-6} if DEVICE == "cpu" else {"rtol": 1e-4, "atol": 1e-5}
ROOT = Path(__file__).resolve().parents[2]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def cast(inputs, dtype):
    """A named tuple with its floating-point tensors in another dtype."""
    return type(inputs)(*(x if x is None or not x.is_floating_point() else x.to(dtype) for x in inputs))


def random_step(batch=3, window=8, heads=2, e=16, turns=None, dtype=torch.float32, seed=0, pool=2):
    """One new turn of each of `batch` conversations, rings of `batch + pool` conversations, and weights.

    All slots contain random values, also those that are not visible.
    """
    g = torch.Generator().manual_seed(seed)

    def r(*shape):
        return torch.randn(*shape, generator=g).to(dtype).to(DEVICE)

    count = torch.randint(0, 3 * window, (batch,), generator=g) if turns is None else torch.tensor(turns)
    step = Step(
        r(batch, 2, 2, heads, e),
        r(batch, 2, 2, heads, e),
        torch.randperm(batch + pool, generator=g)[:batch].int().to(DEVICE),
        count.int().to(DEVICE),
        torch.randint(0, 12, (batch, window), generator=g).to(torch.uint8).to(DEVICE),
        torch.randint(0, 12, (batch,), generator=g).to(torch.uint8).to(DEVICE),
    )
    ring = Ring(r(batch + pool, window, 2, heads, e), r(batch + pool, window, 2, heads, e))
    weights = StepWeights(
        torch.randn(2, heads, window, 3, generator=g).to(DEVICE),
        r(2, heads, 2 * e) * e**-0.5,
        r(2, heads),
        r(2, heads, e, 2 * e) * e**-0.5,
        r(2, heads, e),
    )
    return step, ring, weights


def rounding(exact, dtype):
    """Absolute tolerance besides twice PyTorch's error.

    In half precision it is one rounding of the largest exact value, as an approximate exponential can cause. In
    float32 it is almost zero.
    """
    return 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps * float(exact.abs().max())


def assert_error_bound(result, exact, plain):
    """Fail if a kernel's error against float64 exceeds twice that of plain PyTorch in its dtype, plus one rounding."""
    error, plain_error = (float((x.double() - exact).abs().max()) for x in (result, plain))
    assert torch.isfinite(result).all()
    assert error <= 2 * plain_error + rounding(exact, result.dtype), f"{error:.2e}, plain PyTorch {plain_error:.2e}"
