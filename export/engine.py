"""Bundle -> engines in the user's cache folder, for `provider="tensorrt"`.

    python -m export.engine runs/mine/float16                    # TensorRT, for the GPU that is here
    python -m export.engine runs/mine/int8-tensorrt --library rtx --capability 8.6 8.9 12.0   # needs no GPU

With TensorRT the gates are our kernel (hbaf_edge/backends/cuda/plugin.py). What is in the cache already is not built
again. The last line is JSON.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress as Bars
from rich.table import Table

from hbaf_edge.backends.cuda.engines import Reach, cache_folder, engine
from hbaf_edge.backends.cuda.kernels import CUBINS
from hbaf_edge.bundle import GRAPHS, Bundle, load_bundle
from training.command import cli


def timed_engine(bars: Bars, bundle: Bundle, graph: str, **settings: Any) -> tuple[float, float]:
    """Megabytes of a graph's engine and the seconds it took, with a bar meanwhile."""
    task, start = bars.add_task(graph, total=None), time.perf_counter()

    def show(phase: str, step: int, steps: int) -> None:
        bars.update(task, description=f"{graph}: {phase}", completed=step, total=steps)

    made = engine(bundle, graph, progress=show, **settings)
    bars.remove_task(task)
    return len(made) / 1e6, time.perf_counter() - start


def main(
    bundle: Path,
    /,
    library: str = "tensorrt",
    capability: tuple[str, ...] = (),
    batch: int = Reach().batch[2],
    cache: Path | None = None,
    kernels: Path = CUBINS,
) -> None:
    """Build the engines of a bundle's graphs.

    Args:
        bundle: float32, float16 or int8-tensorrt.
        library: tensorrt or rtx.
        capability: such as 8.6; with rtx alone.
        batch: most conversations at once.
        cache: in place of the user's cache folder.
        kernels: folder of python -m kernels.build, for a model of other sizes.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    loaded, rows = load_bundle(bundle), []
    with Bars(transient=True) as bars:
        for one in capability or (None,):
            settings = {"library_name": library, "capability": one, "reach": Reach(batch=(1, 1, batch)),
                        "cache": cache, "kernels": kernels}  # fmt: skip
            rows += [(graph, one or "here", *timed_engine(bars, loaded, graph, **settings)) for graph in GRAPHS]
    shown = Table("graph", "capability", "MB", "seconds", title=f"{loaded.manifest['precision']} engines")
    for graph, where, size, seconds in rows:
        shown.add_row(graph, where, f"{size:.1f}", f"{seconds:.1f}")
    Console().print(shown)
    print(json.dumps({"cache": str(cache or cache_folder()), "engines": [list(row) for row in rows]}))


if __name__ == "__main__":
    cli(main)
