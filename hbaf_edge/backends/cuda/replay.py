"""CUDA graphs through cuda-bindings: what was put on a stream once is replayed in one call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from hbaf_edge.errors import BackendError

log = logging.getLogger("hbaf_edge")


def bindings() -> Any:
    """cuda-bindings' driver module, which shares pycuda's context; None where it is not installed, which is logged."""
    try:
        from cuda.bindings import driver as found  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        log.warning("turns are launched one by one, not as a graph: %s; pip install cuda-bindings", error)
        return None
    return found


def capture(graphs: Any, stream: int, enqueue: Callable[[], None]) -> Any:
    """What `enqueue` puts on a stream as an executable graph; False where that cannot be had, which is logged."""
    mode, graph = graphs.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, None
    try:
        _checked(graphs, graphs.cuStreamBeginCapture(stream, mode))
        try:
            enqueue()
        finally:  # a stream that stays in capture takes no more work
            ended, graph = graphs.cuStreamEndCapture(stream)
        _checked(graphs, (ended,))
        (executable,) = _checked(graphs, graphs.cuGraphInstantiate(graph, 0))
    except Exception as error:  # ours, pycuda's of a launch, cuda-bindings' on an older driver: no common base
        log.warning("turns are launched one by one, not as a graph: %s", error)
        return False
    finally:
        if graph is not None:
            graphs.cuGraphDestroy(graph)
    return executable


def released(graphs: Any, executable: Any) -> None:
    """An executable graph is needed no more."""
    graphs.cuGraphExecDestroy(executable)


def launched(graphs: Any, executable: Any, stream: int) -> bool:
    """Whether a graph could be put on a stream."""
    return bool(graphs.cuGraphLaunch(executable, stream)[0] == graphs.CUresult.CUDA_SUCCESS)


def _checked(graphs: Any, returned: Sequence[Any]) -> Sequence[Any]:
    """What a call returned behind its error code.

    Raises:
        BackendError: it failed.
    """
    code, *rest = returned
    if code != graphs.CUresult.CUDA_SUCCESS:
        raise BackendError(f"the GPU refused a graph ({code})")
    return rest
