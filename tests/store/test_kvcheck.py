"""No damage goes unseen: bytes are flipped, cut, zeroed and exchanged, and each time the rows are right or refused."""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from contbak.store import kvcheck, kvhome
from contbak.store.kv import Kv, KvDamaged
from contbak.store.kvform import DAMAGED, DATA_FILE, NEVER_BORN, SOUND

PAGE = 4096
TABLES = ["ids", "places", "heads"]
Rows = dict[str, dict[bytes, bytes]]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes, Rows]:
    """File, tip and rows of an environment with branch pages, overflow pages and free pages."""
    path = tmp_path_factory.mktemp("sample") / "index"
    rnd = random.Random(7)
    model: Rows = {table: {} for table in TABLES}
    with Kv.open(path, TABLES) as kv:
        with kv.write() as rows:  # the name of an empty table would be free to change
            rows.put("heads", b"head", b"only one")
            model["heads"][b"head"] = b"only one"
        for _ in range(12):
            with kv.write() as rows:
                for _ in range(60):
                    key, value = rnd.randbytes(rnd.choice([4, 9, 32])), rnd.randbytes(rnd.randrange(40))
                    rows.put("ids", key, value)
                    model["ids"][key] = value
                key, value = rnd.randbytes(100), rnd.randbytes(rnd.choice([10, 3000, 9000]))
                rows.put("places", key, value)
                model["places"][key] = value
                for key in rnd.sample(sorted(model["ids"]), 15):
                    rows.delete("ids", key)
                    del model["ids"][key]
    return (path / DATA_FILE).read_bytes(), (path / "tip").read_bytes(), model


def outcome(path: Path, data: bytes, sample: tuple[bytes, bytes, Rows], monkeypatch: pytest.MonkeyPatch) -> str:
    """What comes of an environment with this file; fails if it is silently wrong, now or after more writing."""
    _, tip, model = sample
    path.mkdir(exist_ok=True)
    (path / "lock.mdb").unlink(missing_ok=True)
    (path / DATA_FILE).write_bytes(data)
    (path / "tip").write_bytes(tip)
    code = examine_here(path)
    if code != SOUND:
        return "refused"
    monkeypatch.setattr(kvhome, "examine_in_child", lambda path, rows: (code, ""))
    with Kv.open(path, TABLES) as kv:
        try:
            check_all(kv, model)
        except KvDamaged:
            return "refused"
        changed = {table: dict(rows) for table, rows in model.items()}
        for number in range(2):
            with kv.write() as rows:
                for table in TABLES:
                    for size in (5, 5, 200, 6000):
                        key = b"%d %d %d" % (number, size, len(changed[table]))
                        rows.put(table, key, bytes(size))
                        changed[table][key] = bytes(size)
        check_all(kv, changed)
    assert examine_here(path) == SOUND
    return "unaffected"


def examine_here(path: Path) -> int:
    try:
        kvcheck.examine(path)
    except kvcheck.NeverBorn:
        return NEVER_BORN
    except Exception:
        return DAMAGED
    return SOUND


def check_all(kv: Kv, model: Rows) -> None:
    with kv.read() as view:
        for table, rows in model.items():
            assert dict(view.items(table)) == rows
            assert view.get_many(table, rows) == list(rows.values())
            assert view.count(table) == len(rows)


def test_the_sample_is_sound(
    tmp_path: Path, sample: tuple[bytes, bytes, Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert outcome(tmp_path / "e", sample[0], sample, monkeypatch) == "unaffected"


def test_random_flips(tmp_path: Path, sample: tuple[bytes, bytes, Rows], monkeypatch: pytest.MonkeyPatch) -> None:
    rnd = random.Random(int(os.environ["CONTBAK_TEST_SEED"]))
    data = sample[0]
    seen = []
    for _ in range(300):
        flipped = bytearray(data)
        flipped[rnd.randrange(len(data))] ^= rnd.randrange(1, 256)
        seen.append(outcome(tmp_path / "e", bytes(flipped), sample, monkeypatch))
    assert seen.count("refused") > 50


def test_flips_where_lmdb_keeps_its_own(
    tmp_path: Path, sample: tuple[bytes, bytes, Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Single bits of the meta pages and of the heads of all pages, which random flips seldom meet."""
    rnd = random.Random(int(os.environ["CONTBAK_TEST_SEED"]))
    data = sample[0]
    places = [page + at for page in range(0, len(data), PAGE) for at in range(160 if page < 2 * PAGE else 24)]
    for place in rnd.sample(places, 150):
        flipped = bytearray(data)
        flipped[place] ^= 1 << rnd.randrange(8)
        outcome(tmp_path / "e", bytes(flipped), sample, monkeypatch)


def test_pages_lost_zeroed_and_exchanged(
    tmp_path: Path, sample: tuple[bytes, bytes, Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = sample[0]
    pages = [data[at : at + PAGE] for at in range(0, len(data), PAGE)]
    rnd = random.Random(3)
    for at in range(len(pages)):
        outcome(tmp_path / "e", b"".join([*pages[:at], bytes(PAGE), *pages[at + 1 :]]), sample, monkeypatch)
        other = rnd.randrange(len(pages))
        exchanged = list(pages)
        exchanged[at], exchanged[other] = pages[other], pages[at]
        outcome(tmp_path / "e", b"".join(exchanged), sample, monkeypatch)
        assert outcome(tmp_path / "e", data[: at * PAGE + 100], sample, monkeypatch) == "refused"


def test_an_older_state_that_claims_to_be_the_newest(
    tmp_path: Path, sample: tuple[bytes, bytes, Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(sample[0])
    at = PAGE - newest_meta(sample[0]) + 144
    number = int.from_bytes(data[at : at + 8], "little")
    data[at : at + 8] = (number + 2).to_bytes(8, "little")
    assert outcome(tmp_path / "e", bytes(data), sample, monkeypatch) == "refused"


def newest_meta(data: bytes) -> int:
    """Where the newer of the two meta pages begins."""
    return max((0, PAGE), key=lambda at: int.from_bytes(data[at + 144 : at + 152], "little"))


def live_branches(data: bytes) -> Iterator[int]:
    """Where the branch pages in use begin."""
    claimed = []

    class Watch(kvcheck.Examination):
        def page(self, number: int) -> bytes:
            claimed.append(number)
            return super().page(number)

    with mmap.mmap(-1, len(data)) as file:
        file.write(data)
        Watch(file, None).run()
    return (number * PAGE for number in claimed if data[number * PAGE + 10] == 1)


def test_separators_that_send_a_search_astray(
    tmp_path: Path, sample: tuple[bytes, bytes, Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = sample[0]
    seen = []
    for branch in live_branches(data):
        lower = int.from_bytes(data[branch + 12 : branch + 14], "little")
        for pointer in range(branch + 18, branch + lower, 2):  # the first separator is never looked at
            key = branch + int.from_bytes(data[pointer : pointer + 2], "little") + 8
            for byte in (0, 255, data[key] ^ 1, data[key] ^ 2, data[key] ^ 16):
                changed = bytearray(data)
                changed[key] = byte
                seen.append(outcome(tmp_path / "e", bytes(changed), sample, monkeypatch))
    assert seen.count("refused") >= 10


def test_records_of_tables(tmp_path: Path, sample: tuple[bytes, bytes, Rows], monkeypatch: pytest.MonkeyPatch) -> None:
    """What lmdb knows of a table, such as its root, its flags and the number of its rows."""
    data = sample[0]
    root = int.from_bytes(data[(at := newest_meta(data) + 128) : at + 8], "little") * PAGE
    upper = int.from_bytes(data[root + 14 : root + 16], "little")
    rnd = random.Random(int(os.environ["CONTBAK_TEST_SEED"]))
    for at in range(root + upper, root + PAGE):
        changed = bytearray(data)
        changed[at] ^= 1 << rnd.randrange(8)
        assert outcome(tmp_path / "e", bytes(changed), sample, monkeypatch) == "refused" or data[at] == 0


def test_a_count_of_rows_does_not_make_a_table_large(tmp_path: Path, sample: tuple[bytes, bytes, Rows]) -> None:
    """The examination in part leaves out what is large by the word of the sums, which are under a checksum."""
    data, tip, model = sample
    (tmp_path / "tip").write_bytes(tip)
    (tmp_path / DATA_FILE).write_bytes(data)
    sizes = sorted(len(rows) for rows in model.values())
    assert kvcheck.examine(tmp_path, sizes[-1] - 1) == sum(sizes[:-1])
    root = int.from_bytes(data[(at := newest_meta(data) + 128) : at + 8], "little") * PAGE
    for table, rows in model.items():
        entries = data.index(table.encode(), root, root + PAGE) + len(table) + 32
        assert int.from_bytes(data[entries : entries + 8], "little") == len(rows)
        changed = bytearray(data)
        changed[entries + 5] ^= 1
        (tmp_path / DATA_FILE).write_bytes(changed)
        with pytest.raises(kvcheck.Damaged):
            kvcheck.examine(tmp_path, 1 << 20)


def test_a_free_list_that_names_live_pages(
    tmp_path: Path, sample: tuple[bytes, bytes, Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = sample[0]
    root = int.from_bytes(data[(at := newest_meta(data) + 80) : at + 8], "little") * PAGE
    lower, upper = (int.from_bytes(data[root + at : root + at + 2], "little") for at in (12, 14))
    assert data[root + 10] == 2 and lower > 16, "the sample must have free pages, listed on one leaf"
    seen = []
    for node in range(upper + 16, PAGE - 8, 8):
        for bit in (1, 2, 4, 8, 16, 32, 64, 128):
            changed = bytearray(data)
            changed[root + node] ^= bit
            seen.append(outcome(tmp_path / "e", bytes(changed), sample, monkeypatch))
    assert seen.count("refused") > len(seen) // 2


def test_through_the_child(tmp_path: Path, sample: tuple[bytes, bytes, Rows]) -> None:
    data, tip, model = sample
    rnd = random.Random(11)
    seen = set()
    for _ in range(8):
        path = tmp_path / "index"
        path.mkdir(exist_ok=True)
        flipped = bytearray(data)
        flipped[rnd.randrange(len(data))] ^= 1 << rnd.randrange(8)
        (path / DATA_FILE).write_bytes(flipped)
        (path / "tip").write_bytes(tip)
        with Kv.open(path, TABLES) as kv:
            check_all(kv, {table: {} for table in TABLES} if kv.was_reset else model)
            seen.add(kv.was_reset)
    assert seen == {True, False}


def test_what_it_says(tmp_path: Path, sample: tuple[bytes, bytes, Rows]) -> None:
    (tmp_path / DATA_FILE).write_bytes(sample[0])
    rows = sum(map(len, sample[2].values()))
    assert kvhome.examine_in_child(tmp_path) == (SOUND, f"{rows} rows")
    (tmp_path / DATA_FILE).write_bytes(b"")
    assert kvhome.examine_in_child(tmp_path) == (NEVER_BORN, "the file is empty")
    (tmp_path / DATA_FILE).write_bytes(sample[0][:-9000])
    code, text = kvhome.examine_in_child(tmp_path)
    assert code == DAMAGED and text.startswith("page ")
