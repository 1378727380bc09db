"""The launch scripts: what they start, what they refuse, and when a job goes back to the queue."""

import os
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "scripts" / "launch"
RECORDER = (
    '#!/usr/bin/env bash\nprintf "%s\\n" "$(basename "$0")" "$@" > "{folder}/$(basename "$0").txt"\nexit {status}\n'
)
SLURM = {"SLURM_JOB_ID": "77", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "8"}


def call(
    script: str,
    words: list[str],
    folder: Path,
    *,
    status: int = 0,
    then: tuple[str, str] = ("", ""),
    **variables: str,
) -> tuple[int, list[str]]:
    """Run a launch script with recorders in the place of srun, scontrol and torchrun; all but scontrol end so.

    ``then`` names one of them that is another script, and its text.
    """
    for name in ("srun", "scontrol", "torchrun"):
        path = folder / name
        recorder = RECORDER.format(folder=folder, status=0 if name == "scontrol" else status)
        path.write_text(then[1] if name == then[0] else recorder)
        path.chmod(0o755)
    ours = ("NPROC", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHRUN", "RUN_DIR")
    kept = {name: value for name, value in os.environ.items() if name not in ours and not name.startswith("SLURM_")}
    done = subprocess.run(
        ["bash", str(LAUNCH / script), *words],
        env={**kept, **variables, "PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr.splitlines()


def recorded(folder: Path, name: str) -> list[str] | None:
    path = folder / f"{name}.txt"
    return path.read_text().splitlines() if path.exists() else None


def test_one_host_needs_the_number_of_processes_alone(tmp_path: Path) -> None:
    assert call("torchrun.sh", ["--config", "a b.yaml"], tmp_path, NPROC="2") == (0, [])
    torchrun = ["--nnodes", "1", "--node-rank", "0", "--nproc-per-node", "2"]
    torchrun += ["--master-addr", "127.0.0.1", "--master-port", "29500"]
    fit = ["--module", "longvid_train.cli", "fit", "--config", "a b.yaml"]
    assert recorded(tmp_path, "torchrun") == [
        "torchrun",
        *torchrun,
        *fit,
        *["--trainer.num_nodes", "1", "--trainer.devices", "2"],
    ]


def test_several_hosts_meet_at_the_first(tmp_path: Path) -> None:
    hosts = {"NPROC": "8", "NNODES": "4", "NODE_RANK": "3", "MASTER_ADDR": "host0", "MASTER_PORT": "1234"}
    assert call("torchrun.sh", [], tmp_path, **hosts)[0] == 0
    line = " ".join(recorded(tmp_path, "torchrun") or [])
    assert "--nnodes 4 --node-rank 3 --nproc-per-node 8 --master-addr host0 --master-port 1234" in line
    assert line.endswith("--trainer.num_nodes 4 --trainer.devices 8")


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, "NPROC"),
        ({"NPROC": "8", "NNODES": "2"}, "NODE_RANK"),
        ({"NPROC": "8", "NNODES": "2", "NODE_RANK": "1"}, "MASTER_ADDR"),
    ],
)
def test_a_missing_variable_of_torchrun_is_one_line(given: dict[str, str], missing: str, tmp_path: Path) -> None:
    status, (line,) = call("torchrun.sh", [], tmp_path, **given)
    assert status == 2
    assert line.startswith(f"longvid: torchrun.sh: {missing} is not set; set it to ")
    assert recorded(tmp_path, "torchrun") is None


def test_a_fresh_job_starts_without_a_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert call("slurm.sh", ["--config", "a.yaml"], tmp_path, RUN_DIR=str(run), **SLURM) == (0, [])
    assert recorded(tmp_path, "srun") == [
        "srun",
        *["--kill-on-bad-exit=1", "longvid", "fit", "--config", "a.yaml", "--run_dir", str(run)],
        *["--trainer.num_nodes", "2", "--trainer.devices", "8"],
    ]
    assert recorded(tmp_path, "scontrol") is None


def test_a_job_that_comes_back_continues_from_the_last_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints" / "last-step=3.ckpt").mkdir(parents=True)
    assert call("slurm.sh", [], tmp_path, RUN_DIR=str(run), **SLURM)[0] == 0
    assert (recorded(tmp_path, "srun") or [])[-2:] == ["--ckpt_path", "last"]


@pytest.mark.parametrize(("status", "requeued"), [(143, True), (0, False), (1, False), (2, False), (137, False)])
def test_only_a_job_that_was_told_to_stop_goes_back_to_the_queue(status: int, requeued: bool, tmp_path: Path) -> None:
    found, _ = call("slurm.sh", [], tmp_path, status=status, RUN_DIR=str(tmp_path / "run"), **SLURM)
    assert found == status
    assert recorded(tmp_path, "scontrol") == (["scontrol", "requeue", "77"] if requeued else None)


@pytest.mark.parametrize("script", ["torchrun.sh", "slurm.sh"])
def test_the_cause_of_a_failed_job_is_the_last_line_and_its_status_the_job_s(script: str, tmp_path: Path) -> None:
    """The launcher ends with a report of its own; a rank has written what really happened."""
    launcher = {"torchrun.sh": "torchrun", "slurm.sh": "srun"}[script]
    variables = {"NPROC": "2", "RUN_DIR": str(tmp_path / "run"), **SLURM}
    words = ['echo "7 rank 1: no memory" >"$LONGVID_CAUSE_FILE"', 'echo "Root Cause: rank 0" >&2', "exit 1", ""]
    report = "\n".join(["#!/usr/bin/env bash", *words])
    assert call(script, [], tmp_path, then=(launcher, report), **variables) == (
        7,
        ["Root Cause: rank 0", "longvid: rank 1: no memory"],
    )


def test_a_signal_to_torchrun_sh_reaches_the_job_which_ends_first(tmp_path: Path) -> None:
    """A cluster stops the script; the job saves before it ends, and its status is the script's."""
    waiting = (
        "#!/usr/bin/env bash\ntrap 'sleep 0.3; echo saved >&2; exit 143' TERM\necho started >&2\nsleep 60 &\nwait $!\n"
    )
    path = tmp_path / "torchrun"
    path.write_text(waiting)
    path.chmod(0o755)
    process = subprocess.Popen(
        ["bash", str(LAUNCH / "torchrun.sh")],
        env={**os.environ, "NPROC": "1", "TORCHRUN": str(path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "started\n"
    process.terminate()
    assert process.stderr.readline() == "saved\n"
    assert process.wait(60) == 143
    os.killpg(process.pid, 9)  # the sleep that stands for the job's work


@pytest.mark.parametrize("missing", ["RUN_DIR", *SLURM])
def test_a_missing_variable_of_slurm_is_one_line(missing: str, tmp_path: Path) -> None:
    given = {"RUN_DIR": str(tmp_path / "run"), **SLURM}
    del given[missing]
    status, (line,) = call("slurm.sh", [], tmp_path, **given)
    assert status == 2
    assert line.startswith(f"longvid: slurm.sh: {missing} is not set; call it as ")
    assert recorded(tmp_path, "srun") is None
