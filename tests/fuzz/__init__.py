"""Fuzz all inputs: `python -m tests.fuzz --seconds 60`. Damaged input must give a result or an HBAFError."""
