"""Stage 7, values and release: Helm values, rendered manifests, the whole pipeline."""
