"""Scoring answers and the report."""
