"""Manifests, chat templates, datasets and data modules."""
