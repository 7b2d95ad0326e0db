"""The sequence kernel against the reference in float64; its gradient; and which of the two the model gets."""

import subprocess
import sys
import warnings

import pytest
import torch

from kernels import gate as selection
from kernels.reference import GateWeights, Memory, bimodal_attention_gate
from kernels.sequence import gate
from tests.kernels.made import CLOSE, DEVICE, DTYPES, ROOT, cast, within
from tests.kernels.test_reference import case


def inputs(dtype=torch.float32, biased=True, one_mask=False, **shape):
    query, cross, own, other, weights = case(**shape)
    own, other = (m if biased else m._replace(bias=None) for m in (own, other))
    own, other = (m._replace(visible=m.visible[:, :1]) if one_mask else m for m in (own, other))
    found = [query.to(dtype), cross.to(dtype), *(cast(x, dtype) for x in (own, other, weights))]
    return [x.to(DEVICE) if isinstance(x, torch.Tensor) else type(x)(*(y if y is None else y.to(DEVICE) for y in x))
            for x in found]  # fmt: skip


def exactly(given):
    return bimodal_attention_gate(given[0].double(), given[1].double(), *(cast(x, torch.float64) for x in given[2:]))


SHAPES = [
    {"queries": 1, "own": 1, "other": 1, "e": 8},
    {"queries": 37, "own": 70, "other": 5, "e": 24, "biased": False},
    {"queries": 64, "own": 64, "other": 64, "e": 64, "batch": 1, "heads": 2},
    {"queries": 20, "own": 33, "other": 40, "e": 16, "one_mask": True, "biased": False},
    {"queries": 3, "own": 0, "other": 6},
    {"queries": 3, "own": 6, "other": 0},
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_at_most_twice_plain_torchs(shape, dtype):
    given = inputs(dtype, **shape)
    within(gate(*given), exactly(given), bimodal_attention_gate(*given))


@pytest.mark.parametrize("which", ["own", "other", "both"])
def test_empty_memories(which):
    given = inputs(queries=5)
    for place, name in ((2, "own"), (3, "other")):
        if which in (name, "both"):
            given[place] = given[place]._replace(visible=torch.zeros_like(given[place].visible))
    found = gate(*given)
    within(found, exactly(given), bimodal_attention_gate(*given))
    if which == "both":
        assert (found == 0).all()


def test_strides_are_followed():
    """Heads cut out of one projection, as the model makes them, are read where they lie."""
    given = inputs(queries=9, own=9, other=9, e=16)
    lying = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in given[:2]]
    keys = torch.cat([given[2].keys.transpose(1, 2), given[2].values.transpose(1, 2)], -1)
    own = given[2]._replace(keys=keys[..., :16].transpose(1, 2), values=keys[..., 16:].transpose(1, 2))
    assert not own.keys.is_contiguous()
    assert torch.equal(gate(*lying, own, *given[3:]), gate(*given))


def test_gradients_are_the_references():
    """Of every input, where memories are empty too."""
    given = inputs(queries=4, own=5, other=3, e=8)
    given[3] = given[3]._replace(visible=given[3].visible & (torch.arange(4, device=DEVICE) > 1)[:, None])
    flat = [*given[:2], *given[2], *given[3], *given[4]]
    grads = []
    for function in (gate, bimodal_attention_gate):
        leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in flat]
        result = function(*leaves[:2], Memory(*leaves[2:6]), Memory(*leaves[6:10]), GateWeights(*leaves[10:]))
        (result * torch.linspace(-1, 1, result.numel(), device=DEVICE).view_as(result)).sum().backward()
        grads.append([x.grad for x in leaves])
    for a, b in zip(*grads, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({0: lambda x: x.double()}, "float64 heads"),
        ({1: lambda x: x.half()}, "a tensor is torch.float16"),
        ({0: lambda x: x.mT.contiguous().mT}, "whose last stride is 1"),
        ({2: lambda m: m._replace(visible=m.visible.long())}, "has to be torch.bool"),
    ],
)
def test_what_would_be_misread_is_refused(change, said):
    given = inputs()
    with pytest.raises(ValueError, match=said):
        gate(*(change.get(i, lambda x: x)(x) for i, x in enumerate(given)))


def both(given, second):
    return [(given[0], given[1]), (second[0], second[1])], [given[2], given[3]], [given[4], second[4]]


@pytest.fixture
def switch(monkeypatch):
    selection.warn_once.cache_clear()
    return lambda value: monkeypatch.setenv(selection.SWITCH, value)


def test_the_model_gets_the_same_from_kernel_and_reference(switch):
    given, second = inputs(own=5, other=6), inputs(seed=1)
    for m in (2, 3):  # one bias and one mask serve the queries of both modalities
        given[m] = given[m]._replace(visible=given[m].visible[:, :1], bias=given[m].bias[:, :, :1])
    arguments = both(given, second)
    switch("triton")
    assert selection.fused(given[0])
    found = selection.both_gates(*arguments)
    switch("reference")
    assert not selection.fused(given[0])
    for a, b in zip(found, selection.both_gates(*arguments), strict=True):
        torch.testing.assert_close(a, b, **CLOSE)
        assert not torch.equal(a, torch.zeros_like(a))


def test_what_the_kernel_does_not_do_is_said_once(switch, monkeypatch):
    switch("triton")
    wide = torch.zeros(1, 1, 1, 200, device=DEVICE)
    for query, whole, said in (
        (wide.double(), True, "not torch.float64"),
        (wide, True, "up to 64 wide, not 200"),
        (wide[..., :8], False, "ablations"),
    ):
        with pytest.warns(UserWarning, match=said):
            assert not selection.fused(query, whole)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not selection.fused(query, whole)
    if DEVICE == "cpu":
        monkeypatch.delenv("TRITON_INTERPRET")
        with pytest.warns(UserWarning, match=r"runs on NVIDIA GPUs, elsewhere only in Triton's interpreter"):
            assert not selection.fused(wide[..., :8])
    switch("quick")
    with pytest.raises(ValueError, match="HBAF_KERNELS is 'quick'; valid ones are auto, reference, triton"):
        selection.fused(wide)


def test_without_triton_a_gpu_is_told_so_and_a_cpu_needs_none(switch, monkeypatch):
    switch("triton")
    monkeypatch.setitem(sys.modules, "kernels.parts", None)
    with pytest.warns(UserWarning, match=r"runs unfused: Triton cannot be imported .*pip install triton"):
        assert not selection.fused(torch.zeros(1, 1, 1, 8, device=DEVICE))
    switch("auto")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not selection.fused(torch.zeros(1, 1, 1, 8))


def test_a_cpu_never_imports_triton():
    code = "import sys, torch; from kernels import gate; assert not gate.fused(torch.zeros(1, 1, 1, 8)); " \
           "assert 'triton' not in sys.modules"  # fmt: skip
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_mixed_precision_trains(switch):
    """Queries and keys in half beside a float32 bias and weights, as autocast leaves them: forward and backward."""
    from training.config import ModelConfig
    from training.layers import FusionLayer, OrderBias

    torch.manual_seed(0)
    config = ModelConfig(width=32, heads=2, window=5, dropout=0.0)
    layer, bias = FusionLayer(config).to(DEVICE), OrderBias(config).to(DEVICE)
    state = torch.randn(2, 2, 6, 32, device=DEVICE)
    far = torch.arange(6, device=DEVICE)[:, None] - torch.arange(6, device=DEVICE)
    visible = [((far >= 0) & (far < 5)).expand(2, -1, -1)] * 2
    found = []
    for choice in ("triton", "reference"):
        switch(choice)
        layer.zero_grad(), bias.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16):
            slots = [layer.remember(x, m) for m, x in enumerate(state)]
            result = layer(
                tuple(state), slots, visible, bias(far.expand(2, -1, -1), torch.zeros_like(far).expand(2, -1, -1))
            )
        torch.stack(result).float().square().sum().backward()
        found.append([p.grad.clone() for p in (*layer.parameters(), *bias.parameters())])
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() <= 0.05 * b.norm() + 1e-3
