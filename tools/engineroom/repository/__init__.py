"""Stage 4, model repository: what Triton loads, with its build record."""
