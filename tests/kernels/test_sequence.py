"""The sequence kernel against the reference in float64, its gradient, and the choice between the two."""

import subprocess
import sys
import warnings

import pytest
import torch

from kernels import gate as operator
from kernels.reference import GateWeights, Memory, bimodal_attention_gate
from kernels.sequence import gate
from tests.kernels.random_inputs import CLOSE, DEVICE, DTYPES, ROOT, assert_error_bound, cast
from tests.kernels.test_reference import random_gate


def random_inputs(dtype=torch.float32, biased=True, one_mask=False, **shape):
    query, cross, own, other, weights = random_gate(**shape)
    own, other = (m if biased else m._replace(bias=None) for m in (own, other))
    own, other = (m._replace(visible=m.visible[:, :1]) if one_mask else m for m in (own, other))
    tensors = [query.to(dtype), cross.to(dtype), *(cast(x, dtype) for x in (own, other, weights))]
    return [x.to(DEVICE) if isinstance(x, torch.Tensor) else type(x)(*(y if y is None else y.to(DEVICE) for y in x))
            for x in tensors]  # fmt: skip


def exact_gate(inputs):
    query, cross_query, *others = inputs
    return bimodal_attention_gate(query.double(), cross_query.double(), *(cast(x, torch.float64) for x in others))


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
def test_error_is_at_most_twice_that_of_pytorch(shape, dtype):
    inputs = random_inputs(dtype, **shape)
    assert_error_bound(gate(*inputs), exact_gate(inputs), bimodal_attention_gate(*inputs))


@pytest.mark.parametrize("empty", ["own", "other", "both"])
def test_empty_memories(empty):
    inputs = random_inputs(queries=5)
    for i, name in ((2, "own"), (3, "other")):
        if empty in (name, "both"):
            inputs[i] = inputs[i]._replace(visible=torch.zeros_like(inputs[i].visible))
    result = gate(*inputs)
    assert_error_bound(result, exact_gate(inputs), bimodal_attention_gate(*inputs))
    if empty == "both":
        assert (result == 0).all()


def test_kernel_reads_tensors_with_strides():
    """The model's heads are views of one projection."""
    inputs = random_inputs(queries=9, own=9, other=9, e=16)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs[:2]]
    keys = torch.cat([inputs[2].keys.transpose(1, 2), inputs[2].values.transpose(1, 2)], -1)
    own = inputs[2]._replace(keys=keys[..., :16].transpose(1, 2), values=keys[..., 16:].transpose(1, 2))
    assert not own.keys.is_contiguous()
    assert torch.equal(gate(*strided, own, *inputs[3:]), gate(*inputs))


def test_gradients_equal_those_of_the_reference():
    """For every input, also if some memories are empty."""
    inputs = random_inputs(queries=4, own=5, other=3, e=8)
    inputs[3] = inputs[3]._replace(visible=inputs[3].visible & (torch.arange(4, device=DEVICE) > 1)[:, None])
    flat = [*inputs[:2], *inputs[2], *inputs[3], *inputs[4]]
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
    ("change", "message"),
    [
        ({0: lambda x: x.double()}, "float64 heads"),
        ({1: lambda x: x.half()}, "a tensor is torch.float16"),
        ({0: lambda x: x.mT.contiguous().mT}, "whose last stride is 1"),
        ({2: lambda m: m._replace(visible=m.visible.long())}, "has to be torch.bool"),
    ],
)
def test_check_rejects_unsupported_tensors(change, message):
    inputs = random_inputs()
    with pytest.raises(ValueError, match=message):
        gate(*(change.get(i, lambda x: x)(x) for i, x in enumerate(inputs)))


def gate_arguments(audio, text):
    return [(audio[0], audio[1]), (text[0], text[1])], [audio[2], audio[3]], [audio[4], text[4]]


@pytest.fixture
def set_choice(monkeypatch):
    operator.warn_once.cache_clear()
    return lambda value: monkeypatch.setenv(operator.VARIABLE, value)


def test_kernel_and_reference_give_the_model_the_same_result(set_choice):
    inputs, others = random_inputs(own=5, other=6), random_inputs(seed=1)
    for m in (2, 3):  # one bias and one mask serve the queries of both modalities
        inputs[m] = inputs[m]._replace(visible=inputs[m].visible[:, :1], bias=inputs[m].bias[:, :, :1])
    arguments = gate_arguments(inputs, others)
    set_choice("triton")
    assert operator.use_kernel(inputs[0])
    results = operator.both_gates(*arguments)
    set_choice("reference")
    assert not operator.use_kernel(inputs[0])
    for a, b in zip(results, operator.both_gates(*arguments), strict=True):
        torch.testing.assert_close(a, b, **CLOSE)
        assert not torch.equal(a, torch.zeros_like(a))


def test_a_warning_appears_once_when_the_kernel_cannot_run(set_choice, monkeypatch):
    set_choice("triton")
    wide = torch.zeros(1, 1, 1, 200, device=DEVICE)
    for query, is_complete, message in (
        (wide.double(), True, "not torch.float64"),
        (wide, True, "up to 64 wide, not 200"),
        (wide[..., :8], False, "ablations"),
    ):
        with pytest.warns(UserWarning, match=message):
            assert not operator.use_kernel(query, is_complete)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not operator.use_kernel(query, is_complete)
    if DEVICE == "cpu":
        monkeypatch.delenv("TRITON_INTERPRET")
        with pytest.warns(UserWarning, match=r"runs on NVIDIA GPUs, and elsewhere only in Triton's interpreter"):
            assert not operator.use_kernel(wide[..., :8])
    set_choice("quick")
    with pytest.raises(ValueError, match="HBAF_KERNELS is 'quick'; valid ones are auto, reference, triton"):
        operator.use_kernel(wide)


def test_missing_triton_gives_a_warning_only_when_the_kernel_is_selected(set_choice, monkeypatch):
    set_choice("triton")
    monkeypatch.setitem(sys.modules, "kernels.common", None)
    with pytest.warns(UserWarning, match=r"runs unfused: Triton cannot be imported .*pip install triton"):
        assert not operator.use_kernel(torch.zeros(1, 1, 1, 8, device=DEVICE))
    set_choice("auto")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not operator.use_kernel(torch.zeros(1, 1, 1, 8))


def test_triton_is_not_imported_on_a_cpu():
    code = "import sys, torch; from kernels import gate; assert not gate.use_kernel(torch.zeros(1, 1, 1, 8)); " \
           "assert 'triton' not in sys.modules"  # fmt: skip
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_gradients_under_autocast_are_close_to_the_references(set_choice):
    """Autocast gives queries and keys in half precision, but a bias and weights in float32."""
    from training.config import ModelConfig
    from training.layers import FusionLayer, OrderBias

    torch.manual_seed(0)
    config = ModelConfig(width=32, heads=2, window=5, dropout=0.0)
    layer, bias = FusionLayer(config).to(DEVICE), OrderBias(config).to(DEVICE)
    state = torch.randn(2, 2, 6, 32, device=DEVICE)
    far = torch.arange(6, device=DEVICE)[:, None] - torch.arange(6, device=DEVICE)
    visible = [((far >= 0) & (far < 5)).expand(2, -1, -1)] * 2
    gradients = []
    for choice in ("triton", "reference"):
        set_choice(choice)
        layer.zero_grad(), bias.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16):
            slots = [layer.keys_values(x, m) for m, x in enumerate(state)]
            result = layer(
                tuple(state), slots, visible, bias(far.expand(2, -1, -1), torch.zeros_like(far).expand(2, -1, -1))
            )
        torch.stack(result).float().square().sum().backward()
        gradients.append([p.grad.clone() for p in (*layer.parameters(), *bias.parameters())])
    for a, b in zip(*gradients, strict=True):
        assert (a - b).norm() <= 0.05 * b.norm() + 1e-3
