"""Every module that is run as ``python -m data_prep.NAME``."""

SOURCES = {
    "llava_pretrain": "stage 1: 558K images with captions (LAION, CC, SBU)",
}
"""Sources: their modules have ``add_arguments`` and ``make_source``."""

TOOLS = {
    "merge": "join the shards of one manifest and verify them",
}
"""Tools: their modules have ``add_arguments`` and ``run``."""
