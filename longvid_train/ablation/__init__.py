"""Grids of runs without a server: a wandb sweep file and a recipe to cells, their steps, one table and wandb runs."""
