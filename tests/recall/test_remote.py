"""Reading from a real relay process, over a unix socket and over TLS, and from relays that misbehave."""

import http.client
import http.server
import json
import os
import shutil
import socket
import threading
from dataclasses import replace

import pytest

from contbak.core import codec, invite
from contbak.core.errors import FormatError, NotFound, PeerError, Refused, Unreachable, UsageError, WrongKey
from contbak.core.invite import Address
from contbak.core.messages import Challenge, Login, Session, session_proof
from contbak.core.timespec import Latest
from contbak.recall import files as files_module
from contbak.recall import remote
from contbak.recall.check import check
from contbak.recall.directory import DirectoryPlace
from contbak.recall.opening import admit, open_relay, open_text, open_vault
from contbak.recall.remote import RelayPlace
from contbak.recall.restore import Wanted, restore
from tests.relay.peer import Relay
from tests.trees import make_tree, same_tree
from tests.vaults import VaultMaker

SEED = b"s" * 32


@pytest.fixture(params=[False, True], ids=["socket", "tls"])
def relay(request, tmp_path):
    relay = Relay(tmp_path / "r", tls=request.param)
    yield relay
    relay.stop()


def taken_over(relay, tmp_path, seed):
    """A vault of two commits, the relay that took its store over, and its address."""
    maker = VaultMaker(tmp_path / "made", seed)
    relay.start()
    paired = invite.parse(relay.invite())
    admit(paired, maker.keys, SEED, "reader")
    relay.stop()
    home = tmp_path / "home"
    make_tree(home, seed, files=20)
    device = maker.device()
    device.commit("home", home)
    (home / "new").write_bytes(os.urandom(300_000))
    device.commit("home", home)
    own = relay.stores[0] / maker.vault.hex()
    for part in ("packs", "commits", "order"):
        shutil.copytree(maker.top / part, own / part, dirs_exist_ok=True)
    relay.start()
    address = paired.address
    return maker, home, address if address.socket else replace(address, port=relay.port)


@pytest.mark.slow
def test_a_relay_and_its_directory_give_the_same(relay, tmp_path, seed, monkeypatch):
    maker, home, address = taken_over(relay, tmp_path, seed)
    with open_vault(open_relay(address, maker.keys, SEED), maker.keys) as vault:
        with open_vault(DirectoryPlace(maker.store), maker.keys) as other:
            assert vault.history.snapshots and vault.problems == []
            assert [one.id for one in vault.history.snapshots] == [one.id for one in other.history.snapshots]
            assert [(i.pack, i.length, i.metadata) for i in vault.place.packs()] == [
                (i.pack, i.length, i.metadata) for i in other.place.packs()
            ]
        snapshot = vault.history.choose(Latest(0))[0]
        report = restore(vault.chunks, [Wanted(snapshot.roots, b"", b"")], os.fsencode(tmp_path / "out"))
        assert report.complete
        with monkeypatch.context() as patch:  # written by several processes, each with a connection of its own
            patch.setattr(files_module, "SHARE_FILES", 2)
            again = restore(vault.chunks, [Wanted(snapshot.roots, b"", b"")], os.fsencode(tmp_path / "team"))
        assert again == report
        checked = check(vault.history, read_data=1.0)
        assert checked.problems == [] and checked.read_packs == checked.packs > 0 and checked.chunks > 0
        (pack, *_) = vault.place.packs()
        with pytest.raises(FormatError):
            vault.place.read(pack.pack, pack.length - 3, 10)
        with pytest.raises(NotFound):
            vault.place.read(bytes(32), 0, 10)
        assert vault.place.locate([bytes(32)]) == [()]
    assert same_tree(home, tmp_path / "out") == [] == same_tree(home, tmp_path / "team")


@pytest.mark.slow
def test_a_relay_that_comes_back_is_waited_for(relay, tmp_path, seed):
    maker, _, address = taken_over(relay, tmp_path, seed)
    place = RelayPlace(address, maker.vault, SEED)
    assert place.vault().vault == maker.vault
    relay.kill()
    if not relay.tls:  # with TLS it would come back on another port
        relay.start()
        assert place.vault().vault == maker.vault  # dead connection, token of the relay before: both renewed
        relay.kill()
    with pytest.raises(Unreachable):
        place.vault()
    place.close()


@pytest.mark.slow
def test_who_may_read(relay, tmp_path, seed):
    maker, _, address = taken_over(relay, tmp_path, seed)
    with pytest.raises(Refused):
        RelayPlace(address, maker.vault, b"x" * 32).vault()
    with pytest.raises(WrongKey):
        RelayPlace(replace(address, relay=bytes(32)), maker.vault, SEED).vault()
    if relay.tls:
        with pytest.raises(WrongKey, match="certificate"):
            RelayPlace(replace(address, cert=bytes(32)), maker.vault, SEED).vault()
    line = relay.invite()
    place, kept = open_text(line, maker.keys, b"n" * 32, "new machine")
    assert place.vault().vault == maker.vault and kept is not None
    place.close()
    with pytest.raises(Refused):  # it is good once
        open_text(line, maker.keys, b"m" * 32, "another machine")


def test_what_is_no_place(tmp_path, seed):
    keys = VaultMaker(tmp_path / "store", seed).keys
    with pytest.raises(UsageError):
        open_text("s3://bucket", keys, SEED, "x")
    with pytest.raises(UsageError):
        open_text("contbak://host/nonsense", keys, SEED, "x")
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(NotFound):
            open_text(str(path), keys, SEED, "x")
    with pytest.raises(WrongKey):
        open_text(f"file://{tmp_path}/store", VaultMaker(tmp_path / "other", seed + 1).keys, SEED, "x")
    place, address = open_text(str(tmp_path / "store"), keys, SEED, "x")
    assert address is None and place.label == str(tmp_path / "store")
    place.close()


class Liar:
    """An HTTP server on a unix socket that answers by a table: path to replies, the last one again and again.

    A reply may be made from the request by a function.
    """

    def __init__(self, path, replies):
        self.seen = []
        liar = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def address_string(self):
                return "socket"

            def answer(self):
                asked = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                liar.seen.append(self.path)
                known = replies.get(self.path.partition("?")[0], [(404, b"{}")])
                status, body = known.pop(0) if len(known) > 1 else known[0]
                body = body(asked) if callable(body) else body
                if status == 0:
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = answer

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            address_family = 1
            daemon_threads = True

            def server_bind(self):
                self.socket.bind(self.server_address)

        self.server = Server(str(path), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


RELAY_SEED = b"r" * 32


def opened(raw):
    """The session that the relay opens for the login in `raw`."""
    login = codec.decode(raw, Login, "login")
    return codec.encode(Session(b"t" * 32, 60, None, (), 0, 0, session_proof(RELAY_SEED, login)))


RECORDED = opened(codec.encode(Login(b"v" * 16, b"d" * 32, b"n" * 32, b"another time".ljust(32), b"")))
"""What the relay said to another login that had the same nonce."""


@pytest.fixture
def lying(tmp_path, monkeypatch, seed):
    """Makes a place at a server with these replies, logged in already."""
    monkeypatch.setattr(remote, "PAUSES_S", (0.0, 0.0))
    keys = VaultMaker(tmp_path / "store", seed).keys
    public = remote.public_of(RELAY_SEED)
    nonce = b"n" * 32
    made = []

    def make(**replies):
        table = {f"/v1/{name}": answers for name, answers in replies.items()}
        table.setdefault("/v1/challenge", [(200, codec.encode(Challenge(nonce, public)))])
        table.setdefault("/v1/session", [(200, opened)])
        liar = Liar(tmp_path / f"liar{len(made)}", table)
        place = RelayPlace(Address(public, socket=str(tmp_path / f"liar{len(made)}")), keys.writer.vault, SEED)
        made.append((liar, place))
        return place, liar

    yield make
    for liar, place in made:
        place.close()
        liar.close()


PAGE = (200, codec.encode(((7, 1, 0, b"record"),)))


def test_passing_failures_are_tried_again(lying):
    place, liar = lying(commits=[(500, b"oops"), (0, b""), PAGE, (200, codec.encode(()))])
    assert [listed.position for listed in place.commits()] == [7]
    place, liar = lying(commits=[(503, b"{}")])
    with pytest.raises(Unreachable):
        list(place.commits())
    assert liar.seen.count("/v1/commits?after=0") == 3


def test_connections_that_died_while_idle_cost_one_retry(lying):
    """As after a suspend: all of them are dead, and there are more than retries."""
    place, _ = lying(commits=[PAGE, (200, codec.encode(()))], vault=[(200, b"")])
    assert len(list(place.commits())) == 1
    dead = [socket.socketpair()[0] for _ in range(6)]
    for one in dead:
        connection = http.client.HTTPConnection("localhost")
        connection.sock = one
        place._wire._idle.append(connection)
    with pytest.raises(FormatError):  # an answer at last, if only an empty one
        place.vault()


def test_a_token_that_ran_out_is_renewed_once(lying):
    place, liar = lying(commits=[(401, b"{}"), PAGE, (200, codec.encode(()))])
    assert len(list(place.commits())) == 1 and liar.seen.count("/v1/session") == 2
    place, liar = lying(commits=[(401, b"{}")])
    with pytest.raises(Refused):
        list(place.commits())


@pytest.mark.parametrize(
    ("replies", "error"),
    [
        ({"commits": [(200, b"garbage")]}, FormatError),
        ({"commits": [PAGE]}, PeerError),  # the same page for ever
        ({"commits": [(400, json.dumps({"type": "malformed", "detail": "no"}).encode())]}, UsageError),
        ({"commits": [(409, b"not json")]}, PeerError),
        ({"commits": [(403, json.dumps({"type": "denied", "detail": "disabled"}).encode())]}, Refused),
        ({"challenge": [(200, codec.encode(Challenge(b"n" * 32, b"k" * 32)))]}, WrongKey),
        ({"session": [(200, codec.encode(Session(b"t" * 32, 60, None, (), 0, 0, b"p" * 64)))]}, WrongKey),
        ({"session": [(200, RECORDED)]}, WrongKey),
    ],
)
def test_a_relay_that_lies_is_an_error_of_ours(lying, replies, error):
    place, _ = lying(**replies)
    with pytest.raises(error):
        list(place.commits())


def test_wrong_answers_to_locate_and_read(lying):
    place, _ = lying(locate=[(200, codec.encode(()))])
    with pytest.raises(PeerError):
        place.locate([bytes(32)])
    place, _ = lying(**{f"packs/{bytes(32).hex()}": [(206, b"short")]})
    with pytest.raises(FormatError):
        place.read(bytes(32), 0, 10)
