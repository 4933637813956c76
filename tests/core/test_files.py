"""Files that are written whole or not at all, and what killed writers leave."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import namedtuple
from contextlib import suppress
from pathlib import Path

import pytest

from ascl.core.errors import DataError
from ascl.core.files import atomic_folder, atomic_path, clear_killed, require_space, saving, write_text

WRITER = """
import sys, time
from pathlib import Path
from ascl.core.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print(temporary, flush=True)
    time.sleep(600)
"""


def writer(path, *inside):
    """A process that never ends its file, and the name of its temporary one."""
    process = subprocess.Popen([*inside, sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
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


def test_the_number_of_an_ended_process_may_belong_to_another_one(tmp_path):
    """A file of long ago cannot be of a process that started since, whatever its number."""
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.touch()
        name = temporary.name
    for written, living in ((None, {"a.txt"}), (0.0, set())):
        (tmp_path / name).touch()
        if written is not None:
            os.utime(tmp_path / name, (written, written))
        assert set(clear_killed(tmp_path)) == living
    assert not (tmp_path / name).exists()


def as_nobody(look):
    """Call `look` in a process of another user; return whether it returned True."""
    if not hasattr(os, "fork") or os.getuid():
        pytest.skip("only root can become another user")
    child = os.fork()
    if not child:
        good = False
        with suppress(BaseException):
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            good = look() is True
        os._exit(not good)
    return os.waitpid(child, 0)[1] == 0


@pytest.fixture
def shared_folder():
    """A folder like /tmp: everyone writes, and each removes only their own files."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o1777)
        yield Path(folder)


def left_by_an_ended_process(folder):
    """A temporary file of a time before the process with its number began."""
    with atomic_path(folder / "old.txt") as temporary:
        temporary.touch()
        name = temporary.name
    (folder / name).touch()
    os.utime(folder / name, (0, 0))
    return folder / name


def test_a_temporary_file_that_cannot_be_removed_stops_no_writer(shared_folder):
    left = left_by_an_ended_process(shared_folder)

    def writes() -> bool:
        write_text(shared_folder / "a.txt", "whole")
        with atomic_folder(shared_folder / "f") as temporary:
            (temporary / "whole").touch()
        return clear_killed(shared_folder) == {}

    assert as_nobody(writes)
    assert left.exists() and (shared_folder / "a.txt").read_text() == "whole"
    os.chown(left, 65534, 65534)
    os.chmod(shared_folder, 0o755)
    assert as_nobody(lambda: clear_killed(shared_folder) == {} and left.exists())  # their own, but not their folder
    assert clear_killed(shared_folder) == {} and not left.exists()


def test_what_another_user_writes_is_left_alone(shared_folder):
    """Some systems hide the processes of others, which then look ended."""
    left = left_by_an_ended_process(shared_folder)
    os.chmod(shared_folder, 0o777)
    assert as_nobody(lambda: clear_killed(shared_folder) == {} and left.exists())
    assert left.exists()


def test_what_another_container_writes_is_left_alone(tmp_path):
    """Containers may share a folder and the machine's name, and each counts its processes from 1."""
    try:
        namespace = re.sub("[^0-9]", "", os.readlink("/proc/self/ns/pid"))
    except OSError:
        pytest.skip("this system has no namespaces")
    left = left_by_an_ended_process(tmp_path)
    assert f"-{namespace}." in left.name
    other = left.rename(tmp_path / left.name.replace(f"-{namespace}.", f"-{int(namespace) + 1}."))
    assert clear_killed(tmp_path) == {} and other.exists()


@pytest.mark.parametrize("options", [["--mount-proc"], []], ids=["own /proc", "/proc of outside"])
def test_containers_do_not_remove_what_the_other_one_writes(tmp_path, options):
    inside = ["unshare", "--pid", "--fork", "--kill-child", *options]
    if shutil.which("unshare") is None or subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("this system makes no namespaces here")
    outer, busy = writer(tmp_path / "a.txt")
    inner, busy_inside = writer(tmp_path / "b.txt", *inside)
    code = ("import sys; from pathlib import Path; from ascl.core.files import clear_killed; "
            "print(clear_killed(Path(sys.argv[1])))")
    try:
        seen = subprocess.run([*inside, sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
        assert seen.stdout == "{}\n" and busy.exists() and busy_inside.exists()
        assert clear_killed(tmp_path) == {"a.txt": busy} and busy_inside.exists()
    finally:
        for process in (outer, inner):
            process.kill()
            process.wait()


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "new" / "f") as temporary:
        (temporary / "half").touch()
        raise RuntimeError
    assert list((tmp_path / "new").iterdir()) == []
    left = tmp_path / "new" / temporary.name
    (left / "deep").mkdir(parents=True)
    os.utime(left, (0, 0))
    with atomic_folder(tmp_path / "new" / "f") as temporary:
        (temporary / "whole").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "f", "whole"]


@pytest.mark.parametrize(("error", "words"), [
    (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; nothing was written; free some space"),
    (OSError(errno.EROFS, "Read-only file system", "{folder}/.a.txt.x.tmp"), "Read-only file system"),
    (PermissionError(errno.EACCES, "Permission denied", "{folder}"), "Permission denied; nothing was written; check"),
    (RuntimeError("Error while serializing: No space left on device (os error 28)"), "No space left on device"),
])
def test_a_refusal_of_the_system_names_the_final_file(tmp_path, error, words):
    if isinstance(error, OSError) and error.filename:
        error.filename = error.filename.format(folder=tmp_path)
    with pytest.raises(DataError, match=words) as caught, atomic_path(tmp_path / "a.txt"):
        raise error
    assert f"cannot write {tmp_path / 'a.txt'}: " in str(caught.value)


def test_errors_about_other_files_pass_through(tmp_path):
    for error in (FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "input.txt")), KeyError("x"),
                  BrokenPipeError(errno.EPIPE, "Broken pipe"), DataError("of a reader")):
        with pytest.raises(type(error)) as caught, saving(tmp_path / "a.txt"):
            raise error
        assert caught.value is error


def test_what_does_not_fit_is_refused_before_it_is_begun(tmp_path, monkeypatch):
    require_space(tmp_path / "new" / "a.h5", 1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 5, 5_000_000))
    require_space(tmp_path / "new" / "a\n.h5", 5_000_000)
    with pytest.raises(DataError, match=r"a\\n\.h5: what b holds needs about 6\.0 MB, and 5\.0 MB are free: free some"):
        require_space(tmp_path / "new" / "a\n.h5", 6_000_000, "what b holds")


def test_nothing_is_refused_where_the_free_space_is_unknown(tmp_path, monkeypatch):
    def unknown(path):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(shutil, "disk_usage", unknown)
    require_space(tmp_path / "a.h5", 1 << 60)
    with pytest.raises(DataError, match="free some space on its disk, then run"), saving(tmp_path / "a.h5"):
        raise OSError(errno.ENOSPC, "No space left on device")
