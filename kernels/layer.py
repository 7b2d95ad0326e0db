"""A whole fusion layer of the incremental step in three Triton launches: projections, gate, then all that follows.

The dialogue scope computes one query for each modality and conversation: little arithmetic, so that launches count.
Whether three are enough is not measured on a GPU yet: `finish` reads a modality's weights through one multiprocessor.
`project` makes queries, keys and values of both modalities; kernels/step.py answers; `finish` is
x ← LN(x + W_o answer), x ← LN(x + FFN(x)). Inputs are float32, float16 or bfloat16; sums, norms and GELU are float32.
`training.layers.FusionLayer` says what is computed. States may be float32 beside weights in half precision.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.parts import dot, tile
from kernels.ring import Ring, Step, StepWeights
from kernels.step import TILE, check, step

CHUNK = 64  # of a projection's inner axis and of its outputs
NARROW = {torch.float32: 16}  # of `finish`, 32 in half precision: up to d = 256 its tiles take 48 KB of shared memory
PROJECT_WARPS, FINISH_WARPS = 4, 8
EPSILON = tl.constexpr(1e-5)  # of the norms
WIDEST = 512  # model; a tile holds a whole row of it


class LayerWeights(NamedTuple):
    """Both modalities' weights of a layer. Shapes: project (2, 4d, d) for q, q', key and value, with its bias (2, 4d);
    out (2, d, d), norm and shift (2, d); up (2, 2d, d), down (2, d, 2d) with theirs; feed_norm, feed_shift (2, d); and
    the gate's."""

    project: Tensor
    project_bias: Tensor
    out: Tensor
    out_bias: Tensor
    norm: Tensor
    shift: Tensor
    up: Tensor
    up_bias: Tensor
    down: Tensor
    down_bias: Tensor
    feed_norm: Tensor
    feed_shift: Tensor
    gate: StepWeights


@triton.jit
def project(states, weight, bias, asks, news, batch, D: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr):
    """Program (i, j, m): outputs j · CHUNK and on, of the 4d, of modality m of TILE conversations."""
    modality = tl.program_id(2)
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    made, inner = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK), tl.arange(0, CHUNK)
    total = tl.zeros((TILE, CHUNK), tl.float32)
    for start in range(0, D, CHUNK):
        k = start + inner
        x = tl.load(states + row[:, None] * (2 * D) + modality * D + k[None, :],
                    mask=(row < batch)[:, None] & (k < D)[None, :], other=0.0)  # fmt: skip
        w = tl.load(weight + modality * (4 * D * D) + made[None, :] * D + k[:, None],
                    mask=(made < 4 * D)[None, :] & (k < D)[:, None], other=0.0)  # fmt: skip
        total = dot(x.to(w.dtype), w, total)
    total += tl.load(bias + modality * (4 * D) + made, mask=made < 4 * D, other=0.0).to(tl.float32)[None, :]
    at = row[:, None] * (4 * D) + modality * (2 * D) + (made % (2 * D))[None, :]
    real = (row < batch)[:, None]
    tl.store(asks + at, total.to(asks.dtype.element_ty), mask=real & (made < 2 * D)[None, :])
    tl.store(news + at, total.to(news.dtype.element_ty), mask=real & ((made >= 2 * D) & (made < 4 * D))[None, :])


@triton.jit
def _normed(x, weight, bias, at, real, D: tl.constexpr):
    """LayerNorm over rows (TILE, D padded)."""
    mean = tl.sum(tl.where(real[None, :], x, 0.0), 1) / D
    centred = tl.where(real[None, :], x - mean[:, None], 0.0)
    scaled = centred * tl.rsqrt(tl.sum(centred * centred, 1) / D + EPSILON)[:, None]
    gain = tl.load(weight + at, mask=real, other=0.0).to(tl.float32)
    return scaled * gain[None, :] + tl.load(bias + at, mask=real, other=0.0).to(tl.float32)[None, :]


@triton.jit
def finish(states, answers, result, w_out, b_out, norm, shift, w_up, b_up, w_down, b_down, feed_norm, feed_shift, batch,
           D: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Program (i, m): modality m of TILE conversations, from the gate's answers to the layer's result."""
    modality = tl.program_id(1)
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    column, inner = tl.arange(0, BLOCK_D), tl.arange(0, CHUNK)
    real = column < D
    own = row[:, None] * (2 * D) + modality * D
    inside = (row < batch)[:, None] & real[None, :]
    total = tl.zeros((TILE, BLOCK_D), tl.float32)
    for start in range(0, D, CHUNK):
        k = start + inner
        x = tl.load(answers + own + k[None, :], mask=(row < batch)[:, None] & (k < D)[None, :], other=0.0)
        w = tl.load(w_out + modality * (D * D) + column[None, :] * D + k[:, None],
                    mask=real[None, :] & (k < D)[:, None], other=0.0)  # fmt: skip
        total = dot(x, w, total)
    at = modality * D + column
    total += tl.load(b_out + at, mask=real, other=0.0).to(tl.float32)[None, :]
    total += tl.load(states + own + column[None, :], mask=inside, other=0.0).to(tl.float32)
    state = _normed(total, norm, shift, at, real, D)
    # The next products take it in parts along its last axis, which registers cannot be cut along: through memory.
    tl.store(result + own + column[None, :], state.to(result.dtype.element_ty), mask=inside)
    tl.debug_barrier()
    fed = tl.zeros((TILE, BLOCK_D), tl.float32)
    for first in range(0, 2 * D, CHUNK):
        hidden = first + inner
        up = tl.zeros((TILE, CHUNK), tl.float32)
        for start in range(0, D, CHUNK):
            k = start + inner
            x = tl.load(result + own + k[None, :], mask=(row < batch)[:, None] & (k < D)[None, :], other=0.0)
            w = tl.load(w_up + modality * (2 * D * D) + hidden[None, :] * D + k[:, None],
                        mask=(hidden < 2 * D)[None, :] & (k < D)[:, None], other=0.0)  # fmt: skip
            up = dot(x.to(w.dtype), w, up)
        up += tl.load(b_up + modality * (2 * D) + hidden, mask=hidden < 2 * D, other=0.0).to(tl.float32)[None, :]
        up = 0.5 * up * (1 + tl.erf(up * 0.7071067811865476))
        w = tl.load(w_down + modality * (2 * D * D) + column[None, :] * (2 * D) + hidden[:, None],
                    mask=real[None, :] & (hidden < 2 * D)[:, None], other=0.0)  # fmt: skip
        fed = dot(up.to(w.dtype), w, fed)
    fed += tl.load(b_down + at, mask=real, other=0.0).to(tl.float32)[None, :]
    found = _normed(state + fed, feed_norm, feed_shift, at, real, D)
    tl.debug_barrier()  # every warp has read what is overwritten now
    tl.store(result + own + column[None, :], found.to(result.dtype.element_ty), mask=inside)


def project_constants(d: int) -> dict[str, int]:
    """`project`'s compile-time constants."""
    return {"D": d, "CHUNK": CHUNK, "TILE": TILE}


def finish_constants(d: int, dtype: torch.dtype) -> dict[str, int]:
    """`finish`'s compile-time constants."""
    return {"D": d, "BLOCK_D": tile(d), "CHUNK": NARROW.get(dtype, 32), "TILE": TILE}


def layer(states: Tensor, given: Step, ring: Ring, weights: LayerWeights, store: bool = False) -> Tensor:
    """One fusion layer for one new turn of each of B conversations: (B, 2, d) -> (B, 2, d), in three launches.

    Args:
        states: of both modalities, contiguous.
        given: which conversations and slots; its `asks` and `news` are filled here, with what `project` makes.
        ring: the layer's.
        weights: the layer's.
        store: whether new keys and values enter the ring.

    Raises:
        ValueError: the model is too wide, or an input is not what the kernels read.
    """
    batch, _, d = states.shape
    dtype = weights.project.dtype
    sizes = (batch, 2, 2, weights.gate.b_r.shape[1], weights.gate.b_g.shape[2])
    shapes = ((4 * d, d), (4 * d,), (d, d), (d,), (d,), (d,), (2 * d, d), (2 * d,), (d, 2 * d), (d,), (d,), (d,))
    tensors: list[Tensor] = list(weights[:12])
    for name, tensor, shape in zip(LayerWeights._fields, tensors, shapes):
        if tensor.shape != (2, *shape) or tensor.dtype != dtype or not tensor.is_contiguous():
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}; a layer takes contiguous {dtype} "
                             f"{(2, *shape)} beside states {tuple(states.shape)}")  # fmt: skip
    if given.asks.shape != sizes or sizes[3] * sizes[4] != d:
        raise ValueError(f"asks are {tuple(given.asks.shape)}; states of {tuple(states.shape)} take {sizes}")
    check(given, ring, weights.gate)
    if d > WIDEST or not states.is_contiguous() or states.dtype not in (dtype, torch.float32):
        raise ValueError(
            f"states are {states.dtype} {tuple(states.shape)}{'' if states.is_contiguous() else ', not contiguous'}, "
            f"weights {dtype}; a layer takes contiguous (B, 2, d) of its weights' dtype or float32, d up to {WIDEST}"
        )
    tiles = triton.cdiv(batch, TILE)
    with torch.cuda.device_of(states):
        project[(tiles, triton.cdiv(4 * d, CHUNK), 2)](
            states, weights.project, weights.project_bias, given.asks, given.news, batch, **project_constants(d),
            num_warps=PROJECT_WARPS,
        )  # fmt: skip
        answers = step(given, ring, weights.gate, store)
        result = torch.empty_like(states)
        finish[(tiles, 2)](
            states, answers, result, *weights[2:12], batch, **finish_constants(d, dtype), num_warps=FINISH_WARPS,
        )  # fmt: skip
    return result


def weights_of(fusion: Any, bias: Any, dtype: torch.dtype) -> LayerWeights:
    """Of a `training.layers.FusionLayer` and its `OrderBias`, in a dtype; the bias stays float32.

    Raises:
        ValueError: it is an ablation.
    """
    halves = list(fusion.halves)
    c = halves[0].config
    if not (c.gate and c.relevance and c.residual):
        raise ValueError(
            "a layer without gate, relevance or residual (ablations) is another function: it has no kernel"
        )

    def both(pick: Any) -> Tensor:
        return torch.stack([pick(half).detach() for half in halves]).to(dtype).contiguous()

    def joined(name: str) -> Tensor:
        return both(lambda half: torch.cat([getattr(half.queries, name), getattr(half.key_value, name)]))

    table = bias.table.detach().float().contiguous()
    gate = StepWeights(table, *(both(lambda half, name=name: getattr(half, name)) for name in StepWeights._fields[1:]))
    return LayerWeights(
        joined("weight"), joined("bias"), both(lambda h: h.out.weight), both(lambda h: h.out.bias),
        both(lambda h: h.norm.weight), both(lambda h: h.norm.bias), both(lambda h: h.feed[0].weight),
        both(lambda h: h.feed[0].bias), both(lambda h: h.feed[3].weight), both(lambda h: h.feed[3].bias),
        both(lambda h: h.feed_norm.weight), both(lambda h: h.feed_norm.bias), gate,
    )  # fmt: skip
