"""The steps of ``python -m data_prep.check``: rows, media files, repeated rows, leaks, token lengths, the overview."""
