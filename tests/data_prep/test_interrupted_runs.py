"""Runs that are killed, limits that are passed, inputs that change, and several processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_prep import preparation
from data_prep.command_line import run_source
from data_prep.counts import Counts
from data_prep.llava import LlavaSource
from data_prep.media import MediaFolder
from data_prep.outcome import BadRecordError
from data_prep.preparation import RunOptions, prepare
from data_prep.reading.inputs import InputFile
from data_prep.sharegpt import ORIGIN
from data_prep.workspace import open_workspace
from longvid_train.errors import UserError


def conversations(path: Path, count: int, broken: tuple[int, ...] = ()) -> Path:
    records = []
    for at in range(count):
        answer = " " if at in broken else f"answer {at}"
        records.append(
            {"id": f"c{at}", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": answer}]}
        )
    path.write_text(json.dumps(records, indent=1))
    return path


def texts(path: Path) -> LlavaSource:
    return LlavaSource(origin=ORIGIN, annotations=(InputFile(path),))


class KilledError(Exception):
    pass


def killed_at(records: int) -> Callable[[Counts], None]:
    def on_progress(counts: Counts) -> None:
        if counts.read >= records:
            raise KilledError

    return on_progress


def test_sigkill_at_any_moment_leaves_nothing_half_written_and_the_rest_is_done(tmp_path: Path) -> None:
    """Kill the real command while it works, twice; then let it finish."""
    source = conversations(tmp_path / "in.json", 12_000)
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    prepare(texts(source), RunOptions(out=whole))
    command = [sys.executable, "-m", "data_prep.sharegpt", "--annotations", str(source), "--out", str(out), "--json"]
    journal = tmp_path / ".out.partial" / "journal.json"
    done = 0
    for _ in range(2):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if journal.exists() and json.loads(journal.read_text())["records_done"] > done:
                break
            time.sleep(0.005)
        assert process.poll() is None, "it finished before it was killed; give it more records"
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert not out.exists()
        done = json.loads(journal.read_text())["records_done"]
    assert 0 < done < 12_000
    finished = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    summary = json.loads(finished.stdout)
    assert summary["resumed"] and summary["read"] == 12_000
    assert out.read_bytes() == whole.read_bytes()
    assert not journal.parent.exists()


def test_what_stands_behind_the_journal_is_cut_off(tmp_path: Path) -> None:
    source = texts(conversations(tmp_path / "in.json", 10))
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    prepare(source, RunOptions(out=whole))
    options = RunOptions(out=out, chunk_records=3)
    with pytest.raises(KilledError):
        prepare(source, options, on_progress=killed_at(6))
    folder = tmp_path / ".out.partial"
    for name in ("rows.jsonl", "left_out.jsonl", "positions.bin"):
        with (folder / name).open("ab") as stream:
            stream.write(b'{"half a ro')
    assert prepare(source, options).resumed
    assert out.read_bytes() == whole.read_bytes()
    assert (tmp_path / "out.left_out.jsonl").read_bytes() == b""


def test_a_journal_that_vouches_for_lost_bytes_is_not_believed(tmp_path: Path) -> None:
    source = texts(conversations(tmp_path / "in.json", 10))
    out = tmp_path / "out.jsonl"
    with pytest.raises(KilledError):
        prepare(source, RunOptions(out=out, chunk_records=3), on_progress=killed_at(6))
    (tmp_path / ".out.partial" / "rows.jsonl").write_bytes(b"")
    prepared = prepare(source, RunOptions(out=out))
    assert not prepared.resumed and len(out.read_text().splitlines()) == 10


def test_changed_inputs_or_settings_start_afresh(tmp_path: Path) -> None:
    path, out = tmp_path / "in.json", tmp_path / "out.jsonl"
    with pytest.raises(KilledError):
        prepare(texts(conversations(path, 10)), RunOptions(out=out, chunk_records=3), on_progress=killed_at(6))
    prepared = prepare(texts(conversations(path, 11)), RunOptions(out=out))
    assert not prepared.resumed
    assert len(out.read_text().splitlines()) == 11


@pytest.mark.parametrize("moved", [0, 1])
def test_a_run_killed_while_files_move_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    source = texts(conversations(tmp_path / "in.json", 10))
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    prepare(source, RunOptions(out=whole))
    replaced = 0
    real = Path.replace

    def dying(self: Path, target: Path) -> Path:
        nonlocal replaced
        if self.parent.name == ".out.partial" and self.name in ("rows.jsonl", "left_out.jsonl"):
            if replaced == moved:
                raise KilledError
            replaced += 1
        return real(self, target)

    monkeypatch.setattr(Path, "replace", dying)
    with pytest.raises(KilledError):
        prepare(source, RunOptions(out=out))
    assert not out.exists()
    monkeypatch.setattr(Path, "replace", real)
    prepared = prepare(source, RunOptions(out=out))
    assert prepared.resumed and prepared.receipt.counts.rows == 10
    assert out.read_bytes() == whole.read_bytes()
    assert not (tmp_path / ".out.partial").exists()


def test_two_runs_cannot_write_one_manifest(tmp_path: Path) -> None:
    source = texts(conversations(tmp_path / "in.json", 4))
    with open_workspace(tmp_path / ".out.partial", "other"), pytest.raises(UserError, match="another run is writing"):
        prepare(source, RunOptions(out=tmp_path / "out.jsonl"))


def test_finished_manifest_is_kept_unless_settings_change_or_overwrite(tmp_path: Path) -> None:
    path, out = conversations(tmp_path / "in.json", 4), tmp_path / "out.jsonl"
    assert not prepare(texts(path), RunOptions(out=out)).found_finished
    assert prepare(texts(path), RunOptions(out=out, skip_bad=3, processes=2)).found_finished
    other = texts(conversations(path, 5))
    with pytest.raises(
        UserError, match=r"out\.jsonl: exists and was made with other settings or inputs; add --overwrite"
    ):
        prepare(other, RunOptions(out=out))
    assert len(out.read_text().splitlines()) == 4
    prepare(other, RunOptions(out=out, overwrite=True))
    assert len(out.read_text().splitlines()) == 5
    out.write_text(out.read_text().replace("answer 1", "answer 9"))
    with pytest.raises(UserError, match=r"out\.jsonl: changed since it was written"):
        prepare(other, RunOptions(out=out))


def test_a_manifest_without_receipt_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("mine\n")
    with pytest.raises(UserError, match="add --overwrite or change --out"):
        prepare(texts(conversations(tmp_path / "in.json", 4)), RunOptions(out=out))
    assert out.read_text() == "mine\n"


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_the_record_that_passes_the_limit_is_named_and_raising_it_goes_on(
    tmp_path: Path, limit: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = conversations(tmp_path / "in.json", 12, broken=(2, 5, 9)), tmp_path / "out.jsonl"
    options = RunOptions(out=out, skip_bad=limit, chunk_records=2)
    line = 2 + (2, 5, 9)[limit] * 13
    with pytest.raises(
        UserError, match=rf"in\.json:{line} \(element {(line + 11) // 13}\): an answer is blank; .*--skip-bad"
    ):
        prepare(texts(path), options)
    assert not out.exists()
    prepared = prepare(texts(path), replace(options, skip_bad=3))
    assert prepared.resumed
    assert prepared.receipt.counts.as_json()["bad"] == {"an answer is blank": 3}
    left_out = [json.loads(line) for line in (tmp_path / "out.left_out.jsonl").read_text().splitlines()]
    assert [(entry["record"], entry["id"]) for entry in left_out] == [(at, f"sharegpt/c{at}") for at in (2, 5, 9)]


def test_several_processes_write_the_same_bytes(tmp_path: Path) -> None:
    path = conversations(tmp_path / "in.json", 50, broken=(7, 30))
    one, three = tmp_path / "one.jsonl", tmp_path / "three.jsonl"
    prepare(texts(path), RunOptions(out=one, skip_bad=2))
    prepare(texts(path), RunOptions(out=three, skip_bad=2, processes=3, chunk_records=4))
    assert three.read_bytes() == one.read_bytes()
    assert (tmp_path / "three.left_out.jsonl").read_bytes() == (tmp_path / "one.left_out.jsonl").read_bytes()


def test_a_limit_passed_in_another_process_is_the_same_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = conversations(tmp_path / "in.json", 20, broken=(7,))
    out = tmp_path / "out.jsonl"
    assert run_source("sharegpt", ["--annotations", str(path), "--out", str(out), "--processes", "2"]) == 2
    error = capsys.readouterr().err
    assert f"{path}:{2 + 7 * 13} (element 8): an answer is blank" in error and error.count("\n") == 1


def test_out_must_be_a_jsonl_file_and_the_folder_must_exist_or_be_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(conversations(tmp_path / "in.json", 3))
    assert run_source("sharegpt", ["--annotations", path, "--out", str(tmp_path / "out.json")]) == 2
    assert "must end in .jsonl" in capsys.readouterr().err
    assert run_source("sharegpt", ["--annotations", path, "--out", str(tmp_path / "new" / "out.jsonl")]) == 0
    assert run_source("sharegpt", ["--annotations", path, "--out", str(tmp_path / "in.json" / "out.jsonl")]) == 2


def test_rows_that_break_the_rules_of_manifests_are_bad_records(tmp_path: Path) -> None:
    path = tmp_path / "in.json"
    turns = '[{"from": "human", "value": "\\ud800"}, {"from": "gpt", "value": "a"}]'
    path.write_text(f'[{{"id": "half", "conversations": {turns}}}]')
    with pytest.raises(
        UserError, match=r"in\.json:1 \(element 1\): the row would break a rule of manifests \(.*cannot be written"
    ):
        prepare(texts(path), RunOptions(out=tmp_path / "out.jsonl"))


def test_a_source_that_loses_a_record_is_a_failure_not_a_silence(tmp_path: Path) -> None:
    class Forgetful(LlavaSource):
        def convert(self, value: Any, row_id: str) -> list[Any]:
            return []

    source = Forgetful(origin=ORIGIN, annotations=(InputFile(conversations(tmp_path / "in.json", 3)),))
    with pytest.raises(AssertionError, match="neither rows nor a reason"):
        prepare(source, RunOptions(out=tmp_path / "out.jsonl"))


@pytest.mark.parametrize("name", ["../a.mp4", "/etc/passwd", "a/../../b.mp4", "", " ", "a\0b", "..", "a\\..\\b"])
def test_media_names_never_lead_out_of_their_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "a.mp4").write_bytes(b"x")
    folder = MediaFolder.open(tmp_path / "media", tmp_path / "m.jsonl", "video")
    for find in (folder.find, folder.find_any, folder.find_video):
        with pytest.raises(BadRecordError, match="leads out of its folder"):
            find(name)


def test_media_are_found_by_their_exact_name_before_any_other(tmp_path: Path) -> None:
    media = tmp_path / "set" / "media"
    media.mkdir(parents=True)
    for name in ("v.1.mp4", "v.1.mkv", "w.webm", "x.MP4", "v.1.MP4"):
        (media / name).write_bytes(b"x")
    folder = MediaFolder.open(media, tmp_path / "set" / "m.jsonl", "video")
    assert folder.find_video("v.1.mkv") == "media/v.1.mkv"
    assert folder.find_any("v.1") == "media/v.1.mp4"
    assert folder.find_video("w.pkl") == "media/w.webm"
    assert folder.find_video("w") == "media/w.webm"
    assert folder.find_any("nothing", "w") == "media/w.webm"
    assert folder.find_any("x") == folder.find_video("x.mp4") == folder.find_video("x.MP4") == "media/x.MP4"
    other = MediaFolder.open(media, tmp_path / "elsewhere" / "m.jsonl", "video")
    assert other.find_any("w") == str(media / "w.webm")
    with pytest.raises(UserError, match="no such folder; name the folder that holds the video files"):
        MediaFolder.open(tmp_path / "none", tmp_path / "m.jsonl", "video")


def test_pending_receipt_of_another_order_is_ignored(tmp_path: Path) -> None:
    path, out = tmp_path / "in.json", tmp_path / "out.jsonl"
    prepare(texts(conversations(path, 4)), RunOptions(out=out))
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / "out.receipt.json").rename(tmp_path / ".out.partial" / preparation.PENDING_RECEIPT)
    out.unlink()
    assert prepare(texts(conversations(path, 5)), RunOptions(out=out)).receipt.counts.rows == 5


def test_pending_receipt_of_another_order_never_comes_back(tmp_path: Path) -> None:
    """Killed while moving A; B is begun and killed; A again must not take B's rows for its own."""
    path, out = tmp_path / "in.json", tmp_path / "out.jsonl"
    prepare(texts(conversations(path, 4)), RunOptions(out=out))
    whole = out.read_bytes()
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / "out.receipt.json").rename(tmp_path / ".out.partial" / preparation.PENDING_RECEIPT)
    out.unlink()
    with pytest.raises(KilledError):
        prepare(texts(conversations(path, 9)), RunOptions(out=out, chunk_records=2), on_progress=killed_at(2))
    prepare(texts(conversations(path, 4)), RunOptions(out=out))
    assert out.read_bytes() == whole


def test_a_lower_limit_is_held_against_what_an_earlier_run_left_out(tmp_path: Path) -> None:
    path, out = conversations(tmp_path / "in.json", 12, broken=(2, 5)), tmp_path / "out.jsonl"
    told = r"out\.jsonl: an earlier run left out 2 records \(2 x an answer is blank\) but --skip-bad allows 1"
    with pytest.raises(KilledError):
        prepare(texts(path), RunOptions(out=out, skip_bad=2, chunk_records=2), on_progress=killed_at(8))
    with pytest.raises(UserError, match=told):
        prepare(texts(path), RunOptions(out=out, skip_bad=1))
    prepare(texts(path), RunOptions(out=out, skip_bad=2))
    with pytest.raises(UserError, match=told):
        prepare(texts(path), RunOptions(out=out, skip_bad=1))
    assert prepare(texts(path), RunOptions(out=out, skip_bad=2)).found_finished


def test_inputs_that_change_while_they_are_read_stop_the_run(tmp_path: Path) -> None:
    path, out = conversations(tmp_path / "in.json", 6), tmp_path / "out.jsonl"

    def touch(counts: Counts) -> None:
        os.utime(path, ns=(0, 1))

    with pytest.raises(UserError, match=r"in\.json: changed while it was read"):
        prepare(texts(path), RunOptions(out=out), on_progress=touch)
    assert not out.exists()
