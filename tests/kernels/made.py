"""Random inputs for the kernels, the same for the same seed, and what is allowed to differ."""

from pathlib import Path

import torch

from kernels.ring import Ring, Step, StepWeights

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Of two float32 results: a card's exponential is approximate, the interpreter's is NumPy's.
CLOSE = {"rtol": 1e-5, "atol": 1e-6} if DEVICE == "cpu" else {"rtol": 1e-4, "atol": 1e-5}
ROOT = Path(__file__).resolve().parents[2]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def cast(inputs, dtype):
    """A named tuple with its floating-point tensors in another dtype."""
    return type(inputs)(*(x if x is None or not x.is_floating_point() else x.to(dtype) for x in inputs))


def turn(batch=3, window=8, heads=2, e=16, turns=None, dtype=torch.float32, seed=0, pool=2):
    """One new turn of each of `batch` conversations in a pool with others; slots hold anything, also rubbish."""
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
    """What an error may exceed twice plain PyTorch's by: in half precision one rounding of the largest exact value,
    which a card's approximate exponential can tip; in float32 next to nothing."""
    return 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps * float(exact.abs().max())


def within(found, exact, plain):
    """A kernel's error is at most twice that of plain PyTorch at the same dtype plus one rounding, against float64."""
    error, allowed = (float((x.double() - exact).abs().max()) for x in (found, plain))
    assert torch.isfinite(found).all()
    assert error <= 2 * allowed + rounding(exact, found.dtype), f"{error:.2e}, plain PyTorch {allowed:.2e}"
