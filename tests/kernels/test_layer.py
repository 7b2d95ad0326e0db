"""A fusion layer in three launches against the PyTorch layer of the model."""

import copy

import pytest
import torch

from kernels.layer import layer, layer_weights
from kernels.ring import Ring, Step
from tests.kernels.random_inputs import DEVICE, DTYPES, assert_error_bound
from training.config import ModelConfig
from training.layers import FusionLayer, KeyValues, OrderBias


def random_layer(window=5, width=32, heads=2, batch=3, seed=0):
    torch.manual_seed(seed)
    config = ModelConfig(width=width, heads=heads, window=window, dropout=0.0)
    fusion, bias = FusionLayer(config).eval(), OrderBias(config)
    torch.nn.init.normal_(bias.table)
    for parameter in fusion.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    g = torch.Generator().manual_seed(seed)
    past = torch.randn(batch, window, 2, 2, width, generator=g)  # keys and values by modality
    slots = torch.randint(0, 12, (batch, window), generator=g)
    turns = torch.tensor([2, 7, 40, 0, 5])[:batch]
    return fusion, bias, torch.randn(batch, 2, width, generator=g), past, slots, turns


def in_torch(fusion, bias, states, past, slots, turns, dtype):
    """The layer in PyTorch. Each conversation's memory is its ring and its own turn."""
    from kernels.ring import distances

    fusion = copy.deepcopy(fusion).to(dtype)
    states, past = states.to(dtype), past.to(dtype)
    window = past.shape[1]
    far, inside = distances(turns, window)
    distance = torch.cat([far, torch.zeros_like(far[:, :1])], 1)[:, None]
    relation = torch.cat([slots >> 2, torch.zeros_like(slots[:, :1])], 1)[:, None]
    marks = torch.cat([torch.where(inside, slots & 3, 0), torch.full_like(slots[:, :1], 3)], 1)
    per_modality = [states[:, None, m] for m in range(2)]
    memories, visible = [], []
    for m, x in enumerate(per_modality):
        new = fusion.keys_values(x, m)
        memories.append(
            KeyValues(torch.cat([past[:, :, m, 0], new.keys], 1), torch.cat([past[:, :, m, 1], new.values], 1))
        )
        visible.append((marks >> m & 1).bool()[:, None])
    biases = tuple(b.to(dtype) for b in bias(distance, relation))
    with torch.no_grad():
        return torch.stack([x[:, 0] for x in fusion(tuple(per_modality), memories, visible, biases)], 1)


def by_kernels(fusion, bias, states, past, slots, turns, dtype, heads):
    batch, window, _, _, width = past.shape
    empty = torch.full((batch, 2, 2, heads, width // heads), float("nan"), dtype=dtype, device=DEVICE)
    inputs = Step(
        empty, empty.clone(),
        torch.arange(batch, dtype=torch.int32, device=DEVICE), turns.int().to(DEVICE), slots.to(torch.uint8).to(DEVICE),
        torch.full((batch,), 3, dtype=torch.uint8, device=DEVICE),
    )  # fmt: skip
    ring = Ring(
        *(past[:, :, :, i].reshape(batch, window, 2, heads, -1).to(dtype).to(DEVICE).contiguous() for i in (0, 1))
    )
    weights = layer_weights(fusion.to(DEVICE), bias.to(DEVICE), dtype)
    result = layer(states.to(dtype).to(DEVICE), inputs, ring, weights)
    fusion.cpu(), bias.cpu()
    return result.cpu()


SHAPES = [{}, {"width": 96, "heads": 3, "window": 7, "batch": 5}, {"batch": 1, "window": 1}]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_at_most_twice_that_of_pytorch(shape, dtype):
    inputs, heads = random_layer(**shape), shape.get("heads", 2)
    exact = in_torch(copy.deepcopy(inputs[0]), copy.deepcopy(inputs[1]).double(), *inputs[2:], torch.float64)
    assert_error_bound(by_kernels(*inputs, dtype, heads), exact, in_torch(*inputs, dtype))


def test_more_conversations_than_a_tile():
    fusion, bias, *_ = random_layer()
    generator = torch.Generator().manual_seed(3)
    batch = 19
    inputs = (torch.randn(batch, 2, 32, generator=generator), torch.randn(batch, 5, 2, 2, 32, generator=generator),
              torch.randint(0, 12, (batch, 5), generator=generator), torch.arange(batch))  # fmt: skip
    result = by_kernels(fusion, bias, *inputs, torch.float32, 2)
    torch.testing.assert_close(result, in_torch(fusion, bias, *inputs, torch.float32), rtol=1e-4, atol=1e-5)
