"""Files that are written whole or not at all, and what killed writers leave."""

import os
import signal
import subprocess
import sys

import pytest

from ascl.core.files import atomic_path, clear_killed, write_text

WRITER = """
import sys, time
from pathlib import Path
from ascl.core.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print(temporary, flush=True)
    time.sleep(600)
"""


def writer(path):
    """A process that never ends its file, and the name of its temporary one."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    return process, path.parent / os.path.basename(process.stdout.readline().strip())


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "new" / "a.txt", "old")
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "new" / "a.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]
    assert (tmp_path / "new" / "a.txt").read_text() == "old"


def test_the_next_writer_removes_what_a_killed_one_left_and_nothing_else(tmp_path):
    others = [tmp_path / ".a.txt.another-machine.1.tmp", tmp_path / ".a.txt.tmp", tmp_path / "b.1.tmp"]
    for path in others:
        path.write_text("precious")
    killed, left = writer(tmp_path / "a.txt")
    alive, busy = writer(tmp_path / "b.txt")
    try:
        killed.send_signal(signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL and left.exists() and busy.exists()
        write_text(tmp_path / "a.txt", "whole")
        assert not left.exists() and busy.exists() and all(path.exists() for path in others)
        assert clear_killed(tmp_path) == {"b.txt": busy}
    finally:
        alive.kill()
        alive.wait()
    assert clear_killed(tmp_path) == {} and not busy.exists() and not (tmp_path / "b.txt").exists()
    assert clear_killed(tmp_path / "nowhere") == {}
