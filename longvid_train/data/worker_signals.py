"""SIGTERM in loader workers: only the training process ends them.

A cluster that stops a job sends SIGTERM to all of its processes. A worker that died of it would break the step that the
training process wants to finish and save first (torch raises "DataLoader worker exited unexpectedly" there).
"""

import os
import signal
import threading


def ignore_foreign_sigterm(worker_id: int) -> None:
    """In a worker process: end at a SIGTERM of the parent, ignore anyone else's. A loader's ``worker_init_fn``.

    torch's own handler in C does the first and dies of the others; a handler in Python cannot tell who sent a signal.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_parent, args=(os.getppid(),), daemon=True).start()


def _wait_for_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
