"""Our models as models of lmms-eval, and tasks it lacks (docs/evaluation.md#lmms-eval)."""
