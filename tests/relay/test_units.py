"""The parts of the relay that need no process: settings, registry, sessions, closure, pack files, arrivals."""

import os
import random
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contbak.core import frame, messages
from contbak.core.crypto import public_of, vouch
from contbak.core.errors import ConfigError, FormatError, NotInitialised, Refused, StoreFull, UsageError
from contbak.core.messages import Place
from contbak.core.pack import Row
from contbak.store.posix import replace_file
from relay import arrivals, config, identity, records, stores
from relay.closure import DEPTH_MAX, Closure
from relay.index import CommitRow, Index
from relay.packfile import Contents, PackFile, check_sealed
from relay.problem import Problem
from relay.registry import Registry, Vault
from relay.session import CHALLENGE_S, TOKEN_S, Sessions
from tests.relay.peer import Device, flip


@pytest.fixture
def device(seed):
    return Device(random.Random(seed))


# -- records and settings


@given(st.text(), st.binary(min_size=32, max_size=32), st.data())
def test_a_record_is_whole_or_refused(name, key, data):
    record = Vault(1, key, key, name)
    raw = records.dump(record)
    assert records.load(raw, Vault, "a record") == record
    at = data.draw(st.integers(0, len(raw) - 1))
    damaged = raw[:at] + bytes([raw[at] ^ data.draw(st.integers(1, 255))]) + raw[at + 1 :]
    for wrong in (damaged, raw[:at]):
        with pytest.raises(FormatError):
            records.load(wrong, Vault, "a record")


@given(st.binary(max_size=60))
def test_settings_are_read_or_refused(raw):
    try:
        config.parse(raw, "x")
    except ConfigError as error:
        assert str(error).startswith("x")


@pytest.mark.parametrize(
    "text, host, port",
    [("h:1", "h", 1), ("h", "h", 7443), (":9", "", 9), ("[::1]:5", "::1", 5), ("[::1]", "::1", 7443)],
)
def test_addresses(text, host, port):
    assert config.split_address(text, "x") == (host, port)


@pytest.mark.parametrize("text", ["h:99999", "a:b", "::1", "[h]:1", "a b", "h:", "h/1"])
def test_addresses_that_are_none(text):
    with pytest.raises(ConfigError):
        config.split_address(text, "x")


def test_settings_keep_their_text_when_a_store_is_added(tmp_path):
    config.save(tmp_path, config.Config(stores=("/a",), socket="/s"))
    path = tmp_path / "config.toml"
    path.write_text(path.read_text() + "# mine\n")
    assert config.add_store(tmp_path, Path('/b "quoted" ü')).stores == ("/a", '/b "quoted" ü')
    assert path.read_text().endswith("# mine\n") and config.load(tmp_path).socket == "/s"
    path.write_text("# none\n")
    assert config.add_store(tmp_path, Path("/c")).stores == ("/c",)
    with pytest.raises(NotInitialised):
        config.load(tmp_path / "nowhere")


def test_identity(tmp_path):
    made = identity.create(tmp_path, datetime.now(UTC))
    assert identity.load(tmp_path) == made and public_of(made.seed) == made.public
    assert len(made.fingerprint) == 32
    identity.tls_context(made, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["identity", "identity.copy"]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.iterdir())


# -- registry


def join_of(device, token, **changes):
    facts = {
        "version": 1, "token": token, "read_public": device.keys.read_public, "admin_public": device.keys.admin_public,
        "device": device.id, "device_name": "laptop", "vault_name": "home",
        "vouch": vouch(device.owner.admin_seed, device.vault, device.id),
    }  # fmt: skip
    return messages.Join(**{**facts, **changes})


def test_invites_run_out_and_devices_come_back_with_new_ones_only(tmp_path, device):
    registry = Registry(tmp_path)
    late = registry.invite(b"", "", 1000)
    with pytest.raises(Problem, match="run out"):
        registry.join(join_of(device, late), 1001)
    token = registry.invite(b"", "", 1000)
    registry.join(join_of(device, token), 1000)
    registry.join(join_of(device, token), 5000)  # the same again, however late
    known = registry.find_device("laptop")
    registry.set_enabled(known, False)
    registry.join(join_of(device, token), 1000)
    assert not registry.find_device("laptop").enabled
    registry.join(join_of(device, registry.invite(b"", "", 1000)), 1000)
    assert registry.find_device(device.id.hex()[:6]).enabled
    registry.remove_device(known)
    with pytest.raises(Problem):
        registry.join(join_of(device, token), 1000)
    with pytest.raises(UsageError):
        registry.find_device("laptop")


def test_a_damaged_device_is_set_aside_and_not_let_in(tmp_path, device):
    registry = Registry(tmp_path)
    registry.join(join_of(device, registry.invite(b"", "", 10)), 1)
    path = next((tmp_path / "registry" / "devices").iterdir())
    flip(path)
    assert registry.device(device.vault, device.id) is None
    assert "damaged" in next((tmp_path / records.LOST).glob("*.reason")).read_text()


# -- sessions


def login_of(device, challenge):
    own = os.urandom(32)
    signature = messages.login_signature(device.seed, device.vault, challenge, own)
    return messages.Login(device.vault, device.id, challenge.nonce, own, signature)


def test_sessions_run_out(tmp_path, device):
    registry = Registry(tmp_path)
    registry.join(join_of(device, registry.invite(b"", "", 10)), 1)
    sessions = Sessions(registry, bytes(32))
    challenge = sessions.challenge(device.id, 100.0)
    with pytest.raises(Problem, match="run out"):
        sessions.login(login_of(device, challenge), 100.1 + CHALLENGE_S)
    who, token = sessions.login(login_of(device, challenge), 100.0 + CHALLENGE_S)
    with pytest.raises(Problem, match="already"):
        sessions.login(login_of(device, challenge), 100.0 + CHALLENGE_S)
    assert sessions.who(token, 159.0 + TOKEN_S) == who
    with pytest.raises(Problem, match="run out"):
        sessions.who(token, 161.0 + TOKEN_S)
    other = Sessions(registry, bytes(32))  # after a restart
    with pytest.raises(Problem, match="not ours"):
        other.login(login_of(device, sessions.challenge(device.id, 100.0)), 100.0)


def test_challenges_cost_no_memory_and_tokens_little(tmp_path, device):
    registry = Registry(tmp_path)
    registry.join(join_of(device, registry.invite(b"", "", 10)), 1)
    sessions = Sessions(registry, bytes(32))
    for _ in range(1000):
        sessions.challenge(device.id, 0.0)
    assert not sessions._answered
    tokens = [sessions.login(login_of(device, sessions.challenge(device.id, n)), n)[1] for n in range(1, 200)]
    assert len(sessions._answered) <= 2 * CHALLENGE_S + 1
    assert len(sessions._tokens) <= 16
    assert sessions.who(tokens[-1], 200.0)
    with pytest.raises(Problem):
        sessions.who(tokens[0], 200.0)


# -- stores


def test_a_store_is_made_in_an_empty_directory_only(tmp_path):
    stores.create(tmp_path / "a")
    stores.create(tmp_path / "a")
    (tmp_path / "x").touch()
    with pytest.raises(Refused):
        stores.create(tmp_path)


def test_what_has_no_marker_is_not_written_to(tmp_path):
    for name in "ab":
        stores.create(tmp_path / name)
    both = stores.Stores((str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "c")), 0)
    assert len(both.all()) == 2 and not both.complete()
    (tmp_path / "a" / stores.MARKER).unlink()
    assert [store.root for store in both.roomy(1)] == [tmp_path / "b"]
    both.put_new("x", b"1")
    assert both.get("x") == b"1" and (tmp_path / "b" / "x").exists()
    (tmp_path / "b" / stores.MARKER).unlink()
    with pytest.raises(StoreFull):
        both.roomy(1)


# -- pack files


def test_every_flipped_byte_of_a_pack_is_found(tmp_path, device):
    packed = device.pack([(frame.DATA, [(b"x" * 300, ())]), (frame.DATA, [(b"y" * 300, ())])])
    whole = packed.body + packed.plan.raw
    path = tmp_path / "pack"
    rng = device.random
    for at in {0, 8, 20, 63, len(whole) - 1, packed.plan.directory_offset, *rng.sample(range(len(whole)), 60)}:
        raw = bytearray(whole)
        raw[at] ^= 1 << rng.randrange(8)
        path.write_bytes(raw)
        with pytest.raises(FormatError), PackFile(path) as file:
            if at < packed.plan.body_len:
                assert list(file.check_segments(packed.plan)) == [at >> packed.plan.segment_log2]
            check_sealed(PackFile(path), packed.plan, device.vault, device.writer)
            raise AssertionError(at)
        with PackFile(path) as file:  # both frames, or the one that is whole
            rows = file.contents().rows
        assert {id_ for row in rows for id_ in row.ids} & set(packed.ids)
    path.write_bytes(whole)
    assert check_sealed(PackFile(path), packed.plan, device.vault, device.writer).length == len(whole)


@pytest.mark.parametrize("length", [0, 1, 63, 64, 300])
def test_a_pack_cut_short(tmp_path, device, length):
    packed = device.data(1, 2000)
    (tmp_path / "pack").write_bytes(packed.body[:length])
    with pytest.raises(FormatError), PackFile(tmp_path / "pack") as file:
        file.contents()


# -- closure


class Graph:
    """An index over made-up nodes, whose headers come from memory."""

    def __init__(self, top):
        self.index = Index(top / "index", lambda _: None)
        self.refs = {}
        self.reads = 0
        self.numbers = 0

    def add(self, kind, *nodes):
        """Adds (id, refs) as one frame of one pack."""
        self.numbers += 1
        root = self.numbers.to_bytes(32, "big")
        ids = tuple(id_ for id_, _ in nodes)
        row = Row(64, 100, 100, kind, ids)
        self.index.add_pack(root, Contents(None, bytes(8), 1000, (row,), True))
        self.refs[root] = (ids, tuple(refs for _, refs in nodes))

    def header(self, place: Place):
        self.reads += 1
        ids, refs = self.refs[place.pack]
        return frame.Header(1, place.kind, ids, refs, 10, bytes(8), bytes(32), bytes(32), b"")

    def missing(self, *roots):
        closure = Closure(self.index, self.header)
        missing = closure.missing(roots)
        if not missing:
            self.index.add_commits([], closure.closed)
        return missing


def node(number):
    return number.to_bytes(32, "big")


@pytest.fixture
def graph(tmp_path):
    made = Graph(tmp_path)
    yield made
    made.index.close()


def test_closed_nodes_are_walked_once(graph):
    graph.add(frame.DATA, *((node(n), ()) for n in range(100, 150)))
    for n in range(10):
        graph.add(frame.NODE, (node(n + 1), tuple(node(k) for k in range(100 + 5 * n, 105 + 5 * n))))
    graph.add(frame.NODE, (node(50), tuple(node(n + 1) for n in range(10))))
    assert graph.missing(node(50)) == [] and graph.reads == 11
    assert graph.missing(node(50)) == [] and graph.reads == 11
    graph.add(frame.NODE, (node(51), (node(3), node(50))))
    assert graph.missing(node(51)) == [] and graph.reads == 12


@settings(max_examples=30)
@given(st.data())
def test_closure_says_what_a_plain_walk_says(tmp_path_factory, data):
    graph = Graph(tmp_path_factory.mktemp("graph"))
    try:
        count = data.draw(st.integers(1, 14))
        present = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
        edges = {n: data.draw(st.sets(st.integers(0, n - 1), max_size=4)) if n else set() for n in range(count)}
        order = data.draw(st.permutations(range(count)))

        def walk(n, seen):
            if n not in seen:
                seen.add(n)
                for m in edges[n] if there[n] else ():
                    walk(m, seen)
            return {m for m in seen if not there[m]}

        there = [False] * count
        for n in order:  # between arrivals some are asked for, so that what is remembered must stay true
            if present[n]:
                graph.add(frame.NODE, (node(n + 1), tuple(node(m + 1) for m in sorted(edges[n]))))
                there[n] = True
            asked = data.draw(st.integers(0, count - 1))
            assert set(graph.missing(node(asked + 1))) == {node(m + 1) for m in walk(asked, set())}
    finally:
        graph.index.close()


def test_a_deep_chain_and_a_wide_web(graph):
    for n in range(1, DEPTH_MAX + 2):
        graph.add(frame.NODE, (node(n), (node(n - 1),) if n > 1 else ()))
    assert graph.missing(node(DEPTH_MAX)) == []
    for n in range(1000, 1000 + DEPTH_MAX + 1):
        graph.add(frame.NODE, (node(n), (node(n - 1),) if n > 1000 else ()))
    with pytest.raises(FormatError, match="deep"):
        graph.missing(node(1000 + DEPTH_MAX))
    # every node points to the two below it: as many paths as 2^40, and one of the lowest is missing
    for n in range(2000, 2040):
        below = (node(n * 2 - 2), node(n * 2 - 1))
        graph.add(frame.NODE, (node(n * 2), below), (node(n * 2 + 1), below))
    assert set(graph.missing(node(2039 * 2))) == {node(3998), node(3999)}
    assert graph.reads < 500


# -- arrivals


def test_an_arrival_is_resumed_from_its_bytes(tmp_path, device):
    stores.create(tmp_path / "store")
    here = stores.Stores((str(tmp_path / "store"),), 0)
    packed = device.data(40, 10_000)
    first = arrivals.Arrivals(here, device.vault)
    arrival = first.start(packed.plan)
    for index in (0, 2, 5):
        arrival.take(index, packed.segments(index))
    first.close()
    arrival.take(1, packed.segments(1))  # of a request that was still under way: not written, not held
    flip(arrival.path, packed.plan.span(2)[0])
    again = arrivals.Arrivals(here, device.vault)
    resumed = again.get(packed.plan.root)
    held = messages.bits(resumed.have(), len(packed.plan.hashes))
    assert [n for n, bit in enumerate(held) if bit] == [0, 5]
    assert arrivals.Arrivals(here, Device(device.random).vault).get(packed.plan.root) is None
    again.close()
    replace_file(arrival.path, b"rubbish")
    assert again.get(packed.plan.root) is None and not arrival.path.exists()
    again.start(packed.plan)
    assert arrivals.sweep(here, arrival.path.stat().st_mtime + 6 * 86_400) == 0
    assert arrivals.sweep(here, arrival.path.stat().st_mtime + 8 * 86_400) == 1
    again.close()


def test_many_arrivals_hold_few_files_open(tmp_path, device):
    stores.create(tmp_path / "store")
    here = stores.Stores((str(tmp_path / "store"),), 0)
    many = arrivals.Arrivals(here, device.vault)
    packs = [device.data(1, 10) for _ in range(arrivals._ARRIVING_MAX)]
    for packed in packs:
        many.start(packed.plan)
    assert len(many._known) == arrivals._OPEN_MAX
    with pytest.raises(StoreFull):
        many.start(device.data(1, 10).plan)
    for packed in packs:
        arrival = many.get(packed.plan.root)
        arrival.take(0, packed.body)
        assert arrival.complete
        many.drop(arrival)
    assert not list((tmp_path / "store" / "incoming").iterdir())


def test_abandoned_arrivals_make_room(tmp_path, device, monkeypatch):
    """Those without a segment first, then those idle for an hour; never one that someone still sends."""
    monkeypatch.setattr(arrivals, "_ARRIVING_MAX", 4)
    monkeypatch.setattr(arrivals, "_OPEN_MAX", 2)  # the older ones are known by their files only
    stores.create(tmp_path / "store")
    many = arrivals.Arrivals(stores.Stores((str(tmp_path / "store"),), 0), device.vault)

    def begin(packed, age, segments):
        arrival = many.start(packed.plan)
        if segments:
            arrival.take(0, packed.segments(0))
        then = arrival.path.stat().st_mtime - age
        os.utime(arrival.path, (then, then))
        return packed.plan.root

    old, bare, idle, fresh = (
        begin(device.data(40, 10_000), age, segments)
        for age, segments in ((9000, True), (100, False), (7000, True), (3000, True))
    )
    for gone, left in ((bare, [old, idle, fresh]), (old, [idle, fresh]), (idle, [fresh])):
        begin(device.data(1, 10), 0, False)
        assert many.get(gone) is None and all(many.get(root) is not None for root in left)
    with pytest.raises(StoreFull):
        many.start(device.data(1, 10).plan)
    path = many.get(fresh).path
    path.unlink()  # by the sweep
    assert many.get(fresh) is None
    many.close()




def test_an_open_node_met_twice_leaves_both_parents_open(graph):
    graph.add(frame.NODE, (node(1), (node(9),)))
    graph.add(frame.NODE, (node(2), (node(1),)), (node(3), (node(1),)), (node(4), (node(2), node(3))))
    assert graph.missing(node(4)) == [node(9)]
    for root in (2, 3, 4):
        assert graph.missing(node(root)) == [node(9)]
    graph.add(frame.DATA, (node(9), ()))
    assert graph.missing(node(4)) == []


def test_the_head_is_the_highest_number_in_whatever_order_commits_come(tmp_path):
    index = Index(tmp_path / "index", lambda _: None)
    rows = [CommitRow(node(n), n, 0, node(99), n, bytes(16)) for n in (2, 3, 1)]
    index.add_commits(rows)
    assert index.head(node(99)).id == node(3) and index.last_position() == 3
    assert [row.position for row in index.commits_after(1, 10)] == [2, 3]
    index.close()
