"""Backbones, their token heads and the one place where text and visual tokens meet."""
