"""Visual tokens a frame, for every grid and combination."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvid_train.errors import UserError
from longvid_train.tokens.two_token import content_token_count, tokens_per_frame
from longvid_train.types import ALL_PATCHES


def test_the_paper_s_numbers() -> None:
    assert tokens_per_frame(1, 16) == 2
    assert tokens_per_frame(ALL_PATCHES, 24) == 577
    assert tokens_per_frame(4, 16) == 17
    assert tokens_per_frame(1, 16, content=False) == 1
    assert tokens_per_frame(1, 16, context=False) == 1


@given(st.integers(1, 40), st.integers(1, 60))
def test_a_grid_counts_its_cells_or_is_refused(content_grid: int, patch_grid: int) -> None:
    if patch_grid % content_grid == 0:
        assert content_token_count(content_grid, patch_grid) == content_grid**2
    else:
        with pytest.raises(UserError, match=rf"content_grid {content_grid} does not divide .* use one of \[1[,\]]"):
            content_token_count(content_grid, patch_grid)


def test_a_negative_grid_is_refused() -> None:
    with pytest.raises(UserError, match="content_grid -1"):
        content_token_count(-1, 16)
