"""The processes of one job: where each stands, which one failed first, and how all of them end."""
