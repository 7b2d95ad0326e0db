"""Packing, the pool of rows, and what is said without a GPU; with one, that Triton's own launches give the same."""

import gc
import json
import sys

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from hbaf_edge import conversation
from hbaf_edge.backends.cuda.device import Device, driver, release
from hbaf_edge.backends.cuda.kernels import CUBINS
from hbaf_edge.backends.cuda.packed import ALIGNMENT, Packed
from hbaf_edge.backends.cuda.pool import Place, Pool
from hbaf_edge.backends.cuda.replay import capture
from hbaf_edge.conversation import Conversation, TurnState
from hbaf_edge.errors import BackendError
from tests import backends

KINDS = [np.float32, np.float16, np.int32, np.uint8, np.bool_]
PART = st.tuples(st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple), st.sampled_from(KINDS))


@drawn(parts=st.lists(PART, min_size=1, max_size=8))
def test_parts_are_aligned_and_do_not_overlap(parts):
    packed = Packed.of({str(i): part for i, part in enumerate(parts)})
    buffer, rng = np.zeros(packed.size, np.uint8), np.random.default_rng(0)
    given = {n: rng.integers(0, 2, packed.shapes[n]).astype(packed.kinds[n]) for n in packed.kinds}
    packed.fill(buffer, given)
    for name, array in given.items():
        assert packed.at(1 << 20)[name] % ALIGNMENT == 0
        assert np.array_equal(packed.view(buffer, name), array)


def test_what_does_not_fit_is_said_and_nothing_is_written():
    packed = Packed.of({"a": ((2,), np.int32), "b": ((2, 3), np.float16)})
    buffer = np.zeros(packed.size, np.uint8)
    for b, said in (
        (None, r"b is nothing; the GPU takes float16 \(2, 3\)"),
        (np.ones((3, 2)), r"b is float64 \(3, 2\)"),
    ):
        with pytest.raises(BackendError, match=said):
            packed.fill(buffer, {"a": np.ones(2, np.int32), "b": b})
    assert not buffer.any()


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


class Bindings:
    """cuda-bindings' answers; `failing` names the calls that fail."""

    class CUresult:
        CUDA_SUCCESS = 0

    class CUstreamCaptureMode:
        CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1

    def __init__(self, *failing):
        self.failing, self.called = failing, []

    def __getattr__(self, name):
        def call(*given):
            self.called.append((name, *given))
            return (719 if name in self.failing else 0, f"{name}'s")

        return call


def refused():
    raise type("Error", (Exception,), {})("launch failed")  # as pycuda's, which is no RuntimeError


@pytest.mark.parametrize(
    ("bindings", "enqueue"),
    [(Bindings(), refused), (Bindings("cuGraphInstantiate"), list), (Bindings("cuStreamEndCapture"), list)],
)
def test_a_graph_that_cannot_be_had_leaves_nothing_behind(bindings, enqueue, caplog):
    assert capture(bindings, 7, enqueue) is False
    assert [name for name, *_ in bindings.called].count("cuStreamEndCapture") == 1
    assert bindings.called[-1] == ("cuGraphDestroy", "cuStreamEndCapture's")
    assert "one by one" in caplog.text


def test_a_device_that_nobody_uses_gives_back_what_it_held():
    class Held:
        done = ()

        def __getattr__(self, name):
            return lambda: setattr(self, "done", (*self.done, name))

    context, stream, memory, bindings = Held(), Held(), Held(), Bindings()
    graphs, kept = {"a": "graph", "b": False, "c": None}, [memory]
    release(context, stream, bindings, graphs, kept)
    assert (context.done, stream.done, memory.done) == (("push", "pop"), ("synchronize",), ("free",))
    assert bindings.called == [("cuGraphExecDestroy", "graph")]
    assert not graphs
    assert not kept


SAID = r"cannot be reached through pycuda \(.+\): .*hbaf-edge\[tensorrt\].*provider='cpu'"


def test_without_pycuda_one_clear_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    for attempt in (driver, Device):
        with pytest.raises(BackendError, match=SAID):
            attempt()


def test_without_a_driver_too():
    """As it is on this machine: where pycuda is installed and there is no driver, importing it fails in its own way."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a driver")
    with pytest.raises(BackendError, match=SAID):
        driver()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("batch", [1, 3])
def test_on_a_gpu_it_is_tritons_launch_bit_for_bit(dtype, batch):
    """The default model's scope, turn after turn: rings fill and wrap, the graph is captured and replayed.

    Where the Triton here is the one that compiled what ships; another one may add in another order.
    """
    torch = pytest.importorskip("torch")
    pytest.importorskip("pycuda.driver")
    from hbaf_edge.backends.cuda.dialogue import DialogueOnGpu, DialogueScope
    from hbaf_edge.backends.cuda.weights import dialogue_weights
    from hbaf_edge.bundle import load_bundle
    from tests.kernels.test_dialogue import by_triton

    triton = pytest.importorskip("triton")
    device, weights = Device(), dialogue_weights(load_bundle(None))
    shipped = json.loads((CUBINS / "manifest.json").read_text())["triton"]
    same = shipped == triton.__version__ and device.capability in (75, 80, 86, 89, 90)
    scope = DialogueScope(device, weights, dtype, 4)
    ours, theirs = DialogueOnGpu(scope, device), by_triton(weights, getattr(torch, dtype), 4, "cuda")
    chats, rng = [Conversation("key", conversation.Sizes(32, 2, 256)) for _ in range(batch)], np.random.default_rng(1)
    from hbaf_edge.backends.base import Request, joined

    for turn in range(40):
        codes = rng.standard_normal((batch, 2, 256)).astype(np.float32)
        present = np.array([[True, turn % 3 > 0]] * batch)
        requests = [Request(None, None, c.view(("anna", "bob", None)[turn % 3])) for c in chats]
        found = ours(codes, present, requests)
        expected = theirs(codes, present, turn, joined(requests))
        for a, b in zip(found, expected):
            np.testing.assert_allclose(a, b, rtol=0, atol=0 if same else 2e-3)
        zero = np.zeros((2, 256), np.float32)
        for b, one in enumerate(chats):
            state = TurnState(zero, zero, found[2][b], found[3][b], present[b])
            backends.commit(one, state, ("anna", "bob", None)[turn % 3])
