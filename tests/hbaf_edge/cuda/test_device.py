"""Packing, the pool of rows, and the driver's calls; the dialogue scope against float64."""

import gc
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock as Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given as drawn
from hypothesis import strategies as st

from hbaf_edge import conversation
from hbaf_edge.backends.base import Request, joined
from hbaf_edge.backends.cuda.device import Device
from hbaf_edge.backends.cuda.dialogue import DialogueOnGpu, DialogueScope
from hbaf_edge.backends.cuda.driver import Driver
from hbaf_edge.backends.cuda.exchange import ALIGNMENT, Exchange
from hbaf_edge.backends.cuda.kernels import choose
from hbaf_edge.backends.cuda.pool import Place, Pool
from hbaf_edge.backends.cuda.weights import dialogue_weights
from hbaf_edge.bundle import load_bundle
from hbaf_edge.conversation import Conversation, TurnState
from hbaf_edge.errors import BackendError
from kernels.reference import GateWeights, Memory, both_gates
from kernels.shipped import Sizes
from tests import backends
from tests.hbaf_edge.cuda.host import Bindings, HostDevice

KINDS = [np.float32, np.float16, np.int32, np.uint8, np.bool_]
PART = st.tuples(st.sampled_from(KINDS), st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple))
KERNEL = choose("gate_step", 87, "float16", 32, 4, 64)


@drawn(parts=st.lists(PART, min_size=1, max_size=8))
def test_arrays_cross_in_one_copy_aligned_and_apart(parts):
    device, rng = HostDevice(Sizes(5, 2, 16)), np.random.default_rng(0)
    exchange = Exchange(device)
    given = {str(i): rng.integers(0, 2, shape).astype(kind) for i, (kind, shape) in enumerate(parts)}
    at = exchange.bring(given)
    assert all(address % ALIGNMENT == 0 for address in at.values())
    for name, array in given.items():
        assert np.array_equal(device.array(at[name], array.shape, array.dtype), array)
    coming = {str(i): part for i, part in enumerate(parts)}
    for name, address in exchange.room(coming).items():
        device.array(address, given[name].shape, given[name].dtype)[...] = given[name]
    found = exchange.take(coming)
    assert all(np.array_equal(found[name], array) for name, array in given.items())
    assert device.copies == [1, 1]


def chat():
    return Conversation("key", conversation.Sizes(4, 2, 8))


def commit(chat):
    rings = (*(np.zeros((2, 8)) for _ in range(2)), *(np.zeros((2, 2, 8)) for _ in range(2)))
    backends.commit(chat, TurnState(*rings, np.ones(2, bool)))


def placed(pool, *chats):
    views = [chat.view(None) for chat in chats]
    places = pool.place(views)
    pool.confirm(views, places)
    return places


def test_a_row_follows_its_conversation():
    pool, one = Pool(2), chat()
    assert placed(pool, one) == [Place(0, False, -1, fresh=True)], "an empty ring has nothing to write"
    assert placed(pool, one) == [Place(0, False, -1)], "a turn that was only tried"
    commit(one)
    assert placed(pool, one) == [Place(0, False, 0)]
    assert placed(pool, one) == [Place(0, False, -1)]
    commit(one), commit(one)
    assert placed(pool, one) == [Place(0, True, -1)], "two turns that this GPU did not see"
    commit(one)
    assert pool.place([one.view(None)]) == [Place(0, False, 3)]
    assert placed(pool, one) == [Place(0, False, 3)], "what was not confirmed is still lacking"
    assert placed(pool, one.fork()) == [Place(1, True, -1)]
    one.reset()
    assert placed(pool, one)[0].slot == -1
    pool.forget()
    commit(one)
    assert placed(pool, one) == [Place(0, True, -1)]


def test_the_row_that_was_not_used_for_longest_gives_way():
    pool, (a, b, c) = Pool(2), (chat() for _ in range(3))
    for one in (a, b, c):
        commit(one)
    assert [p.row for p in placed(pool, a, b)] == [0, 1]
    placed(pool, a)
    assert placed(pool, c) == [Place(1, True, -1)], "b's, since a was used last"
    assert placed(pool, a) == [Place(0, False, -1)]
    assert placed(pool, b) == [Place(1, True, -1)]
    with pytest.raises(BackendError, match="3 turns came at once; the GPU keeps 2 conversations"):
        pool.place([one.view(None) for one in (a, b, c)])


def test_a_conversation_that_is_gone_leaves_its_row():
    pool, a, b = Pool(2), chat(), chat()
    placed(pool, a, b)
    del b
    gc.collect()
    assert placed(pool, chat())[0].row == 1, "a is older, and still there"


class Card:
    """pycuda's driver in a card's place: every call succeeds and is written down; kernels that are launched fail."""

    Error = type("Error", (Exception,), {})

    def __init__(self, monkeypatch):
        self.calls = Mock()
        self.calls.Device.count.return_value = 1
        self.calls.Device.return_value.compute_capability.return_value = (9, 0)
        self.calls.Stream.return_value.handle = 7
        self.calls.Error = self.Error
        launch = self.calls.module_from_buffer.return_value.get_function.return_value.prepared_async_call
        launch.side_effect = self.Error("launch failed")
        monkeypatch.setitem(sys.modules, "pycuda", SimpleNamespace(driver=self.calls))
        monkeypatch.setitem(sys.modules, "pycuda.driver", self.calls)


@pytest.mark.parametrize(
    "failing", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphLaunch", None]
)
def test_a_turn_is_captured_the_second_time_and_launched_one_by_one_where_it_cannot_be(monkeypatch, failing, caplog):
    Card(monkeypatch)
    bindings, turns = Bindings(monkeypatch, failing), []
    device = Device()
    for _ in range(4):
        device.replay("turn", lambda: turns.append(1))
    captured = failing != "cuStreamBeginCapture"
    assert bindings.count("cuStreamEndCapture") == captured
    assert bindings.count("cuGraphDestroy") == (failing in (None, "cuGraphInstantiate", "cuGraphLaunch"))
    assert len(turns) == (2 if failing is None else 4 + captured)
    assert bindings.count("cuGraphLaunch") == {None: 3, "cuGraphLaunch": 1}.get(failing, 0)
    assert ("one by one" in caplog.text) == (failing is not None)


def test_a_launch_that_fails_ends_the_capture_and_the_turn(monkeypatch):
    Card(monkeypatch)
    bindings = Bindings(monkeypatch)
    device = Device()
    kernel = device.load(KERNEL)
    values = dict.fromkeys((n for n, _ in KERNEL[0].arguments if not n.endswith("_scratch")), 0)
    device.replay("turn", list)
    with (
        pytest.raises(BackendError, match=r"the GPU failed in a test \(launch failed\)"),
        device.here("in a test"),
    ):
        device.replay("turn", lambda: device.launch(kernel, (1, 1, 1), values))
    assert [name for name, *_ in bindings.called if name.startswith(("cuStream", "cuGraph"))] == [
        "cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphDestroy"
    ]  # fmt: skip


def test_a_device_that_nobody_uses_gives_back_what_it_held(monkeypatch):
    card, bindings = Card(monkeypatch), Bindings(monkeypatch)
    device = Device()
    memory = card.calls.mem_alloc.return_value
    memory.__int__ = lambda self: 256
    device.allocate(8)
    for _ in range(2):
        device.replay("turn", list)
    del device
    gc.collect()
    assert bindings.count("cuGraphExecDestroy") == 1
    memory.free.assert_called_once()
    context = card.calls.Device.return_value.retain_primary_context.return_value
    assert context.push.call_count == context.pop.call_count


def test_the_next_kernel_is_taken_where_the_driver_refuses_one(monkeypatch, caplog):
    """As an older driver does."""
    bindings = Bindings(monkeypatch)
    load = bindings.cuModuleLoadData
    bindings.cuModuleLoadData = lambda content: (209, None) if content == KERNEL[0].content else load(content)
    assert Driver().load(KERNEL).kernel == KERNEL[1]
    assert "cubin of 8.7: cuModuleLoadData: 209" in caplog.text
    with pytest.raises(BackendError, match=r"the driver takes none of the kernels .*a newer driver does"):
        Driver().load(KERNEL[:1])


def test_without_pycuda_driver_or_card_one_clear_line_says_so(monkeypatch):
    said = r"cannot be reached through {} \(.+\): .*hbaf-edge\[tensorrt\].*provider='cpu'"
    Bindings(monkeypatch, "cuDeviceGet")
    with pytest.raises(BackendError, match=said.format("cuda-bindings")):
        Driver()
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(BackendError, match=said.format("pycuda")):
        Device()


def exactly(weights, codes, present, context):
    """The dialogue scope in float64: logits, embedding, and keys and values (L, B, 2, d) of the new turns."""
    states, wide = torch.from_numpy(codes).double(), (-1, weights.heads, weights.e)
    far = torch.from_numpy(np.pad(np.minimum(context.distance, weights.window - 1), ((0, 0), (0, 1))))
    relation = torch.from_numpy(np.concatenate([context.relation, context.own_relation], 1))
    visible = torch.from_numpy(np.concatenate([context.visible, present[:, None]], 1))
    keys, values = [], []
    for index, arrays in enumerate(weights.layers):
        w = {name: torch.from_numpy(array).double() for name, array in arrays.items()}
        asked, memories = [], []
        for m in range(2):
            made = states[:, m] @ w["project"][m].T + w["project_bias"][m]
            query, cross, *new = (x.unflatten(-1, wide[1:])[:, :, None] for x in made.chunk(4, -1))
            rings = (torch.from_numpy(x[:, index, :, m]).double() for x in (context.keys, context.values))
            memory = (torch.cat([r.unflatten(-1, wide[1:]).transpose(1, 2), x], 2) for r, x in zip(rings, new))
            bias = w["bias"][m][:, far.long(), relation.long()].transpose(0, 1)[:, :, None]
            asked.append((query, cross))
            memories.append(Memory(*memory, visible[:, None, :, m], bias))
        for found, part in ((keys, 0), (values, 1)):
            found.append(torch.stack([memory[part][:, :, -1].flatten(1) for memory in memories], 1))
        gates = [GateWeights(*(w[name][m] for name in GateWeights._fields)) for m in range(2)]
        results = []
        for m, answer in enumerate(both_gates(asked, memories, gates)):
            x = states[:, m] + answer[:, :, 0].flatten(1) @ w["out"][m].T + w["out_bias"][m]
            x = F.layer_norm(x, x.shape[-1:], w["norm"][m], w["shift"][m])
            fed = F.gelu(x @ w["up"][m].T + w["up_bias"][m]) @ w["down"][m].T + w["down_bias"][m]
            results.append(F.layer_norm(x + fed, x.shape[-1:], w["feed_norm"][m], w["feed_shift"][m]))
        states = torch.stack(results, 1)
    w = {name: torch.from_numpy(array).double() for name, array in weights.head.items()}
    logits = F.gelu(states.flatten(1) @ w["up"].T + w["up_bias"]) @ w["down"].T + w["down_bias"]
    return logits, states.flatten(1), torch.stack(keys, 1), torch.stack(values, 1)


@pytest.mark.parametrize("turns", [3, pytest.param(40, marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("dtype", "atol"), [("float16", 2e-2), ("float32", 2e-4)])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_scope_is_what_float64_gives(dtype, atol, batch, turns):
    """Of the default model: on a GPU until rings wrap, captured and replayed; elsewhere interpreted, as it ships."""
    gpu = turns == 40
    device, weights = Device() if gpu else HostDevice(Sizes(32, 4, 64)), dialogue_weights(load_bundle(None))
    scope = DialogueOnGpu(DialogueScope(device, weights, dtype, 4), device)
    chats, rng = [Conversation("key", conversation.Sizes(32, 2, 256)) for _ in range(batch)], np.random.default_rng(1)
    zero = np.zeros((2, 256), np.float32)
    for turn in range(turns):
        speaker, present = ("anna", "bob", None)[turn % 3], np.array([[True, turn % 3 > 0]] * batch)
        codes = rng.standard_normal((batch, 2, 256)).astype(np.float32)
        requests = [Request(None, None, c.view(speaker)) for c in chats]
        found = scope(codes, present, requests)
        for ours, exact in zip(found, exactly(weights, codes, present, joined(requests))):
            np.testing.assert_allclose(ours, exact.numpy(), rtol=atol, atol=atol)
        for b, one in enumerate(chats):
            backends.commit(one, TurnState(zero, zero, found[2][b], found[3][b], present[b]), speaker)
