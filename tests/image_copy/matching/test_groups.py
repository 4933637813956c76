"""Groups of copies: what belongs together, which image to keep, the files that are written, moves and their undoing."""

import csv
import hashlib
import json
import os
import shutil
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from ascl import find_copy_groups
from ascl.cli import main
from ascl.core.errors import DataError
from ascl.image_copy.matching import groups as groups_module
from ascl.image_copy.matching.groups import find_groups
from ascl.image_copy.matching.keeping import members_of
from ascl.index.images import Images
from ascl.index.store import CopyIndex

from .drawn import scene

pytest.importorskip("cv2")
pytest.importorskip("imagehash")


def pasted(image: Image.Image, onto: Image.Image) -> Image.Image:
    result = onto.copy()
    result.paste(image.resize((220, 165)), (70, 50))
    return result


@pytest.fixture
def photos(tmp_path):
    """A folder: six unrelated scenes; copies of the first two; two crops of the third that share nothing; and the
    fourth pasted onto the fifth."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    scenes = [scene(seed) for seed in range(6)]
    for number, image in enumerate(scenes):
        image.save(folder / f"{number}.png")
    scenes[0].save(folder / "sub" / "0 again.jpg", quality=70)
    ImageOps.mirror(scenes[0]).resize((240, 180)).save(folder / "0 mirrored.png")
    scenes[0].crop((60, 40, 320, 240)).save(folder / "0 crop.png")
    ImageOps.expand(ImageEnhance.Brightness(scenes[1]).enhance(1.2), 25, (250, 250, 250)).save(folder / "1 framed.png")
    shutil.copy(folder / "1.png", folder / "1 same.png")
    scenes[2].crop((0, 0, 170, 270)).save(folder / "2 left.png")
    scenes[2].crop((190, 0, 360, 270)).save(folder / "2 right.png")
    pasted(scenes[3], scenes[4]).save(folder / "3 on 4.png")
    return folder


def run(photos, out, *words: str) -> int:
    return main(["copy", "groups", str(photos), "--out", str(out), "--model", "phash", "--workers", "1", "--candidates",
                 "15", *words])


def read(out) -> list[dict]:
    return json.loads((out / "groups.json").read_text())["groups"]


def names(group: dict, role: str | None = None) -> set[str]:
    return {image["id"] for image in group["images"] if role in (None, image["role"])}


def test_groups_hold_copies_of_one_original_with_their_evidence(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(photos, out) == 0
    found = read(out)
    expected = [{"0.png", "sub/0 again.jpg", "0 mirrored.png", "0 crop.png"}, {"1.png", "1 framed.png", "1 same.png"},
                {"2.png", "2 left.png", "2 right.png"}]
    assert [names(group) for group in found[:3]] == expected
    # the collage is a copy of both, and in one group only: its ground and what lies on it are strangers
    assert len(found) == 4 and names(found[3]) in ({"3.png", "3 on 4.png"}, {"4.png", "3 on 4.png"})
    assert [names(group, "keep") for group in found[:3]] == [{"0.png"}, {"1.png"}, {"2.png"}]
    evidence = {(pair["copy"], pair["original"]): pair for group in found for pair in group["pairs"]}
    assert evidence["0 crop.png", "0.png"]["reason"] == "within" and evidence["0 crop.png", "0.png"]["directed"]
    assert evidence["1 framed.png", "1 same.png"]["reason"] == "border"         # of equal files one is compared
    assert evidence["1.png", "1 same.png"]["reason"] == "same file"
    assert ("2 left.png", "2 right.png") not in evidence and ("2 right.png", "2 left.png") not in evidence
    assert found[2]["tightness"] == pytest.approx(2 / 3)
    mirrored = next(image for image in found[0]["images"] if image["id"] == "0 mirrored.png")
    assert mirrored["differences"][:2] == ["mirrored", "smaller: 240 x 180 pixels, not 360 x 270"]
    assert all(image["role"] == "superfluous" for image in found[0]["images"][1:])
    assert {image["id"]: image["role"] for image in found[1]["images"]}["1 framed.png"] == "copy"    # with its border
    rows = list(csv.DictReader((out / "groups.csv").open(newline="")))
    assert [row["id"] for row in rows if row["group"] == "3"] == ["2.png", *sorted(names(found[2]) - {"2.png"},
                                                                                 key=[r["id"] for r in rows].index)]
    assert "4 groups of 12 images among 14" in capsys.readouterr().out

    # a second run reads no picture and compares no pair again
    kept = (out / "groups.json").read_bytes()
    assert run(photos, out) == 0 and (out / "groups.json").read_bytes() == kept


def test_linkage_decides_what_chains_join(photos, tmp_path):
    assert run(photos, tmp_path / "out", "--linkage", "single") == 0
    assert names(read(tmp_path / "out")[-1]) == {"3.png", "4.png", "3 on 4.png"} or any(
        names(group) == {"3.png", "4.png", "3 on 4.png"} for group in read(tmp_path / "out"))
    assert run(photos, tmp_path / "out", "--linkage", "complete") == 0
    assert {frozenset(names(group)) for group in read(tmp_path / "out")} >= {frozenset({"1.png", "1 framed.png",
                                                                                        "1 same.png"})}
    assert all(group["tightness"] == 1 for group in read(tmp_path / "out"))


def test_superfluous_files_move_only_when_told_and_come_back(photos, tmp_path, capsys):
    out, away = tmp_path / "out", tmp_path / "away"
    before = {path.relative_to(photos): path.read_bytes() for path in photos.rglob("*.*")}
    assert run(photos, out, "--move_to", str(away)) == 0
    assert "nothing was changed: add --apply" in capsys.readouterr().out and not away.exists()
    assert run(photos, out, "--move_to", str(away), "--apply") == 0
    moved = {str(path.relative_to(away)) for path in away.rglob("*.*")}
    assert moved == {"0 crop.png", "0 mirrored.png", "sub/0 again.jpg", "1 same.png", "2 left.png", "2 right.png"} or (
        moved == {"0 crop.png", "0 mirrored.png", "sub/0 again.jpg", "1.png", "2 left.png", "2 right.png"})
    # the collage has the size and most of the content of its ground, and neither makes the other superfluous
    assert {"0.png", "2.png", "3.png", "4.png", "3 on 4.png"} <= {path.name for path in photos.iterdir()}
    for name in moved:
        assert (away / name).read_bytes() == before[type(photos)(name)] and not (photos / name).exists()
    (undo,) = out.glob("undo-*.jsonl")
    (photos / "0 crop.png").write_bytes(b"another file")
    capsys.readouterr()
    assert main(["copy", "undo", str(undo)]) == 3
    said = capsys.readouterr()
    assert "0 crop.png: another file is in its place" in said.err and f"{len(moved) - 1} files" in said.out
    (photos / "0 crop.png").unlink()
    assert main(["copy", "undo", str(out)]) == 0
    assert {path.relative_to(photos): path.read_bytes() for path in photos.rglob("*.*")} == before
    assert main(["copy", "undo", str(out)]) == 0 and not undo.exists()
    assert "nothing is to be taken back" in capsys.readouterr().out
    undo.write_text('{"format": "another"}\n')
    assert main(["copy", "undo", str(undo)]) == 1
    assert "is no undo file" in capsys.readouterr().err


def test_equal_files_become_hard_links_and_files_of_their_own_again(photos, tmp_path):
    out = tmp_path / "out"
    for name, time in (("1.png", 10**9), ("1 same.png", 10**9 + 5)):
        os.utime(photos / name, (time, time))
    assert run(photos, out, "--hardlink", "--apply") == 0
    assert os.path.samefile(photos / "1.png", photos / "1 same.png")
    assert {(photos / name).stat().st_mtime for name in ("1.png", "1 same.png")} <= {10**9, 10**9 + 5}
    assert sum(path.stat().st_nlink > 1 for path in photos.iterdir() if path.is_file()) == 2
    (undo,) = out.glob("undo-*.jsonl")
    assert main(["copy", "undo", str(undo)]) == 0
    assert not os.path.samefile(photos / "1.png", photos / "1 same.png")
    assert (photos / "1.png").read_bytes() == (photos / "1 same.png").read_bytes()
    assert {(photos / name).stat().st_mtime for name in ("1.png", "1 same.png")} == {10**9, 10**9 + 5}


def test_what_changed_since_it_was_compared_stays(photos, tmp_path, monkeypatch, capsys):
    rename = os.rename

    def renaming(source, to):       # while the first is moved, somebody edits another
        (photos / "2 left.png").write_bytes(b"edited")
        rename(source, to)

    monkeypatch.setattr(os, "rename", renaming)
    assert run(photos, tmp_path / "out", "--move_to", str(tmp_path / "away"), "--apply") == 3
    assert "2 left.png has another content now" in capsys.readouterr().err.replace(str(photos) + "/", "")
    assert (photos / "2 left.png").read_bytes() == b"edited"


def test_a_damaged_cache_is_made_anew_and_gone_files_are_left_out(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(photos, out) == 0
    before = read(out)
    cache = out / "index" / "local-features.sqlite"
    cache.write_bytes(b"no database" * 1000)
    for suffix in ("-wal", "-shm"):
        cache.with_name(cache.name + suffix).unlink(missing_ok=True)
    assert run(photos, out) == 0 and read(out) == before
    data = bytearray(cache.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = os.urandom(4000)
    cache.write_bytes(data)
    assert run(photos, out) == 0 and read(out) == before
    index = ["--index", str(out / "index")]
    assert main(["copy", "remove", *index, "5.png", "3 on 4.png"]) == main(["copy", "compact", *index]) == 0
    with closing(sqlite3.connect(cache)) as database:
        assert database.execute("SELECT count(*) FROM features").fetchone() == (11,)      # two images are one file
        gone = {hashlib.sha256((photos / name).read_bytes()).digest() for name in ("5.png", "3 on 4.png")}
        assert not any({*pair} & gone for pair in database.execute("SELECT query, reference FROM relations"))
    (photos / "0.png").unlink()
    (photos / "1.png").write_bytes(b"no picture")
    capsys.readouterr()
    assert main(["copy", "groups", "--index", str(out / "index"), "--out", str(out)]) == 3
    assert "2 indexed images are gone, changed or not readable" in capsys.readouterr().err
    found = [names(group) for group in read(out)]
    assert {"sub/0 again.jpg", "0 mirrored.png", "0 crop.png"} in found and not any("0.png" in group for group in found)


def test_what_cannot_be_grouped_is_refused_in_one_line(photos, tmp_path, capsys):
    out = str(tmp_path / "out")
    for words, status, said in (
        (["copy", "groups", "--out", out], 2, "give a FOLDER of photos, or the --index of one"),
        (["copy", "groups", str(photos), "--out", out, "--move_to", str(photos / "away")], 2, "give a folder outside"),
        (["copy", "groups", str(photos), "--out", out, "--apply"], 2, "--apply needs --move_to DIR or --hardlink"),
        (["copy", "groups", str(photos), "--out", out, "--model", "phash", "--scores_only"], 1,
         "has no calibration that holds"),
        (["copy", "groups", str(tmp_path / "nothing"), "--out", f"{out}2"], 1, "no such image or folder"),
        (["copy", "undo", str(tmp_path / "undo.jsonl")], 1, "undo.jsonl"),
    ):
        assert main(words) == status
        assert said in capsys.readouterr().err
    assert main(["copy", "groups", str(photos), "--out", out, "--scores_only", "--min_score", "0.9"]) == 0
    assert {frozenset({"1.png", "1 same.png"})} <= {frozenset(names(group)) for group in read(tmp_path / "out")}


def index_of(folder, vectors) -> CopyIndex:
    count = len(vectors)
    index = CopyIndex.create(folder, {"name": "toy", "settings": {}, "choice": {}, "orders_norms": False}, metric="ip",
                             dimension=vectors.shape[1])
    paths = []
    for number in range(count):
        (folder.parent / f"{number}.bin").write_bytes(bytes([number % 256]) * (number + 1))
        paths.append(str(folder.parent / f"{number}.bin"))
    digests = np.stack([np.frombuffer(number.to_bytes(32, "big"), np.uint8) for number in range(count)])
    index.add(Images([str(number) for number in range(count)], paths, digests, np.arange(1, count + 1),
                     vectors.astype(np.float32), np.full(count, np.nan, np.float32)))
    return index


def test_a_collapsed_model_is_named(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    vectors = np.array([1.0, 0, 0, 0]) + 0.001 * rng.standard_normal((40, 4))
    index = index_of(tmp_path / "one", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    with pytest.raises(DataError, match="toy gives all pairs of images the score 1.000"):
        find_groups(index)
    with pytest.raises(DataError, match="choose one of star, single, complete"):
        find_groups(index, linkage="ward")
    with pytest.raises(DataError, match="0 candidates and 2 threads"):
        find_groups(index, candidates=0)
    monkeypatch.setattr(groups_module, "LARGEST", 10)
    vectors = np.repeat(np.eye(4), 12, axis=0) + 0.01 * rng.standard_normal((48, 4))
    (tmp_path / "b").mkdir()
    index = index_of(tmp_path / "b" / "two", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    with pytest.raises(DataError, match="12 images are copies of one another by their scores"):
        find_groups(index, geometry=False, min_score=0.9, candidates=20)


def test_in_python_photos_become_groups_and_the_kept_one_may_be_chosen(photos, tmp_path):
    found = find_copy_groups(photos, index=tmp_path / "index", model="phash", candidates=15, threads=1)
    assert [len(group.records) for group in found.groups] == [4, 3, 3, 2] and found.images == 14
    index = CopyIndex(tmp_path / "index")
    os.utime(photos / "0 mirrored.png", (10**9, 10**9))
    chosen = {keep: members_of(index, found.groups[0], keep)[0].record.id
              for keep in ("largest", "least_compressed", "oldest")}
    assert chosen["oldest"] == "0 mirrored.png" and chosen["largest"] == "0.png"
    members = members_of(index, found.groups[0], "oldest")
    assert "newer" in members[1].differences
    only = find_copy_groups([photos / "0.png", photos / "0 crop.png", photos / "5.png"], index=tmp_path / "index",
                            threads=1)
    assert [[record.id for record in group.records] for group in only.groups] == [["0.png", "0 crop.png"]]
    assert only.images == 3


def test_the_page_is_self_contained_and_draws_the_common_part(photos, tmp_path):
    assert run(photos, tmp_path / "out") == 0
    page = (tmp_path / "out" / "groups.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 12 and "<script" not in page and "http" not in page.replace(
        "http-equiv", "")
    assert page.count("<polygon") >= 4 and "shows 54% of it" in page and "superfluous" in page
    (photos / "5.png").rename(photos / "<b>&.png")
    scene(5).crop((40, 30, 330, 250)).save(photos / "5 crop.png")
    assert run(photos, tmp_path / "out", "--shown", "1") == 0
    page = (tmp_path / "out" / "groups.html").read_text(encoding="utf-8")
    assert "4 more groups are in the list" in page and "<b>&" not in page


def test_what_shows_something_that_the_kept_one_does_not_is_never_superfluous(tmp_path):
    """A gray copy that is larger, a crop that is enlarged, a transparent picture, and a bar along the edge."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    first, second, third, fourth = (scene(seed) for seed in (40, 41, 42, 43))
    first.save(photos / "color.png")
    first.convert("L").resize((400, 300)).save(photos / "gray.png")
    second.save(photos / "whole.png")
    second.crop((8, 6, 352, 264)).resize((720, 540)).save(photos / "nearly whole.png")
    clear = third.convert("RGBA")
    clear.putalpha(Image.new("L", clear.size, 254))
    clear.save(photos / "clear.png")
    third.resize((720, 540)).save(photos / "flat.png")
    barred = Image.new("RGB", (360, 283), (255, 255, 255))
    barred.paste(fourth)
    barred.save(photos / "barred.png")
    fourth.resize((720, 540)).save(photos / "plain.png")
    assert run(photos, out) == 0
    roles = {image["id"]: (image["role"], image["differences"]) for group in read(out) for image in group["images"]}
    assert roles["color.png"][0] == "keep" and roles["gray.png"][0] == "superfluous"
    assert "fewer colors" in roles["gray.png"][1]
    assert roles["whole.png"][0] != "superfluous" and roles["barred.png"][0] != "superfluous"
    assert roles["clear.png"][0] == "copy" and "has transparency, not compared" in roles["clear.png"][1]


def test_one_out_is_for_one_folder_and_a_damaged_index_is_refused(photos, tmp_path, capsys, monkeypatch):
    out, other = tmp_path / "out", tmp_path / "other"
    other.mkdir()
    scene(9).save(other / "0.png")
    monkeypatch.chdir(other)
    assert run("../photos", out) == 0 and len(read(out)) == 4       # paths with .. are of the same files
    assert run(other, out) == 2
    assert "holds the index of other photos" in capsys.readouterr().err
    assert main(["copy", "groups", str(other), "--index", str(out / "index"), "--out", str(out)]) == 1
    assert "two images have the id '0.png'" in capsys.readouterr().err
    vectors = next((out / "index").glob("vectors-*.bin"))
    vectors.write_bytes(bytes(byte ^ 255 for byte in vectors.read_bytes()))
    assert main(["copy", "groups", "--index", str(out / "index"), "--out", str(out)]) == 1
    assert "`repair` mends it" in capsys.readouterr().err
    assert main(["copy", "groups", "--index", str(out / "index"), "--exclude", "a*"]) == 2


def test_undo_leaves_what_somebody_put_in_the_place_of_a_moved_file(photos, tmp_path, capsys):
    out, away = tmp_path / "out", tmp_path / "away"
    assert run(photos, out, "--move_to", str(away), "--apply") == 0
    (away / "0 crop.png").write_bytes(b"another")
    capsys.readouterr()
    assert main(["copy", "undo", str(out)]) == 3 and not (photos / "0 crop.png").exists()
    assert "0 crop.png has another content now" in capsys.readouterr().err.replace(str(away) + "/", "")
