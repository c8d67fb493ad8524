"""Stage 3, engine: built once for each engine key."""
