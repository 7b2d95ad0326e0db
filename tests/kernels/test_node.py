"""The node's kernel against the reference, with the very tensors that both scopes give it."""

import pytest
import torch

from export.gate_function import example
from hbaf_edge.backends.cuda.plugin import sizes
from kernels.gate import INPUTS
from kernels.node import SIZES, gate_node, node
from kernels.reference import GateWeights, Memory, both_gates
from tests.kernels.made import DEVICE, within
from training.config import ModelConfig

CONFIG = ModelConfig(width=32, heads=2, window=6)


def inputs(scope, seed=0):
    """What a scope gives the node, with random masks, biases and weights; the first dialogue sees no text at all."""
    g = torch.Generator().manual_seed(seed)
    found = []
    for name, tensor in zip(INPUTS, example(scope, CONFIG)[0]):
        made = torch.randn(tensor.shape, generator=g) if not name.endswith("visible") else tensor.clone()
        if name.endswith("visible"):
            made = torch.rand(tensor.shape, generator=g) < 0.6
            made[0] &= not name.startswith("text")
        if name.endswith("bias") and made.numel() == 1:
            made.zero_()
        found.append(made.to(DEVICE))
    return found


def reference(tensors, dtype):
    cast = [x if x.dtype == torch.bool else x.to(dtype) for x in tensors]
    sides = [cast[:10], cast[10:]]
    return both_gates(
        [(s[0], s[1]) for s in sides], [Memory(*s[2:6]) for s in sides], [GateWeights(*s[6:]) for s in sides]
    )


@pytest.mark.parametrize("scope", ["utterance", "dialogue"])
@pytest.mark.parametrize("seed", [0, 1])
def test_error_is_at_most_twice_plain_torchs(scope, seed):
    given = inputs(scope, seed)
    for found, exact, plain in zip(node(given), reference(given, torch.float64), reference(given, torch.float32)):
        within(found, exact, plain)


def test_more_queries_than_a_program_holds_and_masks_and_biases_of_each():
    given = dict(zip(INPUTS, inputs("utterance")))
    g = torch.Generator().manual_seed(2)
    for m, (count, slots) in {"audio": (37, 45), "text": (37, 3)}.items():
        for name in ("query", "cross_query"):
            given[f"{m}_{name}"] = torch.randn(2, 2, count, 16, generator=g).to(DEVICE)
        for name in ("keys", "values"):
            given[f"{m}_{name}"] = torch.randn(2, 2, slots, 16, generator=g).to(DEVICE)
        given[f"{m}_visible"] = (torch.rand(2, count, slots, generator=g) < 0.5).to(DEVICE)
        given[f"{m}_bias"] = torch.randn(1, 2, count, slots, generator=g).to(DEVICE)
    tensors = [given[name] for name in INPUTS]
    for found, exact, plain in zip(node(tensors), reference(tensors, torch.float64), reference(tensors, torch.float32)):
        within(found, exact, plain)


def test_arguments_stand_as_a_plugin_has_them():
    """Inputs, sizes, outputs: the plugin gives them by place."""
    names = [n for n in gate_node.arg_names if n not in ("H", "E", "SCALE", "BLOCK_N", "BLOCK_M", "BLOCK_E")]
    assert tuple(names) == (*INPUTS, *SIZES, "audio", "text")
    assert dict(zip(SIZES, sizes([tuple(x.shape) for x in inputs("dialogue")]))) == {
        "audio_count": 1, "audio_slots": 7, "audio_seen_n": 1, "audio_bias_b": 2, "audio_bias_h": 2, "audio_bias_n": 1,
        "audio_bias_m": 7, "text_count": 1, "text_slots": 7, "text_seen_n": 1, "text_bias_b": 2, "text_bias_h": 2,
        "text_bias_n": 1, "text_bias_m": 7,
    }  # fmt: skip
