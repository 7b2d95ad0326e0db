"""The kernel benchmark compares one function computed in several ways and counts what it moves."""

import os

import pytest
import torch

from benchmarks import kernels
from hbaf_edge.errors import BackendError
from kernels.reference import bimodal_attention_gate
from kernels.ring import Ring, step_reference


def test_all_ways_compute_the_same_step():
    given, ring, weights = kernels.made_step(3, 8, 128, torch.float32, "cpu")
    other = Ring(*(x.clone() for x in ring))
    given = given._replace(slots=given.slots * torch.tensor([1, 0, 1], dtype=torch.uint8)[:, None])
    found = kernels.attention_twice(given, other, weights)
    torch.testing.assert_close(found, step_reference(given, ring, weights, store=True), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(ring, other))


@pytest.mark.parametrize("shape", [(2, 9, 9), (2, 7, 5)])
def test_all_ways_compute_the_same_sequence(shape):
    given = kernels.made_sequence(*shape, torch.float32, "cpu", d=128)
    torch.testing.assert_close(kernels.sequence_twice(*given), bimodal_attention_gate(*given), rtol=1e-5, atol=1e-6)


def test_a_layer_is_the_same_either_way():
    made = kernels.made_layer(3, 8, 128, torch.float32, "cpu")
    twin = made._replace(ring=Ring(*(x.clone() for x in made.ring)))
    torch.testing.assert_close(kernels.by_kernels(made), kernels.in_torch(twin), rtol=1e-4, atol=1e-5)
    for a, b in zip(made.ring, twin.ring):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_plain_layer_never_takes_the_kernel(monkeypatch):
    """Which is what it is compared with; on a GPU the modules of training take it by themselves."""
    monkeypatch.setenv("HBAF_KERNELS", "triton")
    monkeypatch.setattr("kernels.sequence.gate", lambda *_: pytest.fail("the kernel was launched"))
    kernels.in_torch(kernels.made_layer(1, 8, 128, torch.float32, "cpu"))
    assert os.environ["HBAF_KERNELS"] == "triton"


def test_inputs_rotate_over_more_than_a_cache_holds(monkeypatch):
    """Weights of a layer too, which are the same for every conversation."""
    monkeypatch.setattr(kernels, "ROTATE", 3 << 20)
    inputs = kernels.rotated(lambda: kernels.made_layer(1, 8, 128, torch.float16, "cpu"))
    parts = {x.data_ptr(): x.nbytes for given in inputs for x in kernels.tensors_of(given)}
    assert 3 << 20 < sum(parts.values()) < 6 << 20


def test_bytes_are_those_of_the_tensors():
    """Counted from the tensors: ring and turn read once, the new slot and the answer written once."""
    given, ring, weights = kernels.made_step(4, 32, 256, torch.float16, "cpu")
    size = sum(x.nbytes for part in (given, ring, weights) for x in part)
    unread = sum(x[:, :1].numel() * x.element_size() for x in ring)  # one slot has left the window
    answers, stored = 4 * 2 * 256 * 2, given.news.nbytes
    assert kernels.step_bytes(4, 32, 256) == size - unread + answers + stored


def test_without_a_gpu_nothing_is_measured():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(BackendError, match="no NVIDIA GPU"):
        kernels.main()


@pytest.mark.gpu
def test_on_a_gpu_every_way_is_timed():
    for kind, cases in kernels.cases(quick=True).items():
        section = kernels.section(kind, cases, repeats=5)
        assert len(section.measures) == sum(len(case.ways) for case in cases)
        assert all(measure["p50"] > 0 for measure in section.measures.values())
