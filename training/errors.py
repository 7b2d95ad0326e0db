"""Errors of training. Their messages name the input, what is accepted and what to do."""

from __future__ import annotations

from hbaf_edge.errors import HBAFError


class TrainingError(HBAFError):
    """A setting, checkpoint or encoder that cannot be used."""


class CorpusError(TrainingError):
    """Data that cannot be used. The message names the file and line and says how to fix them."""
