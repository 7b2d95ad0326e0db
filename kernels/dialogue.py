"""The dialogue scope of the incremental step in 3 L + 2 launches: what a runtime on a GPU launches for a turn.

`keep` lets the turns committed since the last launch enter their rings, for all layers at once; each layer is
kernels/layer.py's three launches; `head` makes logits of both modalities' states. States stay float32 between layers,
whatever the weights are. Rings of P conversations lie as (P, L, W, 2, H, e).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.layer import LayerWeights, layer
from kernels.parts import dot, tile
from kernels.ring import Ring, Step
from kernels.step import TILE

MOST_LABELS = 32
KEEP_WARPS, HEAD_WARPS = 4, 4
CHUNK = 32  # of `head`: of its inner axes


class HeadWeights(NamedTuple):
    """MLP to logits. Shapes: up (d, 2d), up_bias (d,), down (labels, d), down_bias (labels,)."""

    up: Tensor
    up_bias: Tensor
    down: Tensor
    down_bias: Tensor


class Kept(NamedTuple):
    """Turns that were committed and have to enter their rings. Shapes: news (L, B, 2, 2, H, e), key and value of each
    modality; places (B,) int32, the slot, or −1 where there is none."""

    news: Tensor
    places: Tensor


@triton.jit
def keep(kept, rows, places, keys, values, step_row, W: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):
    """Program (b, l): key and value of both modalities of layer l into conversation b's slot."""
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
    """Program i: logits (TILE, labels) of conversations i · TILE and on, from states (B, 2 D)."""
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inner, label = tl.arange(0, CHUNK), tl.arange(0, BLOCK_L)
    found = tl.zeros((TILE, BLOCK_L), tl.float32)
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
        found = dot(hidden.to(w.dtype), w, found)
    found += tl.load(down_bias + label, mask=label < labels, other=0.0).to(tl.float32)[None, :]
    tl.store(logits + row[:, None] * labels + label[None, :], found,
             mask=(row < batch)[:, None] & (label < labels)[None, :])  # fmt: skip


def head_constants(d: int) -> dict[str, int]:
    """`head`'s compile-time constants."""
    return {"D": d, "BLOCK_L": MOST_LABELS, "CHUNK": CHUNK, "TILE": TILE}


def keep_constants(window: int, d: int) -> dict[str, int]:
    """`keep`'s compile-time constants."""
    return {"W": window, "D": d, "BLOCK": tile(2 * d)}


def dialogue(
    codes: Tensor, given: Step, rings: Ring, layers: list[LayerWeights], out: HeadWeights, kept: Kept
) -> tuple[Tensor, Tensor, Tensor]:
    """The scope for one new turn of each of B conversations.

    Args:
        codes: (B, 2, d) float32.
        given: which conversations and slots; its `asks` and `news` are filled anew by every layer.
        rings: keys and values (P, L, W, 2, H, e).
        layers: of every layer.
        out: the head's.
        kept: what enters the rings before.

    Returns:
        logits (B, labels), embedding (B, 2d), and every layer's news (L, B, 2, 2, H, e)

    Raises:
        ValueError: an input is not what the kernels read.
    """
    batch, _, d = codes.shape
    if codes.dtype != torch.float32 or not codes.is_contiguous() or len(out.down_bias) > MOST_LABELS:
        raise ValueError(f"codes are {codes.dtype} {tuple(codes.shape)} and there are {len(out.down_bias)} labels; the "
                         f"scope takes contiguous float32 (B, 2, d) and up to {MOST_LABELS}")  # fmt: skip
    window = rings.keys.shape[2]
    with torch.cuda.device_of(codes):
        keep[(batch, len(layers))](kept.news, given.rows, kept.places, *rings, rings.keys.stride(0),
                                   **keep_constants(window, d), num_warps=KEEP_WARPS)  # fmt: skip
        states, news = codes, []
        for index, weights in enumerate(layers):
            mine = given._replace(news=torch.empty_like(given.news))
            states = layer(states, mine, Ring(*(held[:, index] for held in rings)), weights)
            news.append(mine.news)
        logits = torch.empty(batch, len(out.down_bias), dtype=torch.float32, device=codes.device)
        head[(triton.cdiv(batch, TILE),)](states, *out, logits, batch, len(out.down_bias),
                                          **head_constants(d), num_warps=HEAD_WARPS)  # fmt: skip
    return logits, states.flatten(1), torch.stack(news)


def head_of(module: Any, dtype: torch.dtype) -> HeadWeights:
    """Of a `training.layers.Head`."""
    return HeadWeights(
        *(x.detach().to(dtype).contiguous() for part in (module[0], module[3]) for x in (part.weight, part.bias))
    )
