"""Whatever is wrong with a file, its reader raises a DataError that names it."""

import os
import zipfile

import numpy as np
import pytest

from ascl.core.errors import DataError, SettingsError
from ascl.core.limits import ARRAY_BYTES, Limit
from ascl.core.reading import parse_json, read_arrays, read_json, read_text, reading, require_file, shown


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("broken"), TypeError(), IndexError("list"),
                                   RecursionError("deep"), OverflowError("large"), ValueError("\ud800"), MemoryError()])
def test_any_error_of_a_library_names_the_file(tmp_path, error):
    path = tmp_path / "file.bin"
    path.write_bytes(b"12345")
    with pytest.raises(DataError, match=r"file\.bin") as caught, reading(path, "a checkpoint"):
        raise error
    assert "\n" not in str(caught.value)
    str(caught.value).encode("utf-8")


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    kinds = {"pipe": "named pipe", "loop": "symbolic links", "dangling": "does not exist", "nothing": "no file",
             ".": "a folder"}
    for name, word in kinds.items():
        with pytest.raises(DataError, match=word):
            require_file(tmp_path / name)
    with pytest.raises(DataError, match="null"):
        require_file("a\0b")
    with pytest.raises(DataError, match="a device"):
        require_file("/dev/zero")


def test_a_name_that_is_not_utf8_is_shown_with_escapes(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")
    assert shown(path).endswith(r"/caf\xe9.txt")
    with pytest.raises(DataError, match=r"caf\\xe9"):
        read_text(path)


@pytest.mark.parametrize(("content", "words"), [
    (b"{", "truncated or not JSON"), (b"[" * 100_000, "not JSON"), (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
    (b"[1]", "expected a JSON object, found a JSON list"), (b'"a"', "found a text"), (b"null", "found null"),
    (b'{"a": "\xff"}', "row 1: not UTF-8"), (b"", "not JSON"),
])
def test_json_of_another_shape_is_refused(tmp_path, content, words):
    path = tmp_path / "eval.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read_json(path)
    assert "eval.json" in str(caught.value)


def test_json_of_the_wanted_type_is_returned(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert parse_json("[1]", "here", list) == [1]
    assert parse_json("null", "here", None) is None


def test_arrays_that_unpack_to_more_than_the_limit_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "scores.npz"
    np.savez_compressed(path, scores=np.zeros((1000, 1000)))
    assert read_arrays(path)["scores"].shape == (1000, 1000)
    monkeypatch.setenv(ARRAY_BYTES.setting, "1e6")
    with pytest.raises(DataError, match=r"8,000,\d+ bytes, more than the limit of 1,000,000.*ASCL_MAX_ARRAY_BYTES"):
        read_arrays(path)


def test_pickled_objects_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", names=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"a\.npz"):
        read_arrays(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4',")
    with pytest.raises(DataError, match=r"b\.npz"):
        read_arrays(tmp_path / "b.npz")


@pytest.mark.parametrize("text", ["many", "0", "-1", "inf", "nan"])
def test_a_limit_that_is_no_positive_number_is_refused(monkeypatch, text):
    monkeypatch.setenv("ASCL_MAX_X", text)
    with pytest.raises(SettingsError, match="ASCL_MAX_X"):
        _ = Limit("ASCL_MAX_X", 10, "bytes").most
