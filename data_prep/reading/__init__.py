"""Streaming readers of annotation files: JSON arrays, JSON Lines and CSV, plain, gzipped or inside an archive."""
