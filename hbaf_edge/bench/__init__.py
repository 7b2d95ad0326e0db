"""The commands `hbaf-edge benchmark`, `compare` and `advise`, and the statistics and reports behind them."""
