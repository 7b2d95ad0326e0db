"""The incremental gate as one Triton launch: every head, both modalities, a batch of conversations.

For each modality, two queries attend to a ring of W keys: q of the modality itself and q' of the other one. The kernel
reads the ring in place, by row and slot. It gathers, concatenates and copies nothing, and reads each key once for both
queries. Distance and bias follow from the turn's number. With `store`, the kernel also writes the new key and value
into the ring. Inputs are float32, float16 or bfloat16; all sums are float32. The reference is
`kernels.ring.step_reference`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.common import MASKED_SCORE, MAX_HEAD_WIDTH, dot, mix, tile_size
from kernels.ring import Ring, Step, StepWeights

MAX_WINDOW = 128  # slots that fit in one tile
_HEADS = ", ".join(f"{width} in {dtype}" for dtype, width in MAX_HEAD_WIDTH.items())
LIMITS = f"windows up to {MAX_WINDOW} and heads up to {_HEADS}"
TILE = 16  # rows of a tile; tensor cores need at least 16
# From this batch size on, TILE conversations share a program, so that it reads a gate's weights once for all of them.
LARGE_BATCH = 128


@triton.jit
def _attend_ring(query, cross, memory, first, batch, rows, turns, slots, head, W: tl.constexpr, H: tl.constexpr,
                 E: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_E: tl.constexpr, ROWS: tl.constexpr,
                 BIT: tl.constexpr):  # fmt: skip
    """Attention of all rows' queries (TILE, E), own and cross, to one modality; and whether a key was visible.

    Row r attends only to its own conversation's ring, which is read once for both queries.

    A slot's mark is a byte: bit 0 says that audio is present, bit 1 that text is, and the bits above hold the relation
    of the slot's speaker to the new turn's. BIT selects the modality. Mark 9 = 0b1001: audio only, relation 2.
    """
    keys, values, news, nows, table, step_row, scale = memory
    line = tl.arange(0, query.shape[0])
    slot, column = tl.arange(0, BLOCK_W), tl.arange(0, BLOCK_E)
    sums, cross_sums = tl.zeros(query.shape, tl.float32), tl.zeros(query.shape, tl.float32)
    top, cross_top = tl.full(line.shape, MASKED_SCORE, tl.float32), tl.full(line.shape, MASKED_SCORE, tl.float32)
    total, cross_total = tl.zeros(line.shape, tl.float32), tl.zeros(line.shape, tl.float32)
    for r in range(ROWS):
        row = first + r
        real = row < batch
        turn = tl.load(turns + row, mask=real, other=0)
        # Distance of each slot's turn, 1 to W. W = 4, turn 6: slots 0 to 3 hold turns 4, 5, 2, 3 at 2, 1, 4, 3.
        far = (turn - 1 - slot + 2 * W) % W + 1
        marks = tl.load(slots + row.to(tl.int64) * W + slot, mask=(slot < W) & (row + 0 * slot < batch), other=0).to(
            tl.int32
        )
        visible = ((marks >> BIT) & 1 > 0) & (far < W) & (far <= turn)
        bias = tl.load(table + tl.minimum(far, W - 1) * 3 + (marks >> 2), mask=visible, other=0.0)
        start = tl.load(rows + row, mask=real, other=0).to(tl.int64) * step_row + (BIT * H + head) * E
        at = start + slot[:, None] * (2 * H * E) + column[None, :]
        there = visible[:, None] & (column < E)[None, :]
        key = tl.load(keys + at, mask=there, other=0.0)
        value = tl.load(values + at, mask=there, other=0.0)
        sums, top, total = _add_ring(query, key, value, line == r, visible, bias, scale, sums, top, total)
        cross_sums, cross_top, cross_total = _add_ring(cross, key, value, line == r, visible, bias, scale, cross_sums,
                                                       cross_top, cross_total)  # fmt: skip
    row = first + line
    real = (row < batch) & (line < ROWS)
    mark = tl.load(nows + row, mask=real, other=0).to(tl.int32)
    now = (mark >> BIT) & 1 > 0
    at = row.to(tl.int64)[:, None] * (4 * H * E) + (2 * BIT * H + head) * E + column[None, :]
    inside = real[:, None] & (column < E)[None, :]
    key, value = tl.load(news + at, mask=inside, other=0.0), tl.load(news + at + H * E, mask=inside, other=0.0)
    bias = tl.load(table + (mark >> 2), mask=real, other=0.0)
    result = _add_new(query, key, value, now, bias, scale, sums, top, total)
    cross_result = _add_new(cross, key, value, now, bias, scale, cross_sums, cross_top, cross_total)
    return result, cross_result, now | (total > 0), key, value


@triton.jit
def _add_ring(query, key, value, mine, visible, bias, scale, sums, top, total):
    """Add one conversation's ring (W, E) to the softmax sums of its own row; all other rows keep theirs.

    `top` is the highest score so far, `total` the sum of exp(score - top), `sums` that of exp(score - top) value.
    """
    pairs = mine[:, None] & visible[None, :]
    scores = dot(query, tl.trans(key), tl.zeros(pairs.shape, tl.float32)) * scale + bias[None, :]
    scores = tl.where(pairs, scores, MASKED_SCORE)
    highest = tl.maximum(top, tl.max(scores, 1))
    weights = tl.where(pairs, tl.exp(scores - highest[:, None]), 0.0)
    update = dot(weights.to(value.dtype), value, tl.zeros(sums.shape, tl.float32))
    return tl.where(mine[:, None], update, sums), highest, total + tl.sum(weights, 1)


@triton.jit
def _add_new(query, key, value, now, bias, scale, sums, top, total):
    """Add the new turn's own key and value (TILE, E); returns the attention result, zero where no key is visible."""
    score = tl.sum(query.to(tl.float32) * key.to(tl.float32), 1) * scale + bias
    score = tl.where(now, score, MASKED_SCORE)
    highest = tl.maximum(top, score)
    before, weight = tl.exp(top - highest), tl.where(now, tl.exp(score - highest), 0.0)
    total = total * before + weight
    sums = sums * before[:, None] + weight[:, None] * tl.where(now[:, None], value.to(tl.float32), 0.0)
    return sums / tl.where(total > 0, total, 1.0)[:, None]


@triton.jit
def gate_step(asks, news, keys, values, rows, turns, slots, nows, bias, w_r, b_r, w_g, b_g, out, batch, step_row, store,
              scale, W: tl.constexpr, H: tl.constexpr, E: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_E: tl.constexpr,
              ROWS: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Program (i, h): head h of conversations i · ROWS … i · ROWS + ROWS − 1. Pointers as in kernels/ring.py."""
    first, head = tl.program_id(0) * ROWS, tl.program_id(1)
    line, column = tl.arange(0, TILE), tl.arange(0, BLOCK_E)
    row = first + line
    real = (row < batch) & (line < ROWS)
    inside = real[:, None] & (column < E)[None, :]
    at = row.to(tl.int64)[:, None] * (4 * H * E) + head * E + column[None, :]  # (B, 2, 2, H, e)
    query_a, cross_a = tl.load(asks + at, mask=inside, other=0.0), tl.load(asks + at + H * E, mask=inside, other=0.0)
    query_t = tl.load(asks + at + 2 * H * E, mask=inside, other=0.0)
    cross_t = tl.load(asks + at + 3 * H * E, mask=inside, other=0.0)
    table = bias + head * (W * 3)
    memory_a = keys, values, news, nows, table, step_row, scale
    memory_t = keys, values, news, nows, table + H * W * 3, step_row, scale
    # The text's q' attends to audio: its result is the text's inter. The same holds the other way round.
    intra_a, inter_t, seen_a, key_a, value_a = _attend_ring(
        query_a, cross_t, memory_a, first, batch, rows, turns, slots, head, W, H, E, BLOCK_W, BLOCK_E, ROWS, 0
    )
    intra_t, inter_a, seen_t, key_t, value_t = _attend_ring(
        query_t, cross_a, memory_t, first, batch, rows, turns, slots, head, W, H, E, BLOCK_W, BLOCK_E, ROWS, 1
    )
    if store:
        turn = tl.load(turns + row, mask=real, other=0)
        here = tl.load(rows + row, mask=real, other=0).to(tl.int64) * step_row + (turn % W) * (2 * H * E) + head * E
        there = here[:, None] + column[None, :]
        tl.store(keys + there, key_a, mask=inside)
        tl.store(values + there, value_a, mask=inside)
        tl.store(keys + there + H * E, key_t, mask=inside)
        tl.store(values + there + H * E, value_t, mask=inside)
    at = row.to(tl.int64)[:, None] * (2 * H * E) + head * E + column[None, :]
    w_r += head * 2 * E
    w_g += head * 2 * E * E
    answer = mix(intra_a, inter_a, cross_a, seen_a, seen_t, w_r, b_r + head, w_g, b_g + head * E, E, BLOCK_E)
    tl.store(out + at, answer.to(out.dtype.element_ty), mask=inside)
    answer = mix(intra_t, inter_t, cross_t, seen_t, seen_a, w_r + H * 2 * E, b_r + H + head, w_g + H * 2 * E * E,
                 b_g + (H + head) * E, E, BLOCK_E)  # fmt: skip
    tl.store(out + at + H * E, answer.to(out.dtype.element_ty), mask=inside)


def constants(window: int, heads: int, e: int, rows: int = 1) -> dict[str, int]:
    """Compile-time constants of the kernel for a shape."""
    return {
        "W": window,
        "H": heads,
        "E": e,
        "BLOCK_W": tile_size(window),
        "BLOCK_E": tile_size(e),
        "ROWS": rows,
        "TILE": TILE,
    }


def warps(dtype: torch.dtype, capability: int) -> int:
    """Warps of a program. Without tensor cores for a dtype a program needs more registers, so it gets more warps."""
    return 8 if dtype == torch.float32 or capability < 80 else 4


def step(inputs: Step, ring: Ring, weights: StepWeights, store: bool = False) -> Tensor:
    """Compute `kernels.ring.step_reference` in one launch; tensors are contiguous and within LIMITS."""
    batch, _, _, heads, e = inputs.asks.shape
    window = ring.keys.shape[1]
    out = torch.empty(batch, 2, heads, e, dtype=inputs.asks.dtype, device=inputs.asks.device)
    rows = 1 if batch < LARGE_BATCH else TILE
    major, minor = torch.cuda.get_device_capability(out.device) if out.is_cuda else (8, 0)
    with torch.cuda.device_of(out):
        gate_step[(triton.cdiv(batch, rows), heads)](
            *inputs[:2], *ring, *inputs[2:], *weights, out, batch, ring.keys.stride(0), int(store), e**-0.5,
            **constants(window, heads, e, rows), num_warps=warps(out.dtype, 10 * major + minor)
        )  # fmt: skip
    return out
