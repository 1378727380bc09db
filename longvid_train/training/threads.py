"""CPU threads of a training or prediction process."""

import torch

from longvid_train.errors import UserError


def check_threads(torch_threads: int) -> None:
    """Refuse a number of threads below 0.

    Raises:
        UserError: naming it.
    """
    if torch_threads < 0:
        raise UserError(f"torch_threads is {torch_threads}; it must be 0 (torch's choice) or a thread count")


def use_threads(torch_threads: int) -> None:
    """Give this process ``torch_threads`` threads; 0 keeps torch's own choice."""
    if torch_threads:
        torch.set_num_threads(torch_threads)
