"""Token plans: pure integers, no tensors of features."""
