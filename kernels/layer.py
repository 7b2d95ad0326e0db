"""The dialogue scope of one new turn, except for its gate: the kernels that a GPU back end launches for a turn.

`keep` writes the turns that were committed since the last launch into their rings, for all L layers at once. A fusion
layer takes three launches: `project` computes queries, keys and values of both modalities; kernels/step.py computes the
gate; `finish` computes x ← LN(x + W_o gate), x ← LN(x + FFN(x)). `head` computes logits of both modalities' states.
Each modality and conversation has one query. That is little arithmetic, so the number of launches matters. Whether
three are few enough has not been measured on a GPU: `finish` reads a modality's weights through one multiprocessor.

Inputs are float32, float16 or bfloat16; sums, norms and GELU are float32. States may be float32 with weights in half
precision. The reference is `training.layers.FusionLayer`. The rings of P conversations have the layout
(P, L, W, 2, H, e).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.common import dot, tile_size
from kernels.ring import Ring, Step, StepWeights
from kernels.step import TILE, step

CHUNK = 64  # of the inner axis of `project` and of its outputs
# Of `finish`: 16 in float32, else 32. Its tiles then fit into 48 KB of shared memory up to d = 256.
FINISH_CHUNK = {torch.float32: 16}
HEAD_CHUNK = 32  # of the inner axes of `head`
PROJECT_WARPS, FINISH_WARPS, KEEP_WARPS, HEAD_WARPS = 4, 8, 4, 4
MAX_LABELS = 32
EPSILON = tl.constexpr(1e-5)  # of LayerNorm
MAX_WIDTH = 512  # of the model: a tile holds a complete row of its states


class LayerWeights(NamedTuple):
    """Weights of a layer, of both modalities.

    Shapes: project (2, 4d, d) for q, q', key and value, and its bias (2, 4d); out (2, d, d); norm and shift (2, d);
    up (2, 2d, d) and down (2, d, 2d) with their biases; feed_norm and feed_shift (2, d); and the weights of the gate.
    """

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
    """Program (i, j, m): outputs from j · CHUNK on, of the 4d, of modality m of TILE conversations.

    Outputs 0 to 2d − 1 are q and q' and go to `asks`; outputs 2d to 4d − 1 are key and value and go to `news`.
    """
    modality = tl.program_id(2)
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    output, inner = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK), tl.arange(0, CHUNK)
    total = tl.zeros((TILE, CHUNK), tl.float32)
    for start in range(0, D, CHUNK):
        k = start + inner
        x = tl.load(states + row[:, None] * (2 * D) + modality * D + k[None, :],
                    mask=(row < batch)[:, None] & (k < D)[None, :], other=0.0)  # fmt: skip
        w = tl.load(weight + modality * (4 * D * D) + output[None, :] * D + k[:, None],
                    mask=(output < 4 * D)[None, :] & (k < D)[:, None], other=0.0)  # fmt: skip
        total = dot(x.to(w.dtype), w, total)
    total += tl.load(bias + modality * (4 * D) + output, mask=output < 4 * D, other=0.0).to(tl.float32)[None, :]
    at = row[:, None] * (4 * D) + modality * (2 * D) + (output % (2 * D))[None, :]
    real = (row < batch)[:, None]
    tl.store(asks + at, total.to(asks.dtype.element_ty), mask=real & (output < 2 * D)[None, :])
    tl.store(news + at, total.to(news.dtype.element_ty), mask=real & ((output >= 2 * D) & (output < 4 * D))[None, :])


@triton.jit
def _layer_norm(x, weight, bias, at, real, D: tl.constexpr):
    """LayerNorm of rows (TILE, BLOCK_D), of which `real` columns count."""
    mean = tl.sum(tl.where(real[None, :], x, 0.0), 1) / D
    centred = tl.where(real[None, :], x - mean[:, None], 0.0)
    scaled = centred * tl.rsqrt(tl.sum(centred * centred, 1) / D + EPSILON)[:, None]
    gain = tl.load(weight + at, mask=real, other=0.0).to(tl.float32)
    return scaled * gain[None, :] + tl.load(bias + at, mask=real, other=0.0).to(tl.float32)[None, :]


@triton.jit
def finish(states, answers, result, w_out, b_out, norm, shift, w_up, b_up, w_down, b_down, feed_norm, feed_shift, batch,
           D: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Program (i, m): modality m of TILE conversations, from the gate's output to the layer's result."""
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
    state = _layer_norm(total, norm, shift, at, real, D)
    # The next products need parts of `state` along its last axis, and registers cannot be sliced: go through memory.
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
    normed = _layer_norm(state + fed, feed_norm, feed_shift, at, real, D)
    tl.debug_barrier()  # every warp has read the values that are overwritten now
    tl.store(result + own + column[None, :], normed.to(result.dtype.element_ty), mask=inside)


@triton.jit
def keep(kept, rows, places, keys, values, step_row, W: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):
    """Program (b, l): write layer l's keys and values into conversation b's slot; slot −1 writes nothing."""
    b, at_layer = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, BLOCK)
    place = tl.load(places + b)
    inside = (column < 2 * D) & (place + 0 * column >= 0)
    modality, rest = column // D, column % D
    source = kept + (at_layer * tl.num_programs(0) + b) * (4 * D) + modality * (2 * D) + rest
    target = tl.load(rows + b).to(tl.int64) * step_row + (at_layer * W + place) * (2 * D) + column
    tl.store(keys + target, tl.load(source, mask=inside, other=0.0), mask=inside)
    tl.store(values + target, tl.load(source + D, mask=inside, other=0.0), mask=inside)


@triton.jit
def head(states, up, up_bias, down, down_bias, logits, batch, labels, D: tl.constexpr, BLOCK_L: tl.constexpr,
         CHUNK: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Program i: logits (TILE, labels) of the conversations from i · TILE on, from states (B, 2 D)."""
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inner, label = tl.arange(0, CHUNK), tl.arange(0, BLOCK_L)
    total = tl.zeros((TILE, BLOCK_L), tl.float32)
    for first in range(0, D, CHUNK):
        column = first + inner
        hidden = tl.zeros((TILE, CHUNK), tl.float32)
        for start in range(0, 2 * D, CHUNK):
            k = start + inner
            x = tl.load(states + row[:, None] * (2 * D) + k[None, :],
                        mask=(row < batch)[:, None] & (k < 2 * D)[None, :], other=0.0)  # fmt: skip
            w = tl.load(up + column[None, :] * (2 * D) + k[:, None],
                        mask=(column < D)[None, :] & (k < 2 * D)[:, None], other=0.0)  # fmt: skip
            hidden = dot(x.to(w.dtype), w, hidden)
        hidden += tl.load(up_bias + column, mask=column < D, other=0.0).to(tl.float32)[None, :]
        hidden = 0.5 * hidden * (1 + tl.erf(hidden * 0.7071067811865476))
        w = tl.load(down + label[None, :] * D + column[:, None], mask=(label < labels)[None, :] & (column < D)[:, None],
                    other=0.0)  # fmt: skip
        total = dot(hidden.to(w.dtype), w, total)
    total += tl.load(down_bias + label, mask=label < labels, other=0.0).to(tl.float32)[None, :]
    tl.store(logits + row[:, None] * labels + label[None, :], total,
             mask=(row < batch)[:, None] & (label < labels)[None, :])  # fmt: skip


def project_constants(d: int) -> dict[str, int]:
    """Compile-time constants of `project`."""
    return {"D": d, "CHUNK": CHUNK, "TILE": TILE}


def finish_constants(d: int, dtype: torch.dtype) -> dict[str, int]:
    """Compile-time constants of `finish`."""
    return {"D": d, "BLOCK_D": tile_size(d), "CHUNK": FINISH_CHUNK.get(dtype, 32), "TILE": TILE}


def head_constants(d: int) -> dict[str, int]:
    """Compile-time constants of `head`."""
    return {"D": d, "BLOCK_L": MAX_LABELS, "CHUNK": HEAD_CHUNK, "TILE": TILE}


def keep_constants(window: int, d: int) -> dict[str, int]:
    """Compile-time constants of `keep`."""
    return {"W": window, "D": d, "BLOCK": tile_size(2 * d)}


def layer(states: Tensor, inputs: Step, ring: Ring, weights: LayerWeights, store: bool = False) -> Tensor:
    """Compute one fusion layer for one new turn of each of B conversations in three launches: (B, 2, d) -> (B, 2, d).

    Args:
        states: of both modalities, contiguous.
        inputs: rows, turns and slots of the conversations. Its `asks` and `news` are outputs of `project`.
        ring: of the layer.
        weights: of the layer.
        store: write the new keys and values into the ring.
    """
    batch, _, d = states.shape
    tiles = triton.cdiv(batch, TILE)
    with torch.cuda.device_of(states):
        project[(tiles, triton.cdiv(4 * d, CHUNK), 2)](
            states, weights.project, weights.project_bias, inputs.asks, inputs.news, batch, **project_constants(d),
            num_warps=PROJECT_WARPS,
        )  # fmt: skip
        answers = step(inputs, ring, weights.gate, store)
        result = torch.empty_like(states)
        finish[(tiles, 2)](
            states, answers, result, *weights[2:12], batch, **finish_constants(d, weights.project.dtype),
            num_warps=FINISH_WARPS,
        )  # fmt: skip
    return result


def layer_weights(fusion: Any, bias: Any, dtype: torch.dtype) -> LayerWeights:
    """Weights of a `training.layers.FusionLayer` without ablations and of its `OrderBias`; the bias stays float32."""

    def both(*names: str) -> Tensor:
        halves = [torch.cat([half.get_parameter(name).detach() for name in names]) for half in fusion.halves]
        return torch.stack(halves).to(dtype).contiguous()

    project = (both("queries.weight", "key_value.weight"), both("queries.bias", "key_value.bias"))
    gate = StepWeights(bias.table.detach().float().contiguous(), *map(both, StepWeights._fields[1:]))
    parts = [
        f"{name}.{kind}" for name in ("out", "norm", "feed.0", "feed.3", "feed_norm") for kind in ("weight", "bias")
    ]
    return LayerWeights._make((*project, *map(both, parts), gate))
