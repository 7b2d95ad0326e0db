"""The reference of the gate against its equations in plain loops, and with empty memories."""

import math

import pytest
import torch

from kernels.reference import GateWeights, Memory, bimodal_attention_gate, both_gates


def random_gate(seed=0, batch=2, heads=3, queries=4, own=5, other=6, e=8, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)

    def r(*shape):
        return torch.randn(*shape, generator=g, dtype=dtype)

    memories = [
        Memory(
            r(batch, heads, m, e),
            r(batch, heads, m, e),
            torch.rand(batch, queries, m, generator=g) > 0.3,
            r(batch, heads, queries, m),
        )
        for m in (own, other)
    ]
    weights = GateWeights(r(heads, 2 * e), r(heads), r(heads, e, 2 * e), r(heads, e))
    return r(batch, heads, queries, e), r(batch, heads, queries, e), *memories, weights


def gate_by_loops(query, cross, own, other, weights):
    """The equations of docs/model.md for one query and head at a time."""
    out = torch.zeros_like(query)
    batch, heads, queries, e = query.shape

    def attend(q, memory, b, h, i):
        visible = [j for j in range(memory.keys.shape[2]) if memory.visible[b, i, j]]
        if not visible:
            return None
        scores = [float(q @ memory.keys[b, h, j]) / math.sqrt(e) + float(memory.bias[b, h, i, j]) for j in visible]
        exponentials = [math.exp(s - max(scores)) for s in scores]
        return sum(w / sum(exponentials) * memory.values[b, h, j] for w, j in zip(exponentials, visible))

    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                intra = attend(query[b, h, i], own, b, h, i)
                inter = attend(cross[b, h, i], other, b, h, i)
                if inter is not None:
                    r = torch.sigmoid(weights.w_r[h] @ torch.cat([cross[b, h, i], inter]) + weights.b_r[h])
                    inter = r * inter
                if intra is None and inter is None:
                    continue
                if inter is None or intra is None:
                    out[b, h, i] = intra if inter is None else inter
                    continue
                g = torch.sigmoid(weights.w_g[h] @ torch.cat([intra, inter]) + weights.b_g[h])
                out[b, h, i] = g * inter + (1 - g) * intra
    return out


@pytest.mark.parametrize("seed", range(4))
def test_reference_equals_the_equations(seed):
    inputs = random_gate(seed)
    torch.testing.assert_close(bimodal_attention_gate(*inputs), gate_by_loops(*inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("empty", ["own", "other", "both"])
def test_masked_memory_gives_the_same_result_as_memory_of_length_zero(empty):
    query, cross, own, other, weights = random_gate(queries=3)
    masked, shortened = [], []
    for name, memory in (("own", own), ("other", other)):
        is_empty = empty in (name, "both")
        masked.append(memory._replace(visible=memory.visible & (not is_empty)))
        short = Memory(memory.keys[:, :, :0], memory.values[:, :, :0], memory.visible[:, :, :0], memory.bias[..., :0])
        shortened.append(short if is_empty else memory)
    a = bimodal_attention_gate(query, cross, *masked, weights)
    b = bimodal_attention_gate(query, cross, *shortened, weights)
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert torch.isfinite(a).all()
    if empty == "both":
        assert (a == 0).all()


def test_gradients_are_finite_when_memories_are_empty():
    query, cross, own, other, weights = random_gate()
    query.requires_grad_()
    own = own._replace(visible=torch.zeros_like(own.visible))
    other = other._replace(visible=torch.zeros_like(other.visible))
    bimodal_attention_gate(query, cross, own, other, weights).sum().backward()
    assert torch.isfinite(query.grad).all()


def test_ablations_change_the_result():
    inputs = random_gate()
    full = bimodal_attention_gate(*inputs)
    assert not torch.allclose(full, bimodal_attention_gate(*inputs, relevance=False))
    assert not torch.allclose(full, bimodal_attention_gate(*inputs, gate=False))


@pytest.mark.parametrize("is_dialogue", [True, False])
def test_both_gates_together_equal_each_gate_separately(is_dialogue):
    """In the dialogue scope each query has a bias; in the utterance scope modalities differ in their query count."""
    query, cross, own, other, weights = random_gate(own=5, other=6)
    _, _, _, _, text_weights = random_gate(seed=1)
    text_queries = random_gate(seed=2, queries=4 if is_dialogue else 7)[:2]
    if is_dialogue:
        memories = [m._replace(visible=m.visible & (torch.arange(4) != 2)[:, None]) for m in (own, other)]
    else:
        memories = [m._replace(visible=m.visible[:, :1], bias=None) for m in (own, other)]
    together = both_gates([(query, cross), text_queries], memories, [weights, text_weights])
    separate = [
        bimodal_attention_gate(query, cross, memories[0], memories[1], weights),
        bimodal_attention_gate(*text_queries, memories[1], memories[0], text_weights),
    ]
    for a, b in zip(together, separate, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
