"""Schemes, one a file: how the keys or the values of a layer become codes and numbers again."""
