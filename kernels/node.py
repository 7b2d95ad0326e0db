"""The exported node `hbaf_edge::BimodalAttentionGate` as one Triton launch, for the TensorRT plugin.

Arguments have the order that TensorRT gives a plugin: all inputs in the node's order (kernels/gate.py), sizes, outputs.
Tensors are contiguous: strides follow from the sizes, and an axis of length 1 is broadcast. Gates are float32 in every
precision of a bundle.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hbaf_edge.backends.cuda import plugin
from kernels.common import mix, tile_size
from kernels.sequence import attend

SLOTS, WARPS = 32, 4  # of a program; the dialogue scope has one query, the utterance scope a few hundred
BROADCAST = ("seen_n", "bias_b", "bias_h", "bias_n", "bias_m")  # sizes that may be 1 where the tensor is broadcast
SIZES = tuple(f"{m}_{name}" for m in ("audio", "text") for name in ("count", "slots", *BROADCAST))


@triton.jit
def _attend(query, keys, values, visible, bias, count, slots, seen_n, bias_b, bias_h, bias_n, bias_m, H: tl.constexpr,
            SCALE: tl.constexpr, E: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
            BLOCK_E: tl.constexpr):  # fmt: skip
    """Call `attend` for `count` queries with the strides of contiguous tensors."""
    batch, head = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64) % H
    dense = (batch * H + head) * slots * E
    bias += tl.where(bias_b > 1, batch, 0) * (bias_h * bias_n * bias_m) + tl.where(bias_h > 1, head, 0) * (
        bias_n * bias_m
    )
    return attend(query, keys + dense, values + dense, visible + batch * (seen_n * slots), bias, count, slots, E, E,
                  tl.where(seen_n > 1, slots, 0), 1, tl.where(bias_n > 1, bias_m, 0), tl.where(bias_m > 1, 1, 0), SCALE,
                  E, BLOCK_N, BLOCK_M, BLOCK_E, True)  # fmt: skip


@triton.jit
def _half(query, cross, out, own_keys, own_values, own_visible, own_bias, other_keys, other_values, other_visible,
          other_bias, w_r, b_r, w_g, b_g, count, own_slots, own_n, own_bb, own_bh, own_bn, own_bm, other_slots, other_n,
          other_bb, other_bh, other_bn, other_bm, H: tl.constexpr, SCALE: tl.constexpr, E: tl.constexpr,
          BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr):  # fmt: skip
    """The gate of one modality."""
    batch, head = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64) % H
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_E)
    inside = (row < count)[:, None] & (column < E)[None, :]
    at = (batch * H + head) * (count * E) + row[:, None] * E + column[None, :]
    tile = tl.load(query + at, mask=inside, other=0.0)
    intra, own_seen = _attend(tile, own_keys, own_values, own_visible, own_bias, count, own_slots, own_n, own_bb,
                              own_bh, own_bn, own_bm, H, SCALE, E, BLOCK_N, BLOCK_M, BLOCK_E)  # fmt: skip
    tile = tl.load(cross + at, mask=inside, other=0.0)
    inter, other_seen = _attend(tile, other_keys, other_values, other_visible, other_bias, count, other_slots, other_n,
                                other_bb, other_bh, other_bn, other_bm, H, SCALE, E, BLOCK_N, BLOCK_M,
                                BLOCK_E)  # fmt: skip
    answer = mix(intra, inter, tile, own_seen, other_seen, w_r + head * 2 * E, b_r + head, w_g + head * 2 * E * E,
                   b_g + head * E, E, BLOCK_E)  # fmt: skip
    tl.store(out + at, answer.to(out.dtype.element_ty), mask=inside)


@triton.jit
def gate_node(audio_query, audio_cross_query, audio_keys, audio_values, audio_visible, audio_bias, audio_w_r, audio_b_r,
              audio_w_g, audio_b_g, text_query, text_cross_query, text_keys, text_values, text_visible, text_bias,
              text_w_r, text_b_r, text_w_g, text_b_g, audio_count, audio_slots, audio_seen_n, audio_bias_b,
              audio_bias_h, audio_bias_n, audio_bias_m, text_count, text_slots, text_seen_n, text_bias_b, text_bias_h,
              text_bias_n, text_bias_m, audio, text, H: tl.constexpr, E: tl.constexpr, SCALE: tl.constexpr,
              BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr):  # fmt: skip
    """Program (i, b, m · H + h): queries from i · BLOCK_N on, of dialogue b, modality m, head h."""
    if tl.program_id(2) < H:
        _half(audio_query, audio_cross_query, audio, audio_keys, audio_values, audio_visible, audio_bias, text_keys,
              text_values, text_visible, text_bias, audio_w_r, audio_b_r, audio_w_g, audio_b_g, audio_count,
              audio_slots, audio_seen_n, audio_bias_b, audio_bias_h, audio_bias_n, audio_bias_m, text_slots,
              text_seen_n, text_bias_b, text_bias_h, text_bias_n, text_bias_m, H, SCALE, E, BLOCK_N, BLOCK_M,
              BLOCK_E)  # fmt: skip
    else:
        _half(text_query, text_cross_query, text, text_keys, text_values, text_visible, text_bias, audio_keys,
              audio_values, audio_visible, audio_bias, text_w_r, text_b_r, text_w_g, text_b_g, text_count, text_slots,
              text_seen_n, text_bias_b, text_bias_h, text_bias_n, text_bias_m, audio_slots, audio_seen_n, audio_bias_b,
              audio_bias_h, audio_bias_n, audio_bias_m, H, SCALE, E, BLOCK_N, BLOCK_M, BLOCK_E)  # fmt: skip


def constants(heads: int, e: int) -> dict[str, float]:
    """Compile-time constants of `gate_node`."""
    return {"H": heads, "E": e, "SCALE": e**-0.5, "BLOCK_N": plugin.QUERIES, "BLOCK_M": SLOTS, "BLOCK_E": tile_size(e)}


def node(inputs: list[Tensor]) -> list[Tensor]:
    """Compute the node of contiguous float32 inputs in one launch, as the plugin does."""
    shapes = [tuple(x.shape) for x in inputs]
    heads, e = shapes[0][1], shapes[0][3]
    out = [torch.empty_like(inputs[i]) for i in (plugin.QUERY, plugin.PER_MODALITY + plugin.QUERY)]
    arguments = [x.view(torch.uint8) if x.dtype == torch.bool else x for x in inputs]
    with torch.cuda.device_of(inputs[0]):
        gate_node[plugin.launch_grid(shapes)](
            *arguments, *plugin.kernel_sizes(shapes), *out, **constants(heads, e), num_warps=WARPS,
        )  # fmt: skip
    return out
