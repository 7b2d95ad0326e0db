"""`hbaf-edge benchmark`, `compare` and `advise`: what a turn costs on this machine, and how that becomes a report."""
