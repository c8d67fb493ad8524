"""Stage 1, checkpoint: fetched, hashed, and its shape read."""
