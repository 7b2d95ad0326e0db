"""Build TensorRT engines of a bundle in the user's cache folder, for `provider="tensorrt"`.

    python -m export.engine runs/mine/float16                    # TensorRT, for this machine's GPU
    python -m export.engine runs/mine/int8-tensorrt --library rtx --capability 8.6 8.9 12.0   # needs no GPU

With TensorRT, the gates run in this project's kernel (hbaf_edge/backends/cuda/plugin.py). Engines that are already in
the cache are not built again.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from export.console import note
from hbaf_edge.backends.cuda.engines import OptimizationProfile, cache_folder, load_or_build_engine
from hbaf_edge.backends.cuda.kernels import CUBINS
from hbaf_edge.bundle import GRAPHS, load_bundle
from training.command import cli, emit


def main(
    bundle: Path,
    /,
    library: str = "tensorrt",
    capability: tuple[str, ...] = (),
    batch: int = OptimizationProfile().batch[2],
    cache: Path | None = None,
    kernels: Path = CUBINS,
    json_output: bool = False,
) -> None:
    """Build the engines of a bundle's graphs.

    Args:
        bundle: float32, float16 or int8-tensorrt.
        library: tensorrt or rtx.
        capability: compute capabilities such as 8.6; only with rtx.
        batch: largest number of conversations per call.
        cache: replaces the user's cache folder.
        kernels: folder of python -m kernels.build, for a model of other sizes.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    loaded, rows = load_bundle(bundle), []
    for target in capability or (None,):
        for graph in GRAPHS:
            start = time.perf_counter()
            profile = OptimizationProfile(batch=(1, 1, batch))
            content = load_or_build_engine(
                loaded, graph, library_name=library, capability=target, profile=profile, cache=cache, kernels=kernels
            )
            megabytes = len(content) / 1e6
            rows.append([graph, target or "here", round(megabytes, 1), round(time.perf_counter() - start, 1)])
            note("{}, compute capability {}: {} MB, {} s".format(*rows[-1]))
    folder = str(cache or cache_folder())
    emit({"cache": folder, "engines": rows}, json_output, f"{len(rows)} engines in {folder}")


if __name__ == "__main__":
    cli(main)
