"""Stage 2, plan: does it fit, over how many GPUs, and what can it hold."""
