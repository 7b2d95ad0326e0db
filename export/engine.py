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

from hbaf_edge.backends.cuda.engines import Reach, cache_folder, engine
from hbaf_edge.backends.cuda.kernels import CUBINS
from hbaf_edge.bundle import GRAPHS, load_bundle
from training.command import cli


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
    for one in capability or (None,):
        for graph in GRAPHS:
            start = time.perf_counter()
            reach = Reach(batch=(1, 1, batch))
            made = engine(
                loaded, graph, library_name=library, capability=one, reach=reach, cache=cache, kernels=kernels
            )
            size = len(made) / 1e6
            rows.append([graph, one or "here", round(size, 1), round(time.perf_counter() - start, 1)])
            print("{}, compute capability {}: {} MB, {} s".format(*rows[-1]))
    print(json.dumps({"cache": str(cache or cache_folder()), "engines": rows}))


if __name__ == "__main__":
    cli(main)
