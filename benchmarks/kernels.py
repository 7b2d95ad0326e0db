"""Compare the fused kernels with PyTorch implementations of the same computation on a GPU.

python -m benchmarks.kernels --quick       # under a minute on a machine with an NVIDIA GPU
python -m benchmarks.kernels --save        # minutes: every size, and torch.compile as well

Step, layer and sequence are measured as kernel and as plain PyTorch; step and sequence also as two
`scaled_dot_product_attention` and a gate, and as `torch.compile` of the reference (not with --quick). Every figure is a
median after a warm-up of fixed duration, once from device events and once from replays of a CUDA graph. Calls cycle
through inputs that are larger than the L2 cache.
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

from benchmarks.report import AsJson, Save, measure_and_report, run
from hbaf_edge.bench.document import Cell, Report, Section
from hbaf_edge.bench.series import rounded, single_value
from hbaf_edge.errors import BackendError
from kernels.gate import VARIABLE
from kernels.layer import LayerWeights, layer, layer_weights
from kernels.reference import GateWeights, Memory, bimodal_attention_gate, mix
from kernels.ring import Ring, Step, StepWeights, distances, gate_inputs, step_reference, store_turn
from training.config import ModelConfig
from training.layers import FusionLayer, KeyValues, OrderBias

E = 64  # width of a head; the model's width d is E times the number of heads
STEPS = [(b, 32, 256) for b in (1, 8, 64, 512, 4096)] + [(1, w, 256) for w in (8, 128)] + \
    [(1, 32, 128), (1, 32, 512), (64, 32, 128), (64, 32, 512)]  # fmt: skip
LAYERS = [1, 64, 8, 512]  # conversations in a batch
SEQUENCES = {"32 dialogues of 64 turns": (32, 64, 64), "64 utterances, 150 frames on 64 tokens": (64, 150, 64)}
# Size of all inputs together. An H200's L2 cache has 50 MB. LayerInputs has the weights twice, and each implementation
# reads only one copy.
ROTATED_BYTES = 192 << 20
WARM_UP_S = 0.3  # an idle GPU raises its clock rate within this time
IMPLEMENTATIONS = ("kernel", "plain", "attention twice", "compiled")


class Case(NamedTuple):
    """One size of a computation.

    Attributes:
        name: name of the row.
        make: returns inputs for a call.
        implementations: functions that compute it, by name.
        size: bytes that a call must read and write; None if they are not counted.
    """

    name: str
    make: Callable[[], Any]
    implementations: dict[str, Callable[..., Tensor]]
    size: int | None = None


def step_bytes(batch: int, window: int, d: int, size: int = 2) -> int:
    """Return the bytes that a step must move: visible slots of the rings, queries, keys, values, outputs and weights.

    >>> step_bytes(1, 32, 256) // 1000
    207
    """
    ring = 2 * 2 * (window - 1) * d * size  # the slot that the new turn overwrites is not read
    turn = (4 + 4 + 4 + 2) * d * size + window + 9
    weights = 2 * (2 * E * d + 2 * d + d + d // E) * size + 2 * (d // E) * window * 3 * 4
    return batch * (ring + turn) + weights


def random_step(batch: int, window: int, d: int, dtype: torch.dtype, device: str) -> tuple[Step, Ring, StepWeights]:
    """Return one turn for each of `batch` conversations, full rings and random weights."""
    heads = d // E
    r = partial(torch.randn, dtype=dtype, device=device)
    step = Step(
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
    return step, Ring(r(batch, window, 2, heads, E), r(batch, window, 2, heads, E)), weights


class LayerInputs(NamedTuple):
    """Inputs of the layer for the kernels (weights) and for PyTorch (fusion, order)."""

    states: Tensor
    step: Step
    ring: Ring
    weights: LayerWeights
    fusion: FusionLayer
    order: OrderBias


def random_layer(batch: int, window: int, d: int, dtype: torch.dtype, device: str) -> LayerInputs:
    """Return one turn for each of `batch` conversations, full rings and a random layer."""
    step, ring, _ = random_step(batch, window, d, dtype, device)
    config = ModelConfig(width=d, heads=d // E, window=window, dropout=0.0)
    fusion, order = FusionLayer(config).eval().to(device, dtype), OrderBias(config).to(device)
    states = torch.randn(batch, 2, d, dtype=dtype, device=device)
    return LayerInputs(states, step, ring, layer_weights(fusion, order, dtype), fusion, order)


def layer_by_kernels(inputs: LayerInputs) -> Tensor:
    """Run the layer in three kernel launches."""
    return layer(inputs.states, inputs.step, inputs.ring, inputs.weights, store=True)


@contextmanager
def reference_gate() -> Iterator[None]:
    """Use the reference gate while the context is open; on a GPU, training's modules use the kernel by default."""
    previous = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "reference"
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        if previous is not None:
            os.environ[VARIABLE] = previous


@torch.no_grad()
@reference_gate()
def layer_in_pytorch(inputs: LayerInputs) -> Tensor:
    """Gather the rings, append the new turn's keys and values, and run training's layer."""
    states, step, ring, _, fusion, order = inputs
    rows, slot = step.rows.long(), (step.turn % ring.keys.shape[1]).long()
    past, is_inside = distances(step.turn, ring.keys.shape[1])
    distance = torch.cat([past, torch.zeros_like(past[:, :1])], 1)[:, None]
    # Mark of a slot: 1 if audio is present, + 2 if text is present, + 4 times the relation of the speakers.
    marks = torch.cat([step.slots * is_inside, step.now[:, None]], 1).long()
    new = [fusion.keys_values(states[:, None, m], m) for m in range(2)]
    memories = [KeyValues(*(torch.cat([buffer[rows, :, m].flatten(2), x], 1) for buffer, x in zip(ring, new[m])))
                for m in range(2)]  # fmt: skip
    visible = [(marks >> m & 1).bool()[:, None] for m in range(2)]
    audio, text = (bias.to(states.dtype) for bias in order(distance, (marks >> 2)[:, None]))
    outputs = fusion((states[:, None, 0], states[:, None, 1]), memories, visible, (audio, text))
    for m in range(2):
        for buffer, x in zip(ring, new[m]):
            buffer[rows, slot, m] = x[:, 0].unflatten(-1, buffer.shape[-2:])
    return torch.stack([x[:, 0] for x in outputs], 1)


def sequence_by_two_attentions(
    query: Tensor, cross: Tensor, own: Memory, other: Memory, weights: GateWeights
) -> Tensor:
    """Compute a modality's gate over a sequence with two `scaled_dot_product_attention`."""
    outputs, has_visible = [], []
    for queries, memory in ((query, own), (cross, other)):
        visible = memory.visible[:, None]
        mask = visible if memory.bias is None else memory.bias.masked_fill(~visible, float("-inf"))
        output = functional.scaled_dot_product_attention(queries, memory.keys, memory.values, attn_mask=mask)
        has_visible.append(visible.any(-1, keepdim=True))
        outputs.append(torch.where(has_visible[-1], output.nan_to_num(), 0.0))
    return mix(outputs[0], outputs[1], cross, has_visible[0], has_visible[1], weights)


def step_by_two_attentions(step: Step, ring: Ring, weights: StepWeights) -> Tensor:
    """Compute the step with four `scaled_dot_product_attention` (each modality on each memory) and the gate."""
    queries, memories, gates = gate_inputs(step, ring, weights)
    outputs = [sequence_by_two_attentions(*queries[m], memories[m], memories[1 - m], gates[m])[:, :, 0]
               for m in range(2)]  # fmt: skip
    store_turn(step, ring)
    return torch.stack(outputs, 1)


def random_sequence(batch: int, queries: int, slots: int, dtype: torch.dtype, device: str, d: int = 256) -> list[Any]:
    """Return gate inputs: turns on turns with a causal window and a bias, or frames on tokens with neither."""
    heads = d // E
    r = partial(torch.randn, dtype=dtype, device=device)
    memories = []
    for count in (queries, slots):
        if queries == slots:
            distance = torch.arange(queries, device=device)[:, None] - torch.arange(count, device=device)
            visible = ((distance >= 0) & (distance < 32)).expand(batch, -1, -1)
            bias = r(batch, heads, queries, count)
        else:
            visible, bias = torch.ones(batch, 1, count, dtype=torch.bool, device=device), None
        memories.append(Memory(r(batch, heads, count, E), r(batch, heads, count, E), visible, bias))
    weights = GateWeights(r(heads, 2 * E), r(heads), r(heads, E, 2 * E), r(heads, E))
    return [r(batch, heads, queries, E), r(batch, heads, queries, E), *memories, weights]


def implementations(
    kernel: Callable[..., Tensor], plain: Callable[..., Tensor], twice: Callable[..., Tensor], quick: bool
) -> dict[str, Any]:
    """Return the implementations by name; a quick run leaves out `torch.compile`, which takes minutes."""
    if quick:
        return dict(zip(IMPLEMENTATIONS, (kernel, plain, twice)))
    return dict(zip(IMPLEMENTATIONS, (kernel, plain, twice, torch.compile(plain))))


def tensors_of(inputs: Any) -> Iterator[Tensor]:
    """Yield all tensors of nested inputs, including the parameters of modules."""
    if isinstance(inputs, Tensor):
        yield inputs
    elif isinstance(inputs, torch.nn.Module):
        yield from inputs.parameters()
    elif isinstance(inputs, Sequence):
        for part in inputs:
            yield from tensors_of(part)


def rotating_inputs(make: Callable[[], Any]) -> list[Any]:
    """Return so many inputs that they exceed the L2 cache, at least two. Calls cycle through them."""
    first = make()
    size = sum(x.nbytes for x in tensors_of(first))
    return [first, *(make() for _ in range(max(1, ROTATED_BYTES // size)))]


def event_us(work: Callable[[], Any]) -> float:
    """Return the microseconds that the work takes on the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return 1e3 * start.elapsed_time(end)


def measure_us(work: Callable[..., Tensor], inputs: list[Any], repeats: int) -> tuple[float, float]:
    """Return median microseconds of a call, from device events and from replays of a CUDA graph."""
    warm_up_end, rounds = time.perf_counter() + WARM_UP_S, 0
    while rounds < 6 or time.perf_counter() < warm_up_end:
        work(*inputs[rounds % 2])
        rounds += 1
    torch.cuda.synchronize()
    events = [event_us(partial(work, *inputs[n % len(inputs)])) for n in range(repeats)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for arguments in inputs:
            work(*arguments)
    replays = [event_us(graph.replay) / len(inputs) for _ in range(max(5, repeats // len(inputs)))]
    return statistics.median(events), statistics.median(replays)


def bandwidth() -> float:
    """Return the GB/s of a large copy on this GPU, counting bytes read and written."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy_us, _ = measure_us(lambda a, b: b.copy_(a), [(source, target)], 20)
    return 2 * source.numel() / copy_us / 1e3


def cases(quick: bool) -> dict[str, list[Case]]:
    """Return all sizes of step, layer and sequence, or two of each for a quick run."""
    from kernels.sequence import gate
    from kernels.step import step

    count, half = slice(2 if quick else None), torch.float16
    kernel, reference = partial(step, store=True), partial(step_reference, store=True)
    of_step = implementations(kernel, reference, step_by_two_attentions, quick)
    of_layer = {"kernel": layer_by_kernels, "plain": layer_in_pytorch}
    of_sequence = implementations(gate, bimodal_attention_gate, sequence_by_two_attentions, quick)

    def layer_inputs(batch: int) -> tuple[LayerInputs]:
        return (random_layer(batch, 32, 256, half, "cuda"),)

    return {
        "step": [Case(f"{b} × {w} × {d}", partial(random_step, b, w, d, half, "cuda"), of_step, step_bytes(b, w, d))
                 for b, w, d in STEPS[count]],
        "layer": [Case(f"{b} × 32 × 256", partial(layer_inputs, b), of_layer) for b in LAYERS[count]],
        "sequence": [Case(name, partial(random_sequence, *shape, half, "cuda"), of_sequence)
                     for name, shape in SEQUENCES.items()],
    }  # fmt: skip


def section(kind: str, of_kind: Sequence[Case], repeats: int) -> Section:
    """Measure every size: microseconds of each implementation, and the share of the bandwidth that the kernel uses."""
    limit, rows, measures = bandwidth(), list[list[Cell]](), dict[str, Mapping[str, Any]]()
    for case in of_kind:
        torch.compiler.reset()
        inputs = rotating_inputs(case.make)
        times = {name: measure_us(work, inputs, repeats) for name, work in case.implementations.items()}
        pairs = [times.get(name, (None, None)) for name in IMPLEMENTATIONS]
        share = case.size and case.size / times["kernel"][1] / 1e3 / limit
        rows.append([case.name, *(rounded(us) for pair in pairs for us in pair), rounded(share)])
        measures |= {f"{case.name}, {name}": single_value(graph_us) for name, (_, graph_us) in times.items()}
    head = ("size", *(f"{name}, {by}" for name in IMPLEMENTATIONS for by in ("events", "graph")), "share of bandwidth")
    text = f"float16. A size is conversations × window × d. A large copy moves {limit:,.0f} GB/s."
    return Section(kind, f"{kind.capitalize()} on {torch.cuda.get_device_name()}, µs", head, rows, text, measures, "µs")


def main(
    quick: Annotated[bool, typer.Option("--quick", help="two sizes, few repeats, no torch.compile")] = False,
    save: Save = False,
    as_json: AsJson = False,
) -> int:
    if not torch.cuda.is_available():
        raise BackendError("this benchmark needs an NVIDIA GPU that PyTorch can use; there is none here")
    repeats = 30 if quick else 200
    sections = [(kind, partial(section, kind, of_kind, repeats)) for kind, of_kind in cases(quick).items()]
    report = Report("hbaf-edge: kernels", {"repeats": repeats, "quick": quick})
    return measure_and_report("kernels", report, sections, save, as_json=as_json)


if __name__ == "__main__":
    run(main, __doc__)
