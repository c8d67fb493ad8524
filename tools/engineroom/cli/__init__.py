"""The command line: the only place that words errors and chooses adapters."""
