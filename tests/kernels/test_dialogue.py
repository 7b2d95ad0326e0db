"""The dialogue scope by kernels: against the exported graph, and through Triton's own launches."""

import copy

import numpy as np
import pytest
import torch

from hbaf_edge.conversation import Conversation, Sizes, TurnState
from kernels.dialogue import HeadWeights, Kept, dialogue, head_of
from kernels.layer import LayerWeights, weights_of
from kernels.ring import Ring, Step, StepWeights
from tests.backends import commit
from tests.kernels.made import DEVICE
from training.config import ModelConfig
from training.model import HBAF


@pytest.fixture(scope="module")
def model():
    """A small random one. `tiny` would bring encoders, whose packages a machine with a GPU may lack."""
    torch.manual_seed(7)
    made = HBAF(ModelConfig(audio_dim=16, audio_states=3, text_dim=24, text_states=3, width=32, heads=2, window=5))
    for table in (bias.table for bias in made.bias):
        torch.nn.init.normal_(table)
    torch.nn.init.normal_(made.head[-1].weight)
    for parameter in made.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def by_triton(weights, dtype, capacity, device):
    """`DialogueOnGpu` through kernels/dialogue.py, for conversations 0, 1, … of a pool.

    Args:
        weights: of `hbaf_edge.backends.cuda.weights.dialogue_weights`.
        dtype, capacity, device: of the rings.
    """

    def there(name, array):
        return torch.from_numpy(array).to(device, torch.float32 if name == "bias" else dtype).contiguous()

    layers = []
    for layer in weights.layers:
        of = {n: there(n, x) for n, x in layer.items()}
        gate = StepWeights(*(of[n] for n in StepWeights._fields))
        layers.append(LayerWeights(*(of[n] for n in LayerWeights._fields[:-1]), gate))
    out = HeadWeights(*(there(n, weights.head[n]) for n in HeadWeights._fields))
    shape = (capacity, len(layers), weights.window, 2, weights.heads, weights.e)
    rings = Ring(*(torch.zeros(shape, dtype=dtype, device=device) for _ in range(2)))
    last = {}

    def run(codes, present, turn, recall):
        batch = len(codes)
        sizes = (batch, 2, 2, weights.heads, weights.e)
        both = np.array([1, 2])
        empty = [torch.empty(sizes, dtype=dtype, device=device) for _ in range(2)]
        given = [np.arange(batch, dtype=np.int32), np.full(batch, turn % weights.window + weights.window, np.int32),
                 (recall.visible @ both + 4 * recall.relation).astype(np.uint8),
                 (present @ both + 4 * recall.own_relation[:, 0]).astype(np.uint8)]  # fmt: skip
        step = Step(*empty, *(torch.from_numpy(x).to(device) for x in given))
        news = last.get("news", torch.zeros(len(layers), *sizes, dtype=dtype, device=device))
        places = torch.full((batch,), (turn - 1) % weights.window if turn else -1, dtype=torch.int32, device=device)
        found = dialogue(torch.from_numpy(codes).to(device), step, rings, layers, out, Kept(news, places))
        last["news"] = found[2]
        keys, values = (found[2][:, :, :, i].flatten(3).transpose(0, 1).float().cpu().numpy() for i in (0, 1))
        return found[0].cpu().numpy(), found[1].cpu().numpy(), keys, values

    return run


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_turn_by_turn_it_is_the_exported_graph(model, dtype):
    """Nine turns, rings wrapping: logits, embedding, and what each turn leaves behind."""
    graph = pytest.importorskip("export.graphs").DialogueGraph(copy.deepcopy(model))
    model, config = copy.deepcopy(model).to(DEVICE), model.config
    layers = [weights_of(f, b, dtype) for f, b in zip(model.dialogue_scope, model.bias)]
    out, e = head_of(model.head, dtype), config.width // config.heads
    shape = (2, len(layers), config.window, 2, config.heads, e)
    rings = Ring(*(torch.full(shape, float("nan"), dtype=dtype, device=DEVICE) for _ in range(2)))
    chat = Conversation("key", Sizes(config.window, config.dialogue_layers, config.width))
    rng, sizes = np.random.default_rng(0), (1, 2, 2, config.heads, e)
    kept = Kept(torch.zeros(len(layers), *sizes, dtype=dtype, device=DEVICE), torch.tensor([-1]).int().to(DEVICE))
    for turn in range(9):
        speaker = ("anna", "bob", None)[turn % 3]
        present = np.array([[True, True], [False, True], [True, False]][turn % 3])
        codes = torch.from_numpy(rng.standard_normal((1, 2, config.width), np.float32))
        recall = chat.view(speaker).arrays
        with torch.no_grad():
            expected = graph(codes, torch.from_numpy(present)[None], *(torch.from_numpy(x) for x in recall[2:]))
        both = np.array([1, 2])
        given = [np.array([1], np.int32), np.array([turn], np.int32),
                 (recall.visible @ both + 4 * recall.relation).astype(np.uint8),
                 np.array([present @ both + 4 * recall.own_relation[0, 0]], np.uint8)]  # fmt: skip
        empty = [torch.empty(sizes, dtype=dtype, device=DEVICE) for _ in range(2)]
        step = Step(*empty, *(torch.from_numpy(x).to(DEVICE) for x in given))
        logits, embedding, news = dialogue(codes.to(DEVICE), step, rings, layers, out, kept)
        keys, values = (news[:, :, :, i].flatten(3).transpose(0, 1).float().cpu() for i in (0, 1))
        tolerance = {"rtol": 1e-4, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
        for found, wanted in zip((logits.cpu(), embedding.cpu(), keys, values), expected):
            torch.testing.assert_close(found, wanted, **tolerance)
        zero = np.zeros((2, config.width), np.float32)
        commit(chat, TurnState(zero, zero, keys[0].numpy(), values[0].numpy(), present), speaker)
        kept = Kept(news, torch.tensor([turn % config.window]).int().to(DEVICE))


def test_what_does_not_fit_is_said(model):
    out = head_of(model.head, torch.float32)
    wide = out._replace(down_bias=torch.zeros(33))
    for codes, head in ((torch.zeros(1, 2, 32).double(), out), (torch.zeros(1, 2, 32), wide)):
        with pytest.raises(ValueError, match=r"takes contiguous float32 \(B, 2, d\) and up to 32"):
            dialogue(codes, None, Ring(torch.zeros(1, 2, 5, 2, 2, 16), torch.zeros(1, 2, 5, 2, 2, 16)), [], head, None)


def test_triton_and_the_runtime_lay_the_same_weights_out(tiny):
    """`by_triton`, which a GPU's launcher is compared with, against the exported graph here."""
    from hbaf_edge.backends.base import Request, joined
    from hbaf_edge.backends.cuda.weights import dialogue_weights
    from hbaf_edge.backends.settings import session_options
    from hbaf_edge.bundle import load_bundle
    from hbaf_edge.ort import onnxruntime as ort

    bundle = load_bundle(tiny.bundle)
    run = by_triton(dialogue_weights(bundle), torch.float32, 3, DEVICE)
    graph = ort.InferenceSession(bundle.graph("dialogue"), session_options(1), providers=["CPUExecutionProvider"])
    chats, rng = [Conversation("key", Sizes(5, 2, 32)) for _ in range(2)], np.random.default_rng(1)
    for turn in range(7):
        codes, present = rng.standard_normal((2, 2, 32)).astype(np.float32), np.array([[True, turn % 3 > 0]] * 2)
        recall = joined([Request(None, None, c.view(("anna", None)[turn % 2])) for c in chats])
        seen = {n: getattr(recall, n) for n in ("keys", "values", "visible", "distance", "relation", "own_relation")}
        expected = graph.run(None, {"codes": codes, "present": present, **seen})
        for found, wanted in zip(run(codes, present, turn, recall), expected):
            np.testing.assert_allclose(found, wanted, atol=1e-4)
        zero = np.zeros((2, 32), np.float32)
        for b, chat in enumerate(chats):
            commit(chat, TurnState(zero, zero, expected[2][b], expected[3][b], present[b]), ("anna", None)[turn % 2])
