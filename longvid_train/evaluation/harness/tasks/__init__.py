"""Tasks of lmms-eval for benchmarks it lacks; ``--include_path`` names this folder."""
