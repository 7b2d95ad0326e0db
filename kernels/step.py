"""The incremental step as one Triton launch: every head, both modalities, a whole batch of conversations.

One query for each modality and memory stands against a ring of W keys. The ring is read where it lies, by place in the
pool and by slot: nothing is gathered, concatenated or copied, and each key is read once for both queries that ask it.
Distance and bias come from the turn's number; with `store` the new key and value go into the ring on the way. Inputs
are float32, float16 or bfloat16; all sums are float32. `kernels.ring.step_reference` says what is computed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.parts import NOTHING, WIDEST, dot, tile, weigh
from kernels.ring import Ring, Step, StepWeights

LONGEST = 128  # window: what one tile holds
LIMITS = f"windows up to {LONGEST} and heads up to {', '.join(f'{e} in {kind}' for kind, e in WIDEST.items())}"
TILE = 16  # rows of a tile; tensor cores take no fewer
LARGE = 128  # conversations from which several share a program, so that a gate's weights are read once for them


@triton.jit
def _ask(query, cross, memory, first, batch, rows, turns, slots, head, W: tl.constexpr, H: tl.constexpr,
         E: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_E: tl.constexpr, ROWS: tl.constexpr,
         BIT: tl.constexpr):  # fmt: skip
    """What the queries of all rows (TILE, E), own and cross, find in one modality's memory; and whether they saw any.

    Each conversation is asked by its own row alone; its ring is read once for both queries.
    """
    keys, values, news, nows, table, step_row, scale = memory
    line = tl.arange(0, query.shape[0])
    slot, column = tl.arange(0, BLOCK_W), tl.arange(0, BLOCK_E)
    sums, cross_sums = tl.zeros(query.shape, tl.float32), tl.zeros(query.shape, tl.float32)
    top, cross_top = tl.full(line.shape, NOTHING, tl.float32), tl.full(line.shape, NOTHING, tl.float32)
    total, cross_total = tl.zeros(line.shape, tl.float32), tl.zeros(line.shape, tl.float32)
    for r in range(ROWS):
        row = first + r
        real = row < batch
        turn = tl.load(turns + row, mask=real, other=0)
        far = (turn - 1 - slot + 2 * W) % W + 1
        marks = tl.load(slots + row.to(tl.int64) * W + slot, mask=(slot < W) & (row + 0 * slot < batch), other=0).to(
            tl.int32
        )
        present = ((marks >> BIT) & 1 > 0) & (far < W) & (far <= turn)
        bias = tl.load(table + tl.minimum(far, W - 1) * 3 + (marks >> 2), mask=present, other=0.0)
        place = tl.load(rows + row, mask=real, other=0).to(tl.int64) * step_row + (BIT * H + head) * E
        at = place + slot[:, None] * (2 * H * E) + column[None, :]
        there = present[:, None] & (column < E)[None, :]
        key = tl.load(keys + at, mask=there, other=0.0)
        value = tl.load(values + at, mask=there, other=0.0)
        sums, top, total = _add(query, key, value, line == r, present, bias, scale, sums, top, total)
        cross_sums, cross_top, cross_total = _add(cross, key, value, line == r, present, bias, scale, cross_sums,
                                                  cross_top, cross_total)  # fmt: skip
    row = first + line
    real = (row < batch) & (line < ROWS)
    mark = tl.load(nows + row, mask=real, other=0).to(tl.int32)
    now = (mark >> BIT) & 1 > 0
    at = row.to(tl.int64)[:, None] * (4 * H * E) + (2 * BIT * H + head) * E + column[None, :]
    inside = real[:, None] & (column < E)[None, :]
    key, value = tl.load(news + at, mask=inside, other=0.0), tl.load(news + at + H * E, mask=inside, other=0.0)
    bias = tl.load(table + (mark >> 2), mask=real, other=0.0)
    found = _own(query, key, value, now, bias, scale, sums, top, total)
    found_cross = _own(cross, key, value, now, bias, scale, cross_sums, cross_top, cross_total)
    return found, found_cross, now | (total > 0), key, value


@triton.jit
def _add(query, key, value, mine, present, bias, scale, sums, top, total):
    """One conversation's ring (W, E) to the sums of the row that asks it; the others keep theirs, whatever it holds."""
    asked = mine[:, None] & present[None, :]
    scores = dot(query, tl.trans(key), tl.zeros(asked.shape, tl.float32)) * scale + bias[None, :]
    scores = tl.where(asked, scores, NOTHING)
    highest = tl.maximum(top, tl.max(scores, 1))
    weights = tl.where(asked, tl.exp(scores - highest[:, None]), 0.0)
    found = dot(weights.to(value.dtype), value, tl.zeros(sums.shape, tl.float32))
    return tl.where(mine[:, None], found, sums), highest, total + tl.sum(weights, 1)


@triton.jit
def _own(query, key, value, now, bias, scale, sums, top, total):
    """The new turn's own key and value (TILE, E) added; weighted values, zero where nothing was visible."""
    score = tl.sum(query.to(tl.float32) * key.to(tl.float32), 1) * scale + bias
    score = tl.where(now, score, NOTHING)
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
    intra_a, inter_t, seen_a, key_a, value_a = _ask(query_a, cross_t, memory_a, first, batch, rows, turns, slots, head,
                                                    W, H, E, BLOCK_W, BLOCK_E, ROWS, 0)  # fmt: skip
    intra_t, inter_a, seen_t, key_t, value_t = _ask(query_t, cross_a, memory_t, first, batch, rows, turns, slots, head,
                                                    W, H, E, BLOCK_W, BLOCK_E, ROWS, 1)  # fmt: skip
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
    answer = weigh(intra_a, inter_a, cross_a, seen_a, seen_t, w_r, b_r + head, w_g, b_g + head * E, E, BLOCK_E)
    tl.store(out + at, answer.to(out.dtype.element_ty), mask=inside)
    answer = weigh(intra_t, inter_t, cross_t, seen_t, seen_a, w_r + H * 2 * E, b_r + H + head, w_g + H * 2 * E * E,
                    b_g + (H + head) * E, E, BLOCK_E)  # fmt: skip
    tl.store(out + at + H * E, answer.to(out.dtype.element_ty), mask=inside)


def constants(window: int, heads: int, e: int, rows: int = 1) -> dict[str, int]:
    """The kernel's compile-time constants for a shape."""
    return {
        "W": window,
        "H": heads,
        "E": e,
        "BLOCK_W": tile(window),
        "BLOCK_E": tile(e),
        "ROWS": rows,
        "TILE": TILE,
    }


def warps(dtype: torch.dtype, capability: int) -> int:
    """Of a program: without tensor cores for a dtype there is more to hold in registers."""
    return 8 if dtype == torch.float32 or capability < 80 else 4


def step(given: Step, ring: Ring, weights: StepWeights, store: bool = False) -> Tensor:
    """`kernels.ring.step_reference` in one launch; tensors are contiguous, up to LIMITS."""
    batch, _, _, heads, e = given.asks.shape
    window = ring.keys.shape[1]
    out = torch.empty(batch, 2, heads, e, dtype=given.asks.dtype, device=given.asks.device)
    rows = 1 if batch < LARGE else TILE
    major, minor = torch.cuda.get_device_capability(out.device) if out.is_cuda else (8, 0)
    with torch.cuda.device_of(out):
        gate_step[(triton.cdiv(batch, rows), heads)](
            *given[:2], *ring, *given[2:], *weights, out, batch, ring.keys.stride(0), int(store), e**-0.5,
            **constants(window, heads, e, rows), num_warps=warps(out.dtype, 10 * major + minor)
        )  # fmt: skip
    return out
