"""ZoomVLM: an overview, keyframes chosen by the model's own attention, tokens adjusted while it speaks."""
