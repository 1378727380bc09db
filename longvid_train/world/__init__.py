"""The synthetic video world: seeded episodes, rendered to mp4 files, with questions whose answers are known."""
