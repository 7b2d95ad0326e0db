"""The fused gate against PyTorch's own ways to compute it, on a GPU; what smaller boards should give, computed.

python -m benchmarks.kernels --quick       # under a minute on a machine with an NVIDIA GPU
python -m benchmarks.kernels --save        # minutes: every size, and torch.compile beside the others

Step, layer and sequence, each as the kernel, as plain PyTorch, as two `scaled_dot_product_attention` and a gate, and as
`torch.compile` of the reference (not with --quick). Every figure is a median, by device events and by replay of a CUDA
graph, after a warm-up of fixed time. Inputs rotate over more memory than the L2 cache holds. Figures of other boards
come from counted bytes and their makers' bandwidth, and are marked as computed. The last line is JSON.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn import functional

from benchmarks.layers import E, by_kernels, in_torch, made_layer, made_step
from benchmarks.report import RESULTS, Save, finish, run, show
from hbaf_edge.machine import machine
from kernels.reference import GateWeights, Memory, bimodal_attention_gate, weigh
from kernels.ring import Ring, Step, StepWeights, distances, step_reference

STEPS = [(b, 32, 256) for b in (1, 8, 64, 512, 4096)] + [(1, w, 256) for w in (8, 128)] + \
    [(1, 32, 128), (1, 32, 512), (64, 32, 128), (64, 32, 512)]  # fmt: skip
SEQUENCES = {"32 dialogues of 64 turns": (32, 64, 64), "64 utterances, 150 frames on 64 tokens": (64, 150, 64)}
# Makers' figures, GB/s: NVIDIA's data sheets of the modules.
BOARDS = {"Orin Nano 8 GB": 68.0, "Orin Nano Super": 102.0, "Orin AGX 64 GB": 204.8, "Thor T5000": 273.0}
# Bytes of inputs that take turns. An H200's L2 cache holds 50 MB; of a layer's two sets of weights, each way reads one.
ROTATE = 192 << 20
WARM_UP_S = 0.3  # of every measurement: an idle card raises its clocks within that
WAYS = ("kernel", "plain", "attention twice", "compiled")


def step_bytes(batch: int, window: int, d: int, size: int = 2) -> int:
    """Bytes that a step has to move: what is visible of rings once, queries, keys, values and answers, weights once.

    >>> step_bytes(1, 32, 256) // 1000
    207
    """
    ring = 2 * 2 * (window - 1) * d * size  # the slot that has left the window is not read
    turn = (4 + 4 + 4 + 2) * d * size + window + 9
    weights = 2 * (2 * E * d + 2 * d + d + d // E) * size + 2 * (d // E) * window * 3 * 4
    return batch * (ring + turn) + weights


def step_operations(batch: int, window: int, d: int) -> int:
    """Multiplications and additions of a step: two queries on each memory, and two gates."""
    return batch * (2 * 2 * 2 * 2 * (window + 1) * d + 2 * 2 * 2 * E * d)


def attention_twice(given: Step, ring: Ring, weights: StepWeights) -> Tensor:
    """The step through four `scaled_dot_product_attention`, each modality on either memory, and the gate."""
    window = ring.keys.shape[1]
    far, inside = distances(given.turn, window)
    relation = torch.cat([given.slots, given.now[:, None]], 1).long() >> 2
    distance = torch.cat([far.clamp(max=window - 1), torch.zeros_like(far[:, :1])], 1)
    marks = torch.cat([given.slots * inside, given.now[:, None]], 1)
    rows, memories = given.rows.long(), []
    for m in range(2):
        keys, values = (
            torch.cat([held[rows, :, m], given.news[:, m, i][:, None]], 1).transpose(1, 2)
            for i, held in enumerate(ring)
        )
        seen = (marks >> m & 1).bool()[:, None, None]
        bias = weights.bias[m][:, distance, relation].transpose(0, 1)[:, :, None].to(keys.dtype)
        memories.append((keys, values, bias.masked_fill(~seen, float("-inf")), seen.any(-1, keepdim=True)))
    found = []
    for m in range(2):
        answers = []
        for query, (keys, values, mask, seen) in ((0, memories[m]), (1, memories[1 - m])):
            asked = given.asks[:, m, query][:, :, None]
            answer = functional.scaled_dot_product_attention(asked, keys, values, attn_mask=mask)
            answers.append(torch.where(seen, answer.nan_to_num(), 0.0))
        own_seen, other_seen = memories[m][3], memories[1 - m][3]
        parts = GateWeights(*(part[m] for part in weights[1:]))
        cross = given.asks[:, m, 1][:, :, None]
        found.append(weigh(answers[0], answers[1], cross, own_seen, other_seen, parts)[:, :, 0])
    ring.keys[rows, (given.turn % window).long()] = given.news[:, :, 0]
    ring.values[rows, (given.turn % window).long()] = given.news[:, :, 1]
    return torch.stack(found, 1)


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
    torch.compiler.reset()
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


def timed(work: Callable[..., Tensor], inputs: list[Any], repeats: int) -> dict[str, float]:
    """Median microseconds of a call by device events, and of one in a replayed graph; inputs take turns."""
    until, rounds = time.perf_counter() + WARM_UP_S, 0
    while rounds < 6 or time.perf_counter() < until:
        work(*inputs[rounds % 2])
        rounds += 1
    torch.cuda.synchronize()
    single = [event_us(partial(work, *inputs[n % len(inputs)])) for n in range(repeats)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for given in inputs:
            work(*given)
    replayed = [event_us(graph.replay) / len(inputs) for _ in range(max(5, repeats // len(inputs)))]
    return {"events_us": round(statistics.median(single), 3), "graph_us": round(statistics.median(replayed), 3)}


def bandwidth() -> float:
    """This card's GB/s: a large copy, bytes read and written counted."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    found = timed(lambda a, b: b.copy_(a), [(source, target)], 20)
    return 2 * source.numel() / found["events_us"] / 1e3


def measured(quick: bool) -> dict[str, Any]:
    """Everything that needs a GPU."""
    from kernels.sequence import gate
    from kernels.step import step

    limit, repeats = bandwidth(), 30 if quick else 200
    found: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "bandwidth_gb_s": round(limit),
        "step": [],
        "layer": [],
        "sequence": [],
    }
    for batch, window, d in STEPS[:2] if quick else STEPS:
        size = step_bytes(batch, window, d)
        inputs = rotated(partial(made_step, batch, window, d, torch.float16, "cuda"))
        ways = ways_of(partial(step, store=True), partial(step_reference, store=True), attention_twice, quick)
        times = {n: timed(w, inputs, repeats) for n, w in ways.items()}
        share = size / times["kernel"]["graph_us"] / 1e3 / limit
        counted = {"bytes": size, "operations": step_operations(batch, window, d)}
        row = {"batch": batch, "window": window, "d": d, **counted, "times": times, "bandwidth_share": round(share, 3)}
        found["step"].append(row)
    for batch in (1, 64) if quick else (1, 8, 64, 512):
        layers = [(x,) for x in rotated(partial(made_layer, batch, 32, 256, torch.float16, "cuda"))]
        both = {"kernel": by_kernels, "plain": in_torch}
        found["layer"].append({"batch": batch, "times": {n: timed(w, layers, repeats) for n, w in both.items()}})
    for name, (batch, queries, slots) in SEQUENCES.items():
        long = rotated(partial(made_sequence, batch, queries, slots, torch.float16, "cuda"))
        ways = ways_of(gate, bimodal_attention_gate, sequence_twice, quick)
        found["sequence"].append({"name": name, "times": {n: timed(w, long, repeats) for n, w in ways.items()}})
    return found


def computed() -> list[dict[str, Any]]:
    """What a step should take on boards that are not here, by their memory bandwidth alone; a launch comes on top."""
    return [
        {"board": board, "batch": batch, "computed_us": round(step_bytes(batch, 32, 256) / gb / 1e3, 2)}
        for board, gb in BOARDS.items() for batch in (1, 8, 64)
    ]  # fmt: skip


def roofline(found: dict[str, Any]) -> None:
    """Operations a second over operations a byte, with the slope that this card's memory sets."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for way in found["step"][0]["times"]:
        points = [
            (s["operations"] / s["bytes"], s["operations"] / s["times"][way]["graph_us"] / 1e6) for s in found["step"]
        ]
        axes.loglog(*zip(*points), "o", label=way)
    reach = [0.5, 20.0]
    axes.loglog(reach, [x * found["bandwidth_gb_s"] / 1e3 for x in reach], "k--", label="memory")
    axes.set(xlabel="operations a byte", ylabel="TFLOP/s", title=f"incremental step, {found['gpu']}")
    axes.legend()
    figure.tight_layout()
    figure.savefig(RESULTS / "kernels.png", dpi=120)


def tables(found: dict[str, Any] | None, boards: list[dict[str, Any]]) -> None:
    """For people."""

    def row(name: str, times: dict[str, dict[str, float]], share: str = "") -> tuple[str, ...]:
        cells = (f"{times[w]['events_us']:.1f}  {times[w]['graph_us']:.1f}" if w in times else "" for w in WAYS)
        return name, *cells, share

    if found:
        rows = [row(f"{s['batch']} x {s['window']} x {s['d']}", s["times"], f"{s['bandwidth_share']:.0%}")
                for s in found["step"]]  # fmt: skip
        rows += [row(s["name"], s["times"]) for s in found["sequence"]]
        rows += [row(f"layer, {s['batch']} x 32 x 256", s["times"]) for s in found["layer"]]
        show(f"{found['gpu']}, float16, µs by events and by graph", rows, ("batch x window x d", *WAYS, "of bandwidth"))
    rows = [(b["board"], str(b["batch"]), f"{b['computed_us']:.1f}") for b in boards]
    show("computed from bytes and the makers' bandwidth, not measured", rows, ("board", "conversations", "µs a layer"))


def main(
    quick: Annotated[bool, typer.Option("--quick", help="two sizes, few repeats, no torch.compile")] = False,
    save: Save = False,
) -> int:
    found = measured(quick) if torch.cuda.is_available() else None
    boards = computed()
    tables(found, boards)
    if found is None:
        print("there is no GPU here: nothing was measured")
    elif save:
        roofline(found)
    # Without measurements nothing is saved: a file of an earlier run on a GPU says more.
    finish("kernels", {"machine": machine(), "measured": found, "computed": boards}, save and found is not None)
    return 0


if __name__ == "__main__":
    run(main, __doc__)
