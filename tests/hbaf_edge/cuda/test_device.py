"""Transfer buffers, the row pool, driver calls, and the dialogue scope against float64."""

import gc
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock as Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hbaf_edge.backends.base import Request, stack_contexts
from hbaf_edge.backends.cuda.device import Device
from hbaf_edge.backends.cuda.dialogue import DialogueOnGpu, DialogueScope
from hbaf_edge.backends.cuda.driver import Driver
from hbaf_edge.backends.cuda.kernels import choose
from hbaf_edge.backends.cuda.row_pool import RowPool, RowUpdate
from hbaf_edge.backends.cuda.transfer import ALIGNMENT, TransferBuffers
from hbaf_edge.backends.cuda.weights import dialogue_weights
from hbaf_edge.bundle import load_bundle
from hbaf_edge.conversation import Conversation, TurnState
from hbaf_edge.conversation import Sizes as conversation_sizes
from hbaf_edge.errors import BackendError
from kernels.reference import GateWeights, Memory, both_gates
from kernels.shipped import Sizes
from tests import backends
from tests.hbaf_edge.cuda.host import FakeDriver, HostDevice

ARRAY_DTYPES = [np.float32, np.float16, np.int32, np.uint8, np.bool_]
SPEC = st.tuples(st.sampled_from(ARRAY_DTYPES), st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple))
KERNEL = choose("gate_step", 87, "float16", 32, 4, 64)


@given(specs=st.lists(SPEC, min_size=1, max_size=8))
def test_arrays_are_copied_in_one_aligned_transfer_per_direction(specs):
    device, rng = HostDevice(Sizes(5, 2, 16)), np.random.default_rng(0)
    buffers = TransferBuffers(device)
    inputs = {str(i): rng.integers(0, 2, shape).astype(dtype) for i, (dtype, shape) in enumerate(specs)}
    addresses = buffers.upload(inputs)
    assert all(address % ALIGNMENT == 0 for address in addresses.values())
    for name, array in inputs.items():
        assert np.array_equal(device.array(addresses[name], array.shape, array.dtype), array)
    output_specs = {str(i): spec for i, spec in enumerate(specs)}
    for name, address in buffers.reserve_outputs(output_specs).items():
        device.array(address, inputs[name].shape, inputs[name].dtype)[...] = inputs[name]
    outputs = buffers.download(output_specs)
    assert all(np.array_equal(outputs[name], array) for name, array in inputs.items())
    assert device.copies == [1, 1]


def new_conversation():
    return Conversation("key", conversation_sizes(4, 2, 8))


def commit(conversation):
    rings = (*(np.zeros((2, 8)) for _ in range(2)), *(np.zeros((2, 2, 8)) for _ in range(2)))
    backends.commit_turn(conversation, TurnState(*rings, np.ones(2, bool)))


def assign_and_confirm(pool, *conversations):
    views = [conversation.view(None) for conversation in conversations]
    updates = pool.assign(views)
    pool.confirm(views, updates)
    return updates


def test_a_row_is_updated_by_what_it_lacks():
    pool, one = RowPool(2), new_conversation()
    assert assign_and_confirm(pool, one) == [RowUpdate(0, False, -1, clear=True)], "nothing to copy"
    assert assign_and_confirm(pool, one) == [RowUpdate(0, False, -1)], "a provisional turn"
    commit(one)
    assert assign_and_confirm(pool, one) == [RowUpdate(0, False, 0)]
    assert assign_and_confirm(pool, one) == [RowUpdate(0, False, -1)]
    commit(one), commit(one)
    assert assign_and_confirm(pool, one) == [RowUpdate(0, True, -1)], "two turns that another back end computed"
    commit(one)
    assert pool.assign([one.view(None)]) == [RowUpdate(0, False, 3)]
    assert assign_and_confirm(pool, one) == [RowUpdate(0, False, 3)], "the last update was not confirmed"
    assert assign_and_confirm(pool, one.fork()) == [RowUpdate(1, True, -1)]
    one.reset()
    assert assign_and_confirm(pool, one)[0].slot == -1
    pool.invalidate()
    commit(one)
    assert assign_and_confirm(pool, one) == [RowUpdate(0, True, -1)]


def test_the_least_recently_used_row_is_reassigned():
    pool, (a, b, c) = RowPool(2), (new_conversation() for _ in range(3))
    for one in (a, b, c):
        commit(one)
    assert [p.row for p in assign_and_confirm(pool, a, b)] == [0, 1]
    assign_and_confirm(pool, a)
    assert assign_and_confirm(pool, c) == [RowUpdate(1, True, -1)], "b's row, since a was used last"
    assert assign_and_confirm(pool, a) == [RowUpdate(0, False, -1)]
    assert assign_and_confirm(pool, b) == [RowUpdate(1, True, -1)]
    with pytest.raises(BackendError, match="3 turns came at once; the GPU keeps 2 conversations"):
        pool.assign([one.view(None) for one in (a, b, c)])


def test_a_deleted_conversation_frees_its_row():
    pool, a, b = RowPool(2), new_conversation(), new_conversation()
    assign_and_confirm(pool, a, b)
    del b
    gc.collect()
    assert assign_and_confirm(pool, new_conversation())[0].row == 1, "a's row is older, but in use"


class FakePycuda:
    """Replaces pycuda's driver: records every call and lets it succeed, except for kernel launches."""

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
def test_the_second_turn_is_captured_and_errors_fall_back_to_single_launches(monkeypatch, failing, caplog):
    FakePycuda(monkeypatch)
    driver, turns = FakeDriver(monkeypatch, failing), []
    device = Device()
    for _ in range(4):
        device.replay("turn", lambda: turns.append(1))
    captured = failing != "cuStreamBeginCapture"
    assert driver.count("cuStreamEndCapture") == captured
    assert driver.count("cuGraphDestroy") == (failing in (None, "cuGraphInstantiate", "cuGraphLaunch"))
    assert len(turns) == (2 if failing is None else 4 + captured)
    assert driver.count("cuGraphLaunch") == {None: 3, "cuGraphLaunch": 1}.get(failing, 0)
    assert ("one by one" in caplog.text) == (failing is not None)


def test_a_failed_launch_ends_the_capture_and_raises(monkeypatch):
    FakePycuda(monkeypatch)
    driver = FakeDriver(monkeypatch)
    device = Device()
    kernel = device.load(KERNEL)
    values = dict.fromkeys((n for n, _ in KERNEL[0].arguments if not n.endswith("_scratch")), 0)
    device.replay("turn", list)
    with (
        pytest.raises(BackendError, match=r"the GPU failed in a test \(launch failed\)"),
        device.current_context("in a test"),
    ):
        device.replay("turn", lambda: device.launch(kernel, (1, 1, 1), values))
    assert [name for name, *_ in driver.calls if name.startswith(("cuStream", "cuGraph"))] == [
        "cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphDestroy"
    ]  # fmt: skip


def test_an_unused_device_releases_its_resources(monkeypatch):
    pycuda, driver = FakePycuda(monkeypatch), FakeDriver(monkeypatch)
    device = Device()
    memory = pycuda.calls.mem_alloc.return_value
    memory.__int__ = lambda self: 256
    device.allocate(8)
    for _ in range(2):
        device.replay("turn", list)
    del device
    gc.collect()
    assert driver.count("cuGraphExecDestroy") == 1
    memory.free.assert_called_once()
    context = pycuda.calls.Device.return_value.retain_primary_context.return_value
    assert context.push.call_count == context.pop.call_count


def test_the_next_kernel_is_loaded_when_the_driver_rejects_one(monkeypatch, caplog):
    """Older drivers reject files of newer compilers."""
    driver = FakeDriver(monkeypatch)
    load = driver.cuModuleLoadData
    driver.cuModuleLoadData = lambda content: (209, None) if content == KERNEL[0].content else load(content)
    assert Driver().load(KERNEL).kernel == KERNEL[1]
    assert "cubin of 8.7: cuModuleLoadData: 209" in caplog.text
    with pytest.raises(BackendError, match=r"the driver accepts none of the kernels .*update NVIDIA's driver"):
        Driver().load(KERNEL[:1])


def test_the_error_without_pycuda_driver_or_gpu_says_what_to_install(monkeypatch):
    message = r"cannot be reached through {} \(.+\): .*hbaf-edge\[tensorrt\].*provider='cpu'"
    FakeDriver(monkeypatch, "cuDeviceGet")
    with pytest.raises(BackendError, match=message.format("cuda-bindings")):
        Driver()
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(BackendError, match=message.format("pycuda")):
        Device()


def dialogue_in_float64(weights, codes, present, context):
    """The dialogue scope in float64: logits, embedding, and keys and values (B, L, 2, d) of the new turns."""
    states, head_shape = torch.from_numpy(codes).double(), (weights.heads, weights.e)
    far = torch.from_numpy(np.pad(np.minimum(context.distance, weights.window - 1), ((0, 0), (0, 1))))
    relation = torch.from_numpy(np.concatenate([context.relation, context.own_relation], 1))
    visible = torch.from_numpy(np.concatenate([context.visible, present[:, None]], 1))
    keys, values = [], []
    for index, arrays in enumerate(weights.layers):
        w = {name: torch.from_numpy(array).double() for name, array in arrays.items()}
        queries, memories = [], []
        for m in range(2):
            projected = states[:, m] @ w["project"][m].T + w["project_bias"][m]
            query, cross, *new = (x.unflatten(-1, head_shape)[:, :, None] for x in projected.chunk(4, -1))
            rings = (torch.from_numpy(x[:, index, :, m]).double() for x in (context.keys, context.values))
            memory = (torch.cat([r.unflatten(-1, head_shape).transpose(1, 2), x], 2) for r, x in zip(rings, new))
            bias = w["bias"][m][:, far.long(), relation.long()].transpose(0, 1)[:, :, None]
            queries.append((query, cross))
            memories.append(Memory(*memory, visible[:, None, :, m], bias))
        for stored, part in ((keys, 0), (values, 1)):
            stored.append(torch.stack([memory[part][:, :, -1].flatten(1) for memory in memories], 1))
        gates = [GateWeights(*(w[name][m] for name in GateWeights._fields)) for m in range(2)]
        results = []
        for m, answer in enumerate(both_gates(queries, memories, gates)):
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
def test_dialogue_scope_is_close_to_float64(dtype, atol, batch, turns):
    """With the default model: on a GPU until the rings wrap around, with graph replay; else in the interpreter."""
    gpu = turns == 40
    device, weights = Device() if gpu else HostDevice(Sizes(32, 4, 64)), dialogue_weights(load_bundle(None))
    scope = DialogueOnGpu(DialogueScope(device, weights, dtype, 4), device)
    conversations, rng = (
        [Conversation("key", conversation_sizes(32, 2, 256)) for _ in range(batch)],
        np.random.default_rng(1),
    )
    zero = np.zeros((2, 256), np.float32)
    for turn in range(turns):
        speaker, present = ("anna", "bob", None)[turn % 3], np.array([[True, turn % 3 > 0]] * batch)
        codes = rng.standard_normal((batch, 2, 256)).astype(np.float32)
        requests = [Request(None, None, c.view(speaker)) for c in conversations]
        results = scope(codes, present, requests)
        for ours, exact in zip(results, dialogue_in_float64(weights, codes, present, stack_contexts(requests))):
            np.testing.assert_allclose(ours, exact.numpy(), rtol=atol, atol=atol)
        for b, one in enumerate(conversations):
            backends.commit_turn(one, TurnState(zero, zero, results[2][b], results[3][b], present[b]), speaker)
