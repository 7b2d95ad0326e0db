"""Bundle -> engines in the user's cache folder, for the GPU back end to come.

    python -m export.engine runs/mine/float16                                # TensorRT, for the GPU that is here
    python -m export.engine runs/mine/int8-tensorrt --library rtx --capability 8.6 8.9 12.0   # needs no GPU

What is in the cache already is not built again. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress as Bars
from rich.table import Table

from export.command import run
from hbaf_edge.bundle import GRAPHS, load_bundle
from hbaf_edge.gpu.build import LIBRARIES
from hbaf_edge.gpu.engines import Reach, cache_folder, engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="float32, float16 or int8-tensorrt")
    parser.add_argument("--library", choices=list(LIBRARIES), default="tensorrt")
    parser.add_argument("--capability", nargs="+", default=[None], help="such as 8.6; with rtx alone")
    parser.add_argument("--batch", type=int, default=Reach().batch[2], help="most conversations at once")
    parser.add_argument("--cache", type=Path, help=f"in place of {cache_folder()}")
    given = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    reach = Reach(batch=(1, 1, given.batch))
    rows = []
    bundle = load_bundle(given.bundle)
    with Bars(transient=True) as bars:
        for capability in given.capability:
            for graph in GRAPHS:
                task, start = bars.add_task(graph, total=None), time.perf_counter()

                def show(phase: str, step: int, steps: int, task: object = task, graph: str = graph) -> None:
                    bars.update(task, description=f"{graph}: {phase}", completed=step, total=steps)  # type: ignore[arg-type]

                made = engine(bundle, graph, given.library, capability, reach, given.cache, show)
                bars.remove_task(task)
                rows.append((graph, capability or "here", len(made) / 1e6, time.perf_counter() - start))
    shown = Table("graph", "capability", "MB", "seconds", title=f"{bundle.manifest['precision']} engines")
    for graph, where, size, seconds in rows:
        shown.add_row(graph, where, f"{size:.1f}", f"{seconds:.1f}")
    Console().print(shown)
    print(json.dumps({"cache": str(given.cache or cache_folder()), "engines": [list(row) for row in rows]}))


if __name__ == "__main__":
    run(main)
