"""How fast are the fused kernels beside PyTorch's own ways to compute the same, on a GPU?

python -m benchmarks.kernels --quick       # under a minute on a machine with an NVIDIA GPU
python -m benchmarks.kernels --save        # minutes: every size, and torch.compile beside the others

Step, layer and sequence, each as the kernel and as plain PyTorch; step and sequence also as two
`scaled_dot_product_attention` and a gate, and as `torch.compile` of the reference (not with --quick). Every figure is a
median, by device events and by replay of a CUDA graph, after a warm-up of fixed time. Inputs rotate over more memory
than the L2 cache holds.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, NamedTuple

import torch
import typer
from torch import Tensor
from torch.nn import functional

from benchmarks.report import Save, conclude, run
from hbaf_edge.bench.document import Cell, Report, Section
from hbaf_edge.bench.series import rounded, single
from hbaf_edge.errors import BackendError
from kernels.gate import SWITCH
from kernels.layer import LayerWeights, layer, weights_of
from kernels.reference import GateWeights, Memory, bimodal_attention_gate, weigh
from kernels.ring import Ring, Step, StepWeights, distances, gate_inputs, step_reference, store_turn
from training.config import ModelConfig
from training.layers import FusionLayer, OrderBias, Slots

E = 64  # width of a head; d is that many times the heads
STEPS = [(b, 32, 256) for b in (1, 8, 64, 512, 4096)] + [(1, w, 256) for w in (8, 128)] + \
    [(1, 32, 128), (1, 32, 512), (64, 32, 128), (64, 32, 512)]  # fmt: skip
LAYERS = [1, 64, 8, 512]  # conversations
SEQUENCES = {"32 dialogues of 64 turns": (32, 64, 64), "64 utterances, 150 frames on 64 tokens": (64, 150, 64)}
# Bytes of inputs that take turns. An H200's L2 cache holds 50 MB; of a layer's two sets of weights, each way reads one.
ROTATE = 192 << 20
WARM_UP_S = 0.3  # of every measurement: an idle card raises its clocks within that
WAYS = ("kernel", "plain", "attention twice", "compiled")


class Case(NamedTuple):
    """One size of one computation.

    Attributes:
        name: of the row.
        make: returns the inputs of a call.
        ways: to compute it, by name.
        size: bytes that a call has to move; None where they are not counted.
    """

    name: str
    make: Callable[[], Any]
    ways: dict[str, Callable[..., Tensor]]
    size: int | None = None


def step_bytes(batch: int, window: int, d: int, size: int = 2) -> int:
    """Bytes that a step has to move: what is visible of rings once, queries, keys, values and answers, weights once.

    >>> step_bytes(1, 32, 256) // 1000
    207
    """
    ring = 2 * 2 * (window - 1) * d * size  # the slot that has left the window is not read
    turn = (4 + 4 + 4 + 2) * d * size + window + 9
    weights = 2 * (2 * E * d + 2 * d + d + d // E) * size + 2 * (d // E) * window * 3 * 4
    return batch * (ring + turn) + weights


def made_step(batch: int, window: int, d: int, dtype: torch.dtype, device: str) -> tuple[Step, Ring, StepWeights]:
    """One turn of each of `batch` conversations with full rings."""
    heads = d // E
    r = partial(torch.randn, dtype=dtype, device=device)
    given = Step(
        r(batch, 2, 2, heads, E), r(batch, 2, 2, heads, E),
        torch.arange(batch, dtype=torch.int32, device=device),
        torch.full((batch,), 100, dtype=torch.int32, device=device),
        torch.full((batch, window), 3, dtype=torch.uint8, device=device),
        torch.full((batch,), 3, dtype=torch.uint8, device=device),
    )  # fmt: skip
    weights = StepWeights(
        torch.randn(2, heads, window, 3, device=device), r(2, heads, 2 * E), r(2, heads), r(2, heads, E, 2 * E),
        r(2, heads, E),
    )  # fmt: skip
    return given, Ring(r(batch, window, 2, heads, E), r(batch, window, 2, heads, E)), weights


class Layer(NamedTuple):
    """What both ways take."""

    states: Tensor
    given: Step
    ring: Ring
    weights: LayerWeights
    fusion: FusionLayer
    order: OrderBias


def made_layer(batch: int, window: int, d: int, dtype: torch.dtype, device: str) -> Layer:
    """One turn of each of `batch` conversations with full rings, and a random layer."""
    given, ring, _ = made_step(batch, window, d, dtype, device)
    config = ModelConfig(width=d, heads=d // E, window=window, dropout=0.0)
    fusion, order = FusionLayer(config).eval().to(device, dtype), OrderBias(config).to(device)
    states = torch.randn(batch, 2, d, dtype=dtype, device=device)
    return Layer(states, given, ring, weights_of(fusion, order, dtype), fusion, order)


def by_kernels(made: Layer) -> Tensor:
    """In three launches."""
    return layer(*made[:4], store=True)


@contextmanager
def reference_gate() -> Iterator[None]:
    """The gate without its kernel, which on a GPU the modules of training take by themselves."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "reference"
    try:
        yield
    finally:
        del os.environ[SWITCH]
        if before is not None:
            os.environ[SWITCH] = before


@torch.no_grad()
@reference_gate()
def in_torch(made: Layer) -> Tensor:
    """Rings gathered and joined with the new turn's keys and values, then the layer itself."""
    states, given, ring, _, fusion, order = made
    rows, place = given.rows.long(), (given.turn % ring.keys.shape[1]).long()
    far, inside = distances(given.turn, ring.keys.shape[1])
    distance = torch.cat([far, torch.zeros_like(far[:, :1])], 1)[:, None]
    marks = torch.cat([given.slots * inside, given.now[:, None]], 1).long()
    news = [fusion.remember(states[:, None, m], m) for m in range(2)]
    slots = [
        Slots(*(torch.cat([held[rows, :, m].flatten(2), new], 1) for held, new in zip(ring, news[m]))) for m in range(2)
    ]
    visible = [(marks >> m & 1).bool()[:, None] for m in range(2)]
    audio, text = (bias.to(states.dtype) for bias in order(distance, (marks >> 2)[:, None]))
    both = fusion((states[:, None, 0], states[:, None, 1]), slots, visible, (audio, text))
    for m in range(2):
        for held, new in zip(ring, news[m]):
            held[rows, place, m] = new[:, 0].unflatten(-1, held.shape[-2:])
    return torch.stack([x[:, 0] for x in both], 1)


def sequence_twice(query: Tensor, cross: Tensor, own: Memory, other: Memory, weights: GateWeights) -> Tensor:
    """A modality's gate over a sequence through two `scaled_dot_product_attention`."""
    answers, seen = [], []
    for asked, memory in ((query, own), (cross, other)):
        visible = memory.visible[:, None]
        mask = visible if memory.bias is None else memory.bias.masked_fill(~visible, float("-inf"))
        answer = functional.scaled_dot_product_attention(asked, memory.keys, memory.values, attn_mask=mask)
        seen.append(visible.any(-1, keepdim=True))
        answers.append(torch.where(seen[-1], answer.nan_to_num(), 0.0))
    return weigh(answers[0], answers[1], cross, seen[0], seen[1], weights)


def attention_twice(given: Step, ring: Ring, weights: StepWeights) -> Tensor:
    """The step through four `scaled_dot_product_attention`, each modality on either memory, and the gate."""
    asked, memories, gates = gate_inputs(given, ring, weights)
    found = [sequence_twice(*asked[m], memories[m], memories[1 - m], gates[m])[:, :, 0] for m in range(2)]
    store_turn(given, ring)
    return torch.stack(found, 1)


def made_sequence(batch: int, queries: int, slots: int, dtype: torch.dtype, device: str, d: int = 256) -> list[Any]:
    """Turns on turns with a causal window and a bias, or frames on tokens with neither."""
    heads = d // E
    r = partial(torch.randn, dtype=dtype, device=device)
    memories = []
    for count in (queries, slots):
        if queries == slots:
            far = torch.arange(queries, device=device)[:, None] - torch.arange(count, device=device)
            visible = ((far >= 0) & (far < 32)).expand(batch, -1, -1)
            bias = r(batch, heads, queries, count)
        else:
            visible, bias = torch.ones(batch, 1, count, dtype=torch.bool, device=device), None
        memories.append(Memory(r(batch, heads, count, E), r(batch, heads, count, E), visible, bias))
    weights = GateWeights(r(heads, 2 * E), r(heads), r(heads, E, 2 * E), r(heads, E))
    return [r(batch, heads, queries, E), r(batch, heads, queries, E), *memories, weights]


def ways_of(
    kernel: Callable[..., Tensor], plain: Callable[..., Tensor], twice: Callable[..., Tensor], quick: bool
) -> dict[str, Any]:
    """Every way to compute the same, by name; `torch.compile` takes minutes and is left out of a quick run."""
    if quick:
        return dict(zip(WAYS, (kernel, plain, twice)))
    return dict(zip(WAYS, (kernel, plain, twice, torch.compile(plain))))


def tensors_of(inputs: Any) -> Iterator[Tensor]:
    """All tensors of nested inputs, a module's parameters too."""
    if isinstance(inputs, Tensor):
        yield inputs
    elif isinstance(inputs, torch.nn.Module):
        yield from inputs.parameters()
    elif isinstance(inputs, Sequence):
        for part in inputs:
            yield from tensors_of(part)


def rotated(make: Callable[[], Any]) -> list[Any]:
    """As many inputs as it takes until no cache holds those of the last round, at least two."""
    first = make()
    size = sum(x.nbytes for x in tensors_of(first))
    return [first, *(make() for _ in range(max(1, ROTATE // size)))]


def event_us(work: Callable[[], Any]) -> float:
    """Microseconds on the device."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return 1e3 * start.elapsed_time(end)


def timed(work: Callable[..., Tensor], inputs: list[Any], repeats: int) -> tuple[float, float]:
    """Median microseconds of a call by device events, and of one in a replayed graph; inputs take turns."""
    until, rounds = time.perf_counter() + WARM_UP_S, 0
    while rounds < 6 or time.perf_counter() < until:
        work(*inputs[rounds % 2])
        rounds += 1
    torch.cuda.synchronize()
    events = [event_us(partial(work, *inputs[n % len(inputs)])) for n in range(repeats)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for given in inputs:
            work(*given)
    replayed = [event_us(graph.replay) / len(inputs) for _ in range(max(5, repeats // len(inputs)))]
    return statistics.median(events), statistics.median(replayed)


def bandwidth() -> float:
    """This card's GB/s: a large copy, bytes read and written counted."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copied_us, _ = timed(lambda a, b: b.copy_(a), [(source, target)], 20)
    return 2 * source.numel() / copied_us / 1e3


def cases(quick: bool) -> dict[str, list[Case]]:
    """All sizes of step, layer and sequence; two of each in a quick run."""
    from kernels.sequence import gate
    from kernels.step import step

    few = slice(2 if quick else None)
    by_step = ways_of(partial(step, store=True), partial(step_reference, store=True), attention_twice, quick)
    by_layer = {"kernel": by_kernels, "plain": in_torch}
    by_sequence = ways_of(gate, bimodal_attention_gate, sequence_twice, quick)
    half = torch.float16

    def layer_inputs(batch: int) -> tuple[Layer]:
        return (made_layer(batch, 32, 256, half, "cuda"),)

    return {
        "step": [Case(f"{b} × {w} × {d}", partial(made_step, b, w, d, half, "cuda"), by_step, step_bytes(b, w, d))
                 for b, w, d in STEPS[few]],
        "layer": [Case(f"{b} × 32 × 256", partial(layer_inputs, b), by_layer) for b in LAYERS[few]],
        "sequence": [Case(name, partial(made_sequence, *shape, half, "cuda"), by_sequence)
                     for name, shape in SEQUENCES.items()],
    }  # fmt: skip


def section(kind: str, of_kind: Sequence[Case], repeats: int) -> Section:
    """A row for each size: microseconds of each way by events and by graph, and the kernel's share of the bandwidth."""
    limit, rows, measures = bandwidth(), list[list[Cell]](), dict[str, Mapping[str, Any]]()
    for case in of_kind:
        torch.compiler.reset()
        inputs = rotated(case.make)
        times = {name: timed(way, inputs, repeats) for name, way in case.ways.items()}
        both = [times.get(way, (None, None)) for way in WAYS]
        share = case.size and case.size / times["kernel"][1] / 1e3 / limit
        rows.append([case.name, *(rounded(us) for pair in both for us in pair), rounded(share)])
        measures |= {f"{case.name}, {name}": single(graph_us) for name, (_, graph_us) in times.items()}
    head = ("size", *(f"{way}, {by}" for way in WAYS for by in ("events", "graph")), "share of bandwidth")
    text = f"float16. A size is conversations × window × d. A large copy moves {limit:,.0f} GB/s."
    return Section(kind, f"{kind.capitalize()} on {torch.cuda.get_device_name()}, µs", head, rows, text, measures, "µs")


def main(
    quick: Annotated[bool, typer.Option("--quick", help="two sizes, few repeats, no torch.compile")] = False,
    save: Save = False,
) -> int:
    if not torch.cuda.is_available():
        raise BackendError("PyTorch sees no NVIDIA GPU here; the kernels are measured on one")
    repeats = 30 if quick else 200
    work = [(kind, partial(section, kind, of_kind, repeats)) for kind, of_kind in cases(quick).items()]
    return conclude("kernels", Report("hbaf-edge: kernels", {"repeats": repeats, "quick": quick}), work, save)


if __name__ == "__main__":
    run(main, __doc__)
