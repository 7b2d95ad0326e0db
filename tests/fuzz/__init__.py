"""Damaged input of every kind ends in an answer or in an error of ours: `python -m tests.fuzz --seconds 60`."""
