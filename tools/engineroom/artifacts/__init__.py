"""Stage 5, artifact: published, pulled and verified by content."""
