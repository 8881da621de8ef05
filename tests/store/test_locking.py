from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from manytune.errors import LockedError
from manytune.store.locking import held, locked


def test_a_directory_is_held_by_one_process_at_a_time_and_let_go_by_its_death(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, time\n"
        "from manytune.store.locking import held\n"
        "with held(pathlib.Path(sys.argv[1])):\n"
        "    print('ready', flush=True); time.sleep(60)\n"
    )
    target = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    with pytest.raises(LockedError, match=r"run: another process is writing here"), held(target):
        pass
    threading.Timer(0.05, process.send_signal, [signal.SIGKILL]).start()
    with held(target, patience=60.0):  # seconds
        pass
    process.wait()
    process.stdout.close()
    assert list(target.iterdir()) == []


def test_a_lock_is_waited_for_as_long_as_the_patience_lasts(tmp_path: Path) -> None:
    lock, order, taken = tmp_path / ".lock", list[str](), threading.Event()

    def hold() -> None:
        with locked(lock):
            taken.set()
            time.sleep(0.2)
            order.append("first")

    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(10)
    with pytest.raises(LockedError, match="another process has held it for 0 s"), locked(lock, patience=0):
        pass
    with locked(lock, patience=30):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_where_a_directory_cannot_be_held_a_file_next_to_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manytune.store.locking._HAS_FLOCK", False)  # as on Windows
    target = tmp_path / "run"
    with held(target):
        with pytest.raises(LockedError, match="run: another process is writing here"), held(target):
            pass
        assert list(target.iterdir()) == []
    lock = tmp_path / ".lock"
    with held(target), locked(lock), pytest.raises(LockedError, match="for 0 s"), locked(lock, patience=0):
        pass
