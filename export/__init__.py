"""From a checkpoint to a bundle. Each step is a command, `python -m export.STEP`, that checks its own result."""

import training  # noqa: F401 - import first: it makes transformers importable with a CPU build of torch
