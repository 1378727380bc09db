"""What a step's time goes to: ``profile:`` in a config, from marks in a ``torch.profiler`` trace to one line."""
