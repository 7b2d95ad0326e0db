"""The kernel of the exported node against the reference, with tensors of both scopes' shapes."""

import pytest
import torch

from export.gate_function import example_inputs
from hbaf_edge.backends.cuda.plugin import kernel_sizes
from kernels.gate import INPUTS
from kernels.node import SIZES, gate_node, node
from kernels.reference import GateWeights, Memory, both_gates
from tests.kernels.random_inputs import DEVICE, assert_error_bound
from training.config import ModelConfig

CONFIG = ModelConfig(width=32, heads=2, window=6)


def random_inputs(scope, seed=0):
    """Random inputs of the node in a scope. No text is visible to the first dialogue."""
    g = torch.Generator().manual_seed(seed)
    tensors = []
    for name, tensor in zip(INPUTS, example_inputs(scope, CONFIG)[0]):
        value = torch.randn(tensor.shape, generator=g) if not name.endswith("visible") else tensor.clone()
        if name.endswith("visible"):
            value = torch.rand(tensor.shape, generator=g) < 0.6
            value[0] &= not name.startswith("text")
        if name.endswith("bias") and value.numel() == 1:
            value.zero_()
        tensors.append(value.to(DEVICE))
    return tensors


def reference(tensors, dtype):
    cast = [x if x.dtype == torch.bool else x.to(dtype) for x in tensors]
    both = [cast[:10], cast[10:]]  # audio, text
    return both_gates(
        [(x[0], x[1]) for x in both], [Memory(*x[2:6]) for x in both], [GateWeights(*x[6:]) for x in both]
    )


@pytest.mark.parametrize("scope", ["utterance", "dialogue"])
@pytest.mark.parametrize("seed", [0, 1])
def test_error_is_at_most_twice_that_of_pytorch(scope, seed):
    inputs = random_inputs(scope, seed)
    for result, exact, plain in zip(node(inputs), reference(inputs, torch.float64), reference(inputs, torch.float32)):
        assert_error_bound(result, exact, plain)


def test_more_queries_than_a_program_takes_with_a_mask_and_bias_per_query():
    inputs = dict(zip(INPUTS, random_inputs("utterance")))
    g = torch.Generator().manual_seed(2)
    for m, (count, slots) in {"audio": (37, 45), "text": (37, 3)}.items():
        for name in ("query", "cross_query"):
            inputs[f"{m}_{name}"] = torch.randn(2, 2, count, 16, generator=g).to(DEVICE)
        for name in ("keys", "values"):
            inputs[f"{m}_{name}"] = torch.randn(2, 2, slots, 16, generator=g).to(DEVICE)
        inputs[f"{m}_visible"] = (torch.rand(2, count, slots, generator=g) < 0.5).to(DEVICE)
        inputs[f"{m}_bias"] = torch.randn(1, 2, count, slots, generator=g).to(DEVICE)
    tensors = [inputs[name] for name in INPUTS]
    expected = (reference(tensors, dtype) for dtype in (torch.float64, torch.float32))
    for result, exact, plain in zip(node(tensors), *expected):
        assert_error_bound(result, exact, plain)


def test_arguments_have_the_order_of_the_plugin():
    """Inputs, sizes, outputs: the plugin passes them by position."""
    names = [n for n in gate_node.arg_names if n not in ("H", "E", "SCALE", "BLOCK_N", "BLOCK_M", "BLOCK_E")]
    assert tuple(names) == (*INPUTS, *SIZES, "audio", "text")
    assert dict(zip(SIZES, kernel_sizes([tuple(x.shape) for x in random_inputs("dialogue")]))) == {
        "audio_count": 1, "audio_slots": 7, "audio_seen_n": 1, "audio_bias_b": 2, "audio_bias_h": 2, "audio_bias_n": 1,
        "audio_bias_m": 7, "text_count": 1, "text_slots": 7, "text_seen_n": 1, "text_bias_b": 2, "text_bias_h": 2,
        "text_bias_n": 1, "text_bias_m": 7,
    }  # fmt: skip
