"""Local evaluation: a model over manifests, to predictions, scores and tables (docs/evaluation.md)."""
