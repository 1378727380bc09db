"""The parser of ``longvid fit``."""

import pytest

from longvid_train.training.cli import RunCLI


class Parser(RunCLI):
    """`longvid fit` up to its parser, which the tests share: building it costs seconds."""

    def parse_arguments(self, parser, args):
        raise BuiltError(parser)


class BuiltError(Exception):
    """Carries the parser out of the constructor."""


@pytest.fixture(scope="module")
def parser():
    try:
        Parser("fit", [])
    except BuiltError as built:
        return built.args[0]
