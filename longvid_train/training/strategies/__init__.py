"""Ways to spread a training over processes, beside Lightning's own."""
