"""Lightning modules, callbacks and strategies."""
