"""A chat model that compares answers with right answers (docs/evaluation.md)."""
