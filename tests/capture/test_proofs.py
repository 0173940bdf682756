"""Proofs: what counts as unchanged, and what `confirm`, `drop_staged` and `doubt` leave behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from contbak.capture import staging
from contbak.capture.attributes import fingerprint, fingerprint_of_directory, stat_entry, with_content, with_fields
from contbak.capture.proof import RACY_NS, Proof, settled_fingerprint, void
from contbak.capture.proofs import TABLES, Proofs, Totals
from contbak.core.names import TOP_DIR, SourceId
from contbak.store.kv import Kv
from tests.capture.world import content_of

ONE, TWO = SourceId(b"source-1"), SourceId(b"source-2")
DIR = b"12345678"


@pytest.fixture
def kv(tmp_path: Path) -> Iterator[Kv]:
    with Kv.open(tmp_path / "kv", TABLES) as opened:
        yield opened


def stage_file(proofs: Proofs, path: Path, dir_id: bytes = TOP_DIR) -> Proof:
    st = os.lstat(path)
    proof = Proof(fingerprint(st))
    entry = with_content(stat_entry(os.fsencode(path), st), content_of(path.read_bytes()))
    proofs.stage(dir_id, os.fsencode(path.name), proof, entry)
    return proof


def stage_directory(proofs: Proofs, path: Path, own: bytes = DIR, name: bytes = b"d") -> Proof:
    st = os.lstat(path)
    proof = Proof(fingerprint_of_directory(st), own)
    proofs.stage(TOP_DIR, name, proof, with_fields(stat_entry(os.fsencode(path), st), dir=own))
    return proof


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    return path


def test_facts_of_a_fingerprint(file: Path) -> None:
    st = os.lstat(file)
    proof = Proof(fingerprint(st))
    assert (proof.mode, proof.size) == (st.st_mode, 5) and proof.mark == (b"", st.st_ino, 1)
    st = os.lstat(file.parent)
    proof = Proof(fingerprint_of_directory(st), DIR)
    assert (proof.mode, proof.size, proof.inode) == (st.st_mode, 0, st.st_ino) and proof.mark == (DIR, st.st_ino, 0)


def test_void_differs_for_good_and_keeps_the_facts(file: Path) -> None:
    for proof in (Proof(fingerprint(os.lstat(file))), Proof(fingerprint_of_directory(os.lstat(file.parent)), DIR)):
        gone = proof._replace(fingerprint=void(proof.fingerprint))
        assert gone != proof and void(gone.fingerprint) == gone.fingerprint
        assert (gone.mode, gone.size, gone.mark) == (proof.mode, proof.size, proof.mark)


def test_what_changed_just_before_it_was_read_does_not_count_as_settled(file: Path) -> None:
    now = os.lstat(file).st_ctime_ns
    mark = fingerprint(os.lstat(file))
    assert settled_fingerprint(mark, now + RACY_NS) == mark
    for read_at in (now, now + RACY_NS - 1, now - 1, now - 10**12):
        assert settled_fingerprint(mark, read_at) == void(mark)
    os.utime(file, ns=(0, time.time_ns() + 10**15))  # a time that was set proves nothing
    mark = fingerprint(os.lstat(file))
    assert settled_fingerprint(mark, os.lstat(file).st_ctime_ns + RACY_NS) == mark


def test_staged_is_seen_at_once_and_clean_only_after_confirm(kv: Kv, file: Path) -> None:
    proofs = Proofs(kv, ONE)
    assert not proofs.any_staged()
    proof = stage_file(proofs, file)
    for look in (proofs.find, lambda *key: proofs.children(key[0]).get(key[1])):
        assert look(TOP_DIR, b"file") == proof
    assert proofs.any_staged() and Proofs(kv, TWO).find(TOP_DIR, b"file") is None
    proofs.drop_staged()
    assert proofs.find(TOP_DIR, b"file") is None
    stage_file(proofs, file)
    proofs.confirm()
    proofs.confirm()
    Proofs(kv, ONE).drop_staged()
    assert proofs.find(TOP_DIR, b"file") == proof and not proofs.any_staged()


def test_gone_hides_a_row_until_confirm_removes_it(kv: Kv, file: Path) -> None:
    proofs = Proofs(kv, ONE)
    proof = stage_file(proofs, file)
    proofs.confirm()
    proofs.stage_gone(TOP_DIR, b"file")
    assert proofs.find(TOP_DIR, b"file") is None and proofs.children(TOP_DIR) == {}
    (row,) = proofs.staged()
    assert row.entry is None
    assert proofs.totals(Totals(1, 1, 5)) == Totals(0, 0, 0, 0, 0, 1)
    proofs.drop_staged()
    assert proofs.find(TOP_DIR, b"file") == proof
    proofs.stage_gone(TOP_DIR, b"file")
    proofs.confirm()
    assert not list(kv.scan("clean"))


def test_totals(kv: Kv, file: Path) -> None:
    proofs = Proofs(kv, ONE)
    stage_file(proofs, file)
    stage_directory(proofs, file.parent)
    totals = proofs.totals(Totals())
    assert totals == Totals(1, 2, 5, 2, 0, 0)
    proofs.confirm()
    file.write_bytes(b"123")
    stage_file(proofs, file)
    assert proofs.totals(totals) == Totals(1, 2, 3, 0, 1, 0)


def test_doubt_makes_a_row_count_as_changed(kv: Kv, file: Path) -> None:
    proofs = Proofs(kv, ONE)
    proof = stage_file(proofs, file)
    proofs.confirm()
    for _ in range(2):
        proofs.doubt(TOP_DIR, b"file")
        found = proofs.find(TOP_DIR, b"file")
        assert found is not None and found != proof and found.size == 5
    proofs.doubt(TOP_DIR, b"unknown")


def test_indexes_are_never_ahead_of_the_rows(kv: Kv, file: Path) -> None:
    proofs = Proofs(kv, ONE)
    inode = os.lstat(file.parent).st_ino
    stage_directory(proofs, file.parent)
    assert proofs.location(DIR) == (TOP_DIR, b"d") and proofs.attached(DIR)
    assert proofs.directory_with(inode) is None  # a commit must hold it first
    proofs.drop_staged()
    assert proofs.location(DIR) is None and not proofs.attached(DIR)
    stage_directory(proofs, file.parent)
    proofs.confirm()
    assert proofs.directory_with(inode) == DIR
    stage_directory(proofs, file.parent, name=b"e")
    proofs.stage_gone(TOP_DIR, b"d")
    assert proofs.location(DIR) == (TOP_DIR, b"e")
    proofs.drop_staged()
    assert proofs.location(DIR) == (TOP_DIR, b"d")
    proofs.stage_gone(TOP_DIR, b"d")
    proofs.confirm()
    assert not [row for table in TABLES for row in kv.scan(table)]


def test_names_of_a_file_with_several(kv: Kv, file: Path) -> None:
    proofs = Proofs(kv, ONE)
    inode = os.lstat(file).st_ino
    stage_file(proofs, file)
    proofs.confirm()
    assert proofs.names_of(inode) == []
    os.link(file, file.parent / "other")
    stage_file(proofs, file)
    stage_file(proofs, file.parent / "other", DIR)
    proofs.confirm()
    assert set(proofs.names_of(inode)) == {(TOP_DIR, b"file"), (DIR, b"other")}
    proofs.stage_gone(DIR, b"other")
    file.with_name("other").unlink()
    stage_file(proofs, file)
    proofs.confirm()
    assert proofs.names_of(inode) == [] and not list(kv.scan("links"))


def test_forget_is_for_one_source(kv: Kv, file: Path) -> None:
    for source in (ONE, TWO):
        proofs = Proofs(kv, source)
        stage_file(proofs, file)
        stage_directory(proofs, file.parent)
        proofs.confirm()
    Proofs(kv, ONE).forget()
    assert all(key.startswith(TWO) for table in TABLES for key, _ in kv.scan(table))
    assert Proofs(kv, TWO).attached(DIR)


def stage_many(proofs: Proofs, file: Path, numbers: range) -> Proof:
    st = os.lstat(file)
    entry = with_content(stat_entry(os.fsencode(file), st), content_of(file.read_bytes()))
    proof = Proof(fingerprint(st))
    for number in numbers:
        proofs.stage(TOP_DIR, b"%05d" % number, proof, entry)
    return proof


def test_many_rows_are_written_in_parts(kv: Kv, file: Path) -> None:
    proofs = Proofs(kv, ONE)
    stage_many(proofs, file, range(4500))
    proofs.confirm(batch=1000)
    assert len(proofs.children(TOP_DIR)) == 4500 and not proofs.any_staged()
    assert not [row for table in staging.TABLES for row in kv.scan(table)]
    assert proofs.new_directory_id(b"a/b") == proofs.new_directory_id(b"a/b") != proofs.new_directory_id(b"a/c")
    assert proofs.new_directory_id(b"a/b")[:3] == proofs.new_directory_id(b"a/c")[:3]


def test_what_memory_has_no_room_for_is_on_disk(kv: Kv, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "ROOM", 100)
    monkeypatch.setattr(staging, "BLOCK", 7)
    proofs = Proofs(kv, ONE)
    proof = stage_many(proofs, file, range(250))
    stage_directory(proofs, file.parent)
    assert sum(1 for _ in kv.scan("staged")) == 200
    for number in range(0, 250, 10):  # both of those on disk and of the others
        proofs.stage_gone(TOP_DIR, b"%05d" % number)
    left = {b"%05d" % number: proof for number in range(250) if number % 10}
    for _ in range(2):
        found = proofs.children(TOP_DIR)
        assert found.pop(b"d").directory == DIR and found == left
        assert proofs.find(TOP_DIR, b"00010") is None and proofs.find(TOP_DIR, b"00249") == proof
        assert proofs.location(DIR) == (TOP_DIR, b"d") and proofs.any_staged()
        assert proofs.committed(TOP_DIR, b"00011") is None
        rows = list(proofs.staged())
        assert [row.name for row in rows] == [*(b"%05d" % number for number in range(250)), b"d"]
        assert {row.name for row in rows if row.entry is None} == {b"%05d" % number for number in range(0, 250, 10)}
        assert proofs.totals(Totals()) == Totals(225, 226, 225 * proof.size, 226, 0, 0)
    proofs.keep()
    other = Proofs(kv, ONE)
    other.confirm()
    assert {name: other.find(TOP_DIR, name) for name in left} == left and other.attached(DIR)
    assert not [row for table in staging.TABLES for row in kv.scan(table)]


def test_what_was_promised_is_confirmed_by_whoever_comes(kv: Kv, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "BLOCK", 3)
    proofs = Proofs(kv, ONE)
    stage_many(proofs, file, range(10))
    proofs.keep()
    proofs.stage_gone(TOP_DIR, b"00001")
    proofs.stage_gone(TOP_DIR, b"00002")
    proofs.keep()  # the relay wanted another commit
    Proofs(kv, ONE).confirm(batch=1)
    assert len(Proofs(kv, ONE).children(TOP_DIR)) == 8
    Proofs(kv, ONE).confirm()
    assert len(Proofs(kv, ONE).children(TOP_DIR)) == 8


def test_what_was_not_kept_or_was_dropped_leaves_no_trace(kv: Kv, file: Path) -> None:
    proofs = Proofs(kv, ONE)
    stage_file(proofs, file)
    Proofs(kv, ONE).confirm()
    assert Proofs(kv, ONE).children(TOP_DIR) == {}
    proofs.keep()
    Proofs(kv, ONE).drop_staged()
    Proofs(kv, ONE).confirm()
    assert not [row for table in TABLES for row in kv.scan(table)]


def test_promises_of_a_commit_that_never_was_are_not_kept(kv: Kv, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was given up with no word to the journal (the chain began anew): the next commit makes its own promises."""
    monkeypatch.setattr(staging, "BLOCK", 3)
    for staged in (range(0), range(2)):
        stage_many(given_up := Proofs(kv, ONE), file, range(10))
        given_up.keep()
        proofs = Proofs(kv, ONE)
        stage_many(proofs, file, staged)
        proofs.keep()
        Proofs(kv, ONE).confirm()
        assert set(Proofs(kv, ONE).children(TOP_DIR)) == {b"%05d" % number for number in staged}
