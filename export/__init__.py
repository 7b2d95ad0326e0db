"""From a checkpoint to a bundle. Every verb is `python -m export.VERB`: it reads files, writes files, checks itself."""
