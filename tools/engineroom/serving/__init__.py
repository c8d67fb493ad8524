"""Stage 6, serve and ask: a real Triton on this machine."""
