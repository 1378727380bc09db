"""One module a command: ``add_arguments(parser)``, ``run(arguments) -> exit status``; the docstring is its help."""
