"""Digests against published test vectors (FIPS 180-2)."""

from ascl.core.hashing import sha256_of, sha256_of_text

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
MILLION = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"  # a million times the letter a


def test_digests_are_the_published_ones(tmp_path):
    (tmp_path / "file").write_bytes(b"a" * 1_000_000)
    assert sha256_of(tmp_path / "file") == MILLION == sha256_of_text("a" * 1_000_000)
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_of(str(tmp_path / "file")) == ABC == sha256_of_text("abc")
