"""The gate over complete sequences as one Triton launch per modality, for training and for scoring many dialogues.

Attention scores stay in registers (online softmax over tiles of slots); relevance, gate and mix follow in the same
program. The reference is `kernels.reference.bimodal_attention_gate`. The backward pass computes the reference again
and takes its gradient, so no scores are stored between the passes.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.common import MASKED_SCORE, MAX_HEAD_WIDTH, dot, loop_end, mix, tile_size
from kernels.reference import GateWeights, Memory, bimodal_attention_gate

SLOTS = 32  # of a tile; with more, accumulators would spill out of the registers


@triton.jit
def attend(query, keys, values, visible, bias, count, slots, key_m, value_m, visible_n, visible_m, bias_n, bias_m,
           scale, E: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr,
           BIASED: tl.constexpr):  # fmt: skip
    """Attention of a tile of queries (BLOCK_N, E) over all slots by online softmax, and whether a slot was visible.

    Pointers are to one head of one dialogue. Earlier sums are rescaled when a tile has a higher score: after scores
    1 and 3, total = exp(1 − 3) + exp(3 − 3).
    """
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    column, slot = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_M)
    sums = tl.zeros(query.shape, tl.float32)
    top, total = tl.full(row.shape, MASKED_SCORE, tl.float32), tl.zeros(row.shape, tl.float32)
    for start in range(0, loop_end(slots), BLOCK_M):
        here = start + slot
        inside = (here < slots)[:, None] & (column < E)[None, :]
        key = tl.load(keys + here[:, None] * key_m + column[None, :], mask=inside, other=0.0)
        value = tl.load(values + here[:, None] * value_m + column[None, :], mask=inside, other=0.0)
        both = (row < count)[:, None] & (here < slots)[None, :]
        seen = tl.load(visible + row[:, None] * visible_n + here[None, :] * visible_m, mask=both, other=0) > 0
        scores = dot(query, tl.trans(key), tl.zeros(seen.shape, tl.float32)) * scale
        if BIASED:
            scores += tl.load(bias + row[:, None] * bias_n + here[None, :] * bias_m, mask=both, other=0.0)
        scores = tl.where(seen, scores, MASKED_SCORE)
        highest = tl.maximum(top, tl.max(scores, 1))
        weights = tl.where(seen, tl.exp(scores - highest[:, None]), 0.0)
        before = tl.exp(top - highest)
        sums = dot(weights.to(value.dtype), value, sums * before[:, None])
        total = total * before + tl.sum(weights, 1)
        top = highest
    return sums / tl.where(total > 0, total, 1.0)[:, None], total > 0


# Lengths differ from batch to batch: compiling a kernel for each length would cost more than it gains.
@triton.jit(do_not_specialize=["count", "own_slots", "other_slots"])
def gate_sequence(query, cross, out, own_keys, own_values, own_visible, own_bias, other_keys, other_values,
                  other_visible, other_bias, w_r, b_r, w_g, b_g, count, own_slots, other_slots, query_b, query_h,
                  query_n, cross_b, cross_h, cross_n, out_b, out_h, out_n, own_kb, own_kh, own_km, own_vb, own_vh,
                  own_vm, own_sb, own_sn, own_sm, own_bb, own_bh, own_bn, own_bm, other_kb, other_kh, other_km,
                  other_vb, other_vh, other_vm, other_sb, other_sn, other_sm, other_bb, other_bh, other_bn, other_bm,
                  scale, E: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr,
                  OWN_BIASED: tl.constexpr, OTHER_BIASED: tl.constexpr):  # fmt: skip
    """Program (i, b, h): queries from i · BLOCK_N on, of dialogue b and head h. Strides are in elements."""
    batch, head = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_E)
    inside = (row < count)[:, None] & (column < E)[None, :]
    at = query + batch * query_b + head * query_h + row[:, None] * query_n + column[None, :]
    tile = tl.load(at, mask=inside, other=0.0)
    intra, own_seen = attend(tile, own_keys + batch * own_kb + head * own_kh,
                             own_values + batch * own_vb + head * own_vh, own_visible + batch * own_sb,
                             own_bias + batch * own_bb + head * own_bh, count, own_slots, own_km, own_vm, own_sn,
                             own_sm, own_bn, own_bm, scale, E, BLOCK_N, BLOCK_M, BLOCK_E, OWN_BIASED)  # fmt: skip
    at = cross + batch * cross_b + head * cross_h + row[:, None] * cross_n + column[None, :]
    tile = tl.load(at, mask=inside, other=0.0)
    inter, other_seen = attend(tile, other_keys + batch * other_kb + head * other_kh,
                               other_values + batch * other_vb + head * other_vh, other_visible + batch * other_sb,
                               other_bias + batch * other_bb + head * other_bh, count, other_slots, other_km, other_vm,
                               other_sn, other_sm, other_bn, other_bm, scale, E, BLOCK_N, BLOCK_M, BLOCK_E,
                               OTHER_BIASED)  # fmt: skip
    answer = mix(intra, inter, tile, own_seen, other_seen, w_r + head * 2 * E, b_r + head, w_g + head * 2 * E * E,
                   b_g + head * E, E, BLOCK_E)  # fmt: skip
    at = out + batch * out_b + head * out_h + row[:, None] * out_n + column[None, :]
    tl.store(at, answer.to(out.dtype.element_ty), mask=inside)


class Gate(torch.autograd.Function):
    """The kernel in the forward pass, the gradient of the reference in the backward pass."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor | None) -> Tensor:
        """Run the kernel. Inputs: query, cross query, four tensors of each memory, four weights."""
        ctx.save_for_backward(*inputs)
        return launch(*_group(inputs))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the reference again with a graph, in float32 because the kernel sums in float32."""
        (grad,) = grads
        wanted = ctx.needs_input_grad
        with torch.enable_grad(), torch.autocast(grad.device.type, enabled=False):
            inputs = [
                x if x is None else (x.float() if x.is_floating_point() else x).detach().requires_grad_(need)
                for x, need in zip(ctx.saved_tensors, wanted)
            ]
            result = bimodal_attention_gate(*_group(inputs))
        gradients = iter(
            torch.autograd.grad(result, [x for x, need in zip(inputs, wanted) if x is not None and need], grad.float(),
                                allow_unused=True)
        )  # fmt: skip
        return tuple(
            None if not need or (g := next(gradients)) is None else g.to(x.dtype)
            for x, need in zip(ctx.saved_tensors, wanted)
        )


def gate(query: Tensor, cross_query: Tensor, own: Memory, other: Memory, weights: GateWeights) -> Tensor:
    """Compute `kernels.reference.bimodal_attention_gate` in one launch, with a gradient.

    Raises:
        ValueError: see `check_inputs`.
    """
    check_inputs(query, cross_query, own, other, weights)
    result: Tensor = Gate.apply(query, cross_query, *own, *other, *weights)  # type: ignore[no-untyped-call]
    return result


def _group(inputs: Any) -> tuple[Tensor, Tensor, Memory, Memory, GateWeights]:
    return inputs[0], inputs[1], Memory(*inputs[2:6]), Memory(*inputs[6:10]), GateWeights(*inputs[10:])


def check_inputs(
    query: Tensor, cross_query: Tensor, own: Memory, other: Memory, weights: GateWeights
) -> None:  # fmt: skip
    """Check everything that would make the kernel read wrong memory, except for shapes.

    Raises:
        ValueError: a dtype, a device, a head width or a last stride does not fit.
    """
    limits = MAX_HEAD_WIDTH
    if query.shape[-1] > limits.get(query.dtype, 0):
        raise ValueError(f"{query.dtype} heads of {query.shape[-1]} came; the sequence kernel takes up to {limits}")
    if own.visible.dtype != torch.bool or other.visible.dtype != torch.bool:
        raise ValueError(f"visible is {own.visible.dtype} and {other.visible.dtype}; it has to be torch.bool")
    for tensor in (query, cross_query, *own[:2], *other[:2], *weights):
        if tensor.dtype != query.dtype or tensor.device != query.device or tensor.stride(-1) != 1:
            raise ValueError(
                f"a tensor is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device} with strides {tensor.stride()}; "
                f"the sequence kernel takes {query.dtype} on {query.device} whose last stride is 1"
            )


def launch(query: Tensor, cross_query: Tensor, own: Memory, other: Memory, weights: GateWeights) -> Tensor:
    """Launch the kernel on checked inputs: (B, H, N, e) -> (B, H, N, e)."""
    batch, heads, count, e = query.shape
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    if not out.numel():
        return out
    tensors, strides = [], []
    for memory in (own, other):
        slots = memory.keys.shape[2]
        visible = memory.visible.expand(batch, count, slots)
        bias = visible if memory.bias is None else memory.bias.expand(batch, heads, count, slots)
        tensors += [memory.keys, memory.values, visible.view(torch.uint8), bias]
        strides += [*memory.keys.stride()[:3], *memory.values.stride()[:3], *visible.stride(),
                    *((0, 0, 0, 0) if memory.bias is None else bias.stride())]  # fmt: skip
    single = query.dtype == torch.float32
    queries = min(32 if single or e > 64 else 64, tile_size(count))
    with torch.cuda.device_of(query):
        gate_sequence[(triton.cdiv(count, queries), batch, heads)](
            query, cross_query, out, *tensors, *weights, count, own.keys.shape[2], other.keys.shape[2],
            *query.stride()[:3], *cross_query.stride()[:3], *out.stride()[:3], *strides, e**-0.5, E=e, BLOCK_N=queries,
            BLOCK_M=min(SLOTS, tile_size(max(own.keys.shape[2], other.keys.shape[2]))), BLOCK_E=tile_size(e),
            OWN_BIASED=own.bias is not None, OTHER_BIASED=other.bias is not None, num_warps=8,
        )  # fmt: skip
    return out
