"""From a checkpoint to a bundle. Every verb is `python -m export.VERB`: it reads files, writes files, checks itself."""

import training  # noqa: F401 - first, since it makes transformers importable beside a CPU torch
