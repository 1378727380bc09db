"""Two processes of which one fails, is killed, sleeps or freezes: both end in bounded time, the last line says why."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from longvid_train.training.last_checkpoint import by_age
from longvid_train.training.tracking import read_metrics

FitConfig = Callable[..., Path]
ROOT = Path(__file__).parents[2]
LIMIT_S = 1500
TROUBLE = """
import os
import time
from pytorch_lightning.callbacks import Callback


class Trouble(Callback):
    '''Something happens to one rank before the forward pass of the fourth micro-batch.'''

    def __init__(self, what: str, rank: int) -> None:
        self.what, self.rank = what, rank

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank != self.rank or batch_idx != 3:
            return
        if self.what == "raises":
            raise MemoryError("no room for the batch")
        if self.what == "sleeps":
            time.sleep(100000)
        if self.what == "killed while it writes":
            os.fsync = lambda handle: os.kill(os.getpid(), 9)
            return
        if self.what == "frozen":
            time.sleep(10)  # until the monitor has said where the rank stands: every 2.5 s under stall_s 20
        os.kill(os.getpid(), {"killed": 9, "frozen": 19}[self.what])
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def job(
    fit_config: FitConfig, world: Any, tmp_path: Path, user_environment: dict[str, str]
) -> Iterator[Callable[..., tuple[int, list[str], Path]]]:
    """Run two ranks in which ``what`` happens to ``rank``: status, all of stderr's lines and the run folder."""
    (tmp_path / "trouble.py").write_text(TROUBLE)
    config = fit_config(
        data__init_args__train=str(world.manifest("failing.jsonl", 16)),
        data__init_args__loading={"batch_size": 1},
        trainer__accumulate_grad_batches=2,
        checkpoint={"every_n_train_steps": 1},
    )
    started: list[subprocess.Popen[str]] = []

    def run(what: str, rank: int, *more: str, command: list[str]) -> tuple[int, list[str], Path]:
        folder = tmp_path / "run"
        words = ["--config", str(config), "--run_dir", str(folder), "--trainer.callbacks+=trouble.Trouble"]
        words += [
            f"--trainer.callbacks.what={what}",
            f"--trainer.callbacks.rank={rank}",
            "--trainer.devices",
            "2",
            *more,
        ]
        environment = {**user_environment, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "NPROC": "2"}
        environment |= {"PYTHONPATH": f"{tmp_path}:{ROOT}", "TORCHRUN": str(Path(sys.executable).with_name("torchrun"))}
        started.append(
            subprocess.Popen(
                [*command, *words], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
            )
        )
        _, errors = started[-1].communicate(timeout=LIMIT_S)
        return started[-1].returncode, errors.splitlines(), folder

    yield run
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


LIGHTNING = [sys.executable, "-m", "longvid_train.cli", "fit"]
TORCHRUN = ["bash", str(ROOT / "scripts" / "launch" / "torchrun.sh")]
DDP = ["--trainer.strategy", "ddp"]
ZERO = ["--config", str(ROOT / "configs" / "deepspeed" / "zero2.yaml")]


@pytest.mark.parametrize(
    ("command", "strategy"),
    [(LIGHTNING, DDP), (LIGHTNING, ZERO), (TORCHRUN, DDP), (TORCHRUN, ZERO)],
    ids=["lightning-ddp", "lightning-zero2", "torchrun-ddp", "torchrun-zero2"],
)
@pytest.mark.parametrize(
    ("what", "said", "status"),
    [
        ("raises", "failed at step 1: MemoryError: no room for the batch (its traceback is in ", 1),
        ("killed", " ended ", None),
    ],
)
def test_a_rank_that_fails_ends_both_and_its_failure_is_the_last_line(
    job: Any, command: list[str], strategy: list[str], what: str, said: str, status: int | None
) -> None:
    """Lightning's launcher knows the signal of a process it started, and so the status; torchrun's ranks do not."""
    if status is None:
        status = 137 if command is LIGHTNING else 1
        said = "was ended by SIGKILL" if command is LIGHTNING else "ended without a word (killed, or out of memory)"
    found, lines, run = job(what, 1, *strategy, command=command)
    assert lines[-1].startswith("longvid: rank 1 ("), "\n".join(lines[-40:])
    assert said in lines[-1]
    assert found == status
    causes = [line for line in lines if line.startswith("longvid: ")]
    assert len(set(causes)) == 1, causes
    readable, unreadable = by_age(run / "checkpoints")
    assert (readable[0].step, unreadable) == (1, [])


def test_a_rank_killed_in_its_writing_thread_is_told_once_and_its_folder_is_absent(job: Any) -> None:
    """The other rank's thread waits for it in a collective of its own, which fails too."""
    found, lines, run = job("killed while it writes", 1, *ZERO, "--checkpoint.asynchronous", "true", command=LIGHTNING)
    assert found == 137
    (cause,) = [line for line in lines if line.startswith("longvid: ")]
    assert cause == lines[-1]
    assert "was ended by SIGKILL" in cause
    readable, unreadable = by_age(run / "checkpoints")
    assert ({age.step for age in readable}, unreadable) == ({1}, [])


def test_without_the_rank_that_the_user_started_the_other_ends_too_and_says_why(job: Any) -> None:
    found, lines, _ = job("killed", 0, *DDP, command=LIGHTNING)
    assert found == -signal.SIGKILL
    assert lines[-1].startswith("longvid: rank 0 (")
    assert "ended without a word (killed, or out of memory)" in lines[-1]


@pytest.mark.parametrize("what", ["sleeps", "frozen"])
def test_a_rank_that_stalls_is_reported_with_its_stack_and_the_job_ends(job: Any, what: str) -> None:
    """A frozen process cannot say anything: the rank that waits for it names it, and ends it."""
    watchdog = ["--watchdog.stall_s", "20", "--watchdog.abort", "true"]
    found, lines, run = job(what, 1, *DDP, *watchdog, command=LIGHTNING)
    assert found == 124
    waiting = [line for line in lines if line.startswith("longvid: rank 0 (") and "waiting for rank 1 (" in line]
    assert waiting, lines
    assert "last seen at micro-batch 3 (forward pass)" in waiting[0]
    assert "rank 0" in (run / "stacks_rank0.txt").read_text()
    if what == "sleeps":
        own = [line for line in lines if line.startswith("longvid: rank 1 (") and "no progress for" in line]
        assert "on_train_batch_start" in own[0]
        assert "trouble.py" in own[0]
        assert "trouble.py" in (run / "stacks_rank1.txt").read_text()
    else:
        assert not (run / "stacks_rank1.txt").exists()


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """``srun`` that starts two tasks of one host and has SIGTERM sent to them when the run has a second checkpoint, as
    a scheduler does; ``scontrol`` notes what it is told."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "scontrol").write_text(f'#!/usr/bin/env bash\necho "$@" >>"{tmp_path}/scontrol.txt"\n')
    (folder / "srun").write_text(
        "#!/usr/bin/env bash\n"
        "shift\n"
        "pids=()\n"
        "for task in 0 1; do\n"
        '  SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NODEID=0 SLURM_NTASKS=2 SLURM_STEP_ID=$$ "$@" &\n'
        "  pids+=($!)\n"
        "done\n"
        'if [[ ! -e "$RUN_DIR/told" ]]; then\n'
        '  until [[ -e "$RUN_DIR/checkpoints/last-step=2.ckpt" ]]; do sleep 0.05; done\n'
        '  touch "$RUN_DIR/told"\n'
        '  kill -TERM "${pids[@]}"\n'
        "fi\n"
        'status=0\nfor pid in "${pids[@]}"; do wait "$pid" || status=$?; done\nexit $status\n'
    )
    (folder / "longvid").write_text(f'#!/usr/bin/env bash\nexec "{sys.executable}" -m longvid_train.cli "$@"\n')
    for path in folder.iterdir():
        path.chmod(0o755)
    return folder


def test_a_zero_run_that_slurm_stops_goes_back_to_the_queue_and_continues_to_the_same_bits(
    fit_config: FitConfig, world: Any, tmp_path: Path, cluster: Path, user_environment: dict[str, str]
) -> None:
    config = fit_config(
        data__init_args__train=str(world.manifest("slurm.jsonl", 24)),
        data__init_args__loading={"batch_size": 1},
        trainer__accumulate_grad_batches=2,
        checkpoint={"every_n_train_steps": 1},
    )
    curves = []
    for name in ("whole", "stopped"):
        run = tmp_path / name
        run.mkdir()
        if name == "whole":
            (run / "told").touch()
        environment = {**user_environment, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "RUN_DIR": str(run)}
        environment |= {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "fit"}
        environment |= {"SLURM_NODELIST": "127.0.0.1", "MASTER_ADDR": "127.0.0.1"}
        environment |= {"PATH": f"{cluster}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        command = ["bash", str(ROOT / "scripts" / "launch" / "slurm.sh"), "--config", str(config), *ZERO]
        statuses = []
        for _ in range(1 if name == "whole" else 2):
            time.sleep(1)  # another start is another second in the job's port
            done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=LIMIT_S)
            statuses.append(done.returncode)
        assert statuses == ([0] if name == "whole" else [143, 0]), done.stderr
        names = ("step", "train/loss", "train/grad_norm", "train/lr")
        curves.append([[line[key] for key in names] for line in read_metrics(run) if "train/loss" in line])
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 7\n"
    assert curves[0] == curves[1]
    assert len(curves[0]) == 6
    whole, stopped = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "stopped"))
    assert whole == stopped
