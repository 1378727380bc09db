"""Asking a teacher about movies: prompts, texts cut to size, and replies parsed strictly."""
