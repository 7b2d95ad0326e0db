"""Code that the Triton kernels share: tile products, and the relevance and gate that every kernel ends with."""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl

# Triton's interpreter multiplies the bit patterns of bfloat16. float32 holds their products exactly, so it casts first.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
MASKED_SCORE = tl.constexpr(-1.0e30)  # score of a masked key; finite, so that a difference of two is a number
# Largest head width by dtype: a program holds a gate's weights as square tiles.
MAX_HEAD_WIDTH = {torch.float32: 64, torch.float16: 128, torch.bfloat16: 128}


@triton.jit
def dot(a, b, acc):
    """acc + a b, summed in float32; float32 factors are not rounded to a shorter format (no TF32)."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc=acc, input_precision="ieee")


@triton.jit
def loop_end(count):
    """The end of a loop. When interpreted, `count` is an array of length 1, which Triton 3.6 with NumPy 2.4 rejects."""
    return count.handle.data.item() if INTERPRETED else count


@triton.jit
def mix(intra, inter, cross, own_seen, other_seen, w_r, b_r, w_g, b_g, E: tl.constexpr, BLOCK_E: tl.constexpr):
    """Mix the attention results of both memories, (rows, E) float32 each, by relevance and gate of one head.

    `cross` is q' as it was loaded. `own_seen` and `other_seen` say for each row whether a memory has a visible key.
    The weights are pointers to those of the head.
    """
    column = tl.arange(0, BLOCK_E)
    real = column < E
    of_query = tl.load(w_r + column, mask=real, other=0.0).to(tl.float32)
    of_answer = tl.load(w_r + E + column, mask=real, other=0.0).to(tl.float32)
    r = tl.sum(cross.to(tl.float32) * of_query[None, :] + inter * of_answer[None, :], 1) + tl.load(b_r).to(tl.float32)
    inter = inter * tl.sigmoid(r)[:, None]
    at = w_g + column[None, :] * (2 * E) + column[:, None]  # (e, 2e) read as (in, out)
    square = real[:, None] & real[None, :]
    of_intra = tl.load(at, mask=square, other=0.0)
    of_inter = tl.load(at + E, mask=square, other=0.0)
    g = dot(intra.to(of_intra.dtype), of_intra, tl.zeros(intra.shape, tl.float32))
    g = dot(inter.to(of_inter.dtype), of_inter, g)
    g = tl.sigmoid(g + tl.load(b_g + column, mask=real, other=0.0).to(tl.float32)[None, :])
    g = tl.where(own_seen[:, None], tl.where(other_seen[:, None], g, 0.0), 1.0)
    return g * inter + (1 - g) * intra


def tile_size(size: int) -> int:
    """The smallest power of two that is at least `size` and at least 16, which tensor cores need.

    >>> tile_size(5), tile_size(33)
    (16, 64)
    """
    return max(16, int(triton.next_power_of_2(size)))
