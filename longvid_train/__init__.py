"""longvid-train: train and adapt long-video language models with PyTorch Lightning."""

__version__ = "0.1.0"
