"""The papers' claims as checks on nano models and held-out episodes: one claim a file, each able to fail."""
