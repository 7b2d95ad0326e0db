"""What training raises on purpose; the texts name what came, what is accepted and what to do."""

from __future__ import annotations

from hbaf_edge.errors import HBAFError


class TrainingError(HBAFError):
    """A choice, a checkpoint or an encoder that cannot be trained with."""


class CorpusError(TrainingError):
    """Data that cannot be used as they are. The message names the file and line and says how to mend it."""
