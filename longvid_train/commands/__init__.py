"""One module per command: ``add_arguments(parser)`` and ``run(arguments) -> exit status``. The docstring is its help."""
