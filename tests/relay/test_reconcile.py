"""The index made to agree with stores that come and go, and with seals that are under way."""

import os
import random
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from contbak.core import commit
from contbak.core.crypto import vouch
from relay import reconcile, stores
from relay.index import Index
from relay.intake import Intake
from relay.reconcile import Reconciler
from relay.registry import Vault
from relay.stores import Stores
from tests.relay.peer import Device


class Two:
    """A vault on two stores, two devices, and whatever commits were accepted."""

    def __init__(self, top):
        self.top = top
        self.stores = [top / "a", top / "b"]
        for store in self.stores:
            stores.create(store)
        self.device = Device(random.Random(1))
        self.other = self.device.second()
        self.accepted = []

    def open(self):
        opened = Stores(tuple(map(str, self.stores)), 0)
        for store in opened.all():  # on one disk, whose free space others change between two looks
            store.free = lambda: 1 << 40
        keys = self.device.keys

        def make():
            return Index(self.top / "index", lambda _: None)

        index = Reconciler(self.device.vault, opened, make, keys.admin_public).run()
        return Intake(Vault(1, keys.read_public, keys.admin_public, "x"), opened, index, bytes(32), lambda: 1000)

    def send(self, device, count):
        intake = self.open()
        for _ in range(count):
            data = device.data(2)
            tree = device.tree(data.ids)
            self.put(intake, device, data)
            self.put(intake, device, tree)
            signed = device.record(tree.ids[0])
            intake.commit(signed.raw, device.id)
            device.advance(signed)
            self.accepted.append(signed.id)
        intake.close()

    def put(self, intake, device, packed):
        plan = packed.plan
        intake.plan(plan.root, plan.raw)
        for number in range(len(plan.hashes)):
            offset, length = plan.span(number)
            intake.segments(plan.root, number, packed.body[offset : offset + length])
        intake.seal(plan.root, device.id)

    def listed(self):
        intake = self.open()
        found = [(row.position, row.received_ms, commit.decode(row.record).id) for row in intake.listed(0)]
        intake.close()
        return found


@pytest.fixture
def two(tmp_path):
    return Two(tmp_path)


def test_a_store_that_was_away_hides_no_commit(two):
    """Its positions are given again while it is away; once it is back every accepted commit is listed."""
    two.send(two.device, 3)
    where, away = two.stores[0], two.top / "away"
    os.rename(where, away)
    where.mkdir()  # the mount point without its disk
    two.send(two.other, 3)
    where.rmdir()
    os.rename(away, where)
    first = two.listed()
    assert sorted(id_ for _, _, id_ in first) == sorted(two.accepted)
    assert len({position for position, _, _ in first}) == 6 and {ms for _, ms, _ in first} == {1000}
    for _ in range(2):  # and the order is the same however often the index is made
        for path in (two.top / "index").iterdir():
            path.unlink()
        assert two.listed() == first
    assert sum(len(list(store.rglob("order/*"))) for store in two.stores) == 9


def test_names_are_durable_before_the_index_promises_them(two, monkeypatch):
    two.send(two.device, 1)
    for path in (two.top / "index").iterdir():
        path.unlink()
    done = []
    monkeypatch.setattr(reconcile, "sync_directory", lambda folder: done.append(folder))
    real = {name: getattr(Index, name) for name in ("add_packs", "add_commits")}
    for name in real:
        monkeypatch.setattr(Index, name, lambda index, rows, name=name: (done.append(name), real[name](index, rows)))
    two.listed()
    folders = {path.parent for path in two.top.rglob("*") if path.is_file()}
    packs = {folder for folder in folders if folder.parent.name == "packs"}
    records = {folder for folder in folders if folder.parent.name == "commits"}
    assert len(packs) >= 1 and packs <= set(done[: done.index("add_packs")])
    assert records and records <= set(done[: done.index("add_commits")])


def test_only_vouched_records_of_this_vault_come_back(two, caplog):
    """A metadata pack may carry copies of anything; only what the owner vouches for is history.  The note of the
    record that is lost for good keeps its position."""
    device = two.device
    two.send(device, 1)
    data, stranger = device.data(2), Device(random.Random(2))
    tree = device.tree(data.ids)
    other = device.second()
    alien = vouch(stranger.owner.admin_seed, device.vault, other.id)
    forged = other.record(tree.ids[0], vouch=alien)
    elsewhere = stranger.record(tree.ids[0])
    genuine = other.record(tree.ids[0])
    copies = device.tree(data.ids, copies=[forged.raw, elsewhere.raw, genuine.raw])
    intake = two.open()
    for packed in (data, tree, copies):
        two.put(intake, device, packed)
    intake.close()
    first = two.accepted[0]
    next(path for path in two.top.rglob("commits/*/*") if path.name.endswith(first.hex())).unlink()
    assert [(at, id_) for at, _, id_ in two.listed()] == [(2, genuine.id)]
    assert caplog.text.count("was left alone") == 2


def test_twins_of_a_seal_that_is_under_way_wait_for_it(two, monkeypatch):
    """Its file is gone from `incoming` before its rows are in the index: nobody may take that for a pack unknown."""
    intake, data = two.open(), two.device.data(2)
    plan = data.plan
    intake.plan(plan.root, plan.raw)
    for number in range(len(plan.hashes)):
        intake.segments(plan.root, number, data.segments(number, 1))
    between, go_on = Event(), Event()
    real = Index.add_pack

    def add_pack(index, root, contents):
        between.set()
        assert go_on.wait(30)
        real(index, root, contents)

    monkeypatch.setattr(Index, "add_pack", add_pack)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(intake.seal, plan.root, two.device.id)
        assert between.wait(30)
        intake.segments(plan.root, 0, data.segments(0, 1))
        assert not intake.state(plan.root).sealed
        twin = pool.submit(intake.seal, plan.root, two.device.id)
        go_on.set()
        first.result(30)
        twin.result(30)
    assert intake.state(plan.root).sealed
    intake.close()
