"""Load on a served model, and what its clients saw: a load generator, its figures, and a verdict."""
