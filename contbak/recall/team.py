"""Processes that write the shares of a restore: forked from this one, so that they start at once and have the keys.

    parent  S share -> child         child  A account -> parent
            P places                        L ids: where are they?
                                            E class, text: the error that ended it

Rules:
- A child reads packs by itself and writes files; it asks the parent alone where chunks lie, because an index that
  was inherited must not be used (decision 0009).
- The parent never waits for a child that may be waiting for it: it sends what a child takes and reads meanwhile.
- A child ends when its parent goes away, at the end of a share, and removes what it has begun when interrupted.
- A child that dies takes its shares along: the account of them is the sentence that says so.

It does not know what a share is made of.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import struct
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn

from contbak.core import errors
from contbak.core.codec import decode, encode
from contbak.core.errors import ContbakError, FormatError
from contbak.core.messages import Place as Spot
from contbak.core.names import ID_LEN
from contbak.recall.share import Account, Share

GIVEN_MAX = 2
"""Shares that a child has at most: the one it is at and the next."""
HOMES_MAX = 4096
"""Packs of which it is remembered who read them last."""
GC = (50_000, 20, 20)
"""Entries by the ten thousand hold no cycles, and looking for some costs a twentieth of the time."""
MESSAGE_MAX = 256 << 20
_HEAD = struct.Struct("<IB")
_SHARE, _PLACES, _ACCOUNT, _LOCATE, _ERROR = b"SPALE"
_READ = 1 << 16

Locate = Callable[[Sequence[bytes]], list[tuple[Spot, ...]]]
Work = Callable[["Parent"], Callable[[Share], Account]]
"""Called in the child, with its parent: what does the shares."""
Take = Callable[[Share, Account], None]


def possible() -> bool:
    """Whether this system can do it."""
    return hasattr(os, "fork")


class Team:
    """A few children.  Close it, or use it in a `with`: leaving by an exception interrupts them.

    work     makes, in a child, what does shares
    locate   answers for the children
    take     gets every account
    """

    def __init__(self, count: int, work: Work, locate: Locate, take: Take) -> None:
        self._locate = locate
        self._take = take
        self._children: list[_Child] = []
        self._homes: OrderedDict[bytes, _Child] = OrderedDict()
        try:
            for _ in range(count):
                self._children.append(_fork(work, [child.wire for child in self._children]))
        except OSError as error:
            self.close(interrupt=True)
            raise ContbakError(f"no process could be started: {error.strerror}") from None

    def __enter__(self) -> Team:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(interrupt=kind is not None)

    def give(self, share: Share) -> None:
        """Hands a share to a child as soon as one has room.  Raises what a child or `take` raised."""
        self._turn(0.0)
        while (child := self._free(share)) is None:
            self._turn(None)
        self._homes[share.pack] = child
        self._homes.move_to_end(share.pack)
        if len(self._homes) > HOMES_MAX:
            self._homes.popitem(last=False)
        child.given.append(share)
        child.send(_SHARE, encode(share))

    def drain(self) -> None:
        """Returns when every share is accounted for."""
        while any(child.given for child in self._children):
            self._turn(None)

    def close(self, interrupt: bool = False) -> None:
        """Ends the children: those that are at work are interrupted, or may end what they are at."""
        for child in self._children:
            child.end(interrupt)
        self._children.clear()

    def _free(self, share: Share) -> _Child | None:
        """Who read that pack last, and may have its frames still; or else who has the least to do.

        Nothing is put behind a file that takes long, nor that behind anything.
        """
        limit = 1 if share.large else GIVEN_MAX
        fit = [child for child in self._children if len(child.given) < limit and not child.long]
        home = self._homes.get(share.pack)
        return home if home in fit else min(fit, key=lambda child: len(child.given), default=None)

    def _turn(self, wait: float | None) -> None:
        """Sends what can be sent and takes what has come, or waits until there is something."""
        sending = [child for child in self._children if child.out]
        ready, free, _ = select.select(self._children, sending, [], wait)
        for child in free:
            child.push()
        for child in ready:
            for kind, raw in child.receive():
                self._heard(child, kind, raw)

    def _heard(self, child: _Child, kind: int, raw: bytes) -> None:
        if kind == _LOCATE:
            ids = [raw[at : at + ID_LEN] for at in range(0, len(raw), ID_LEN)]
            child.send(_PLACES, encode(self._locate(ids)))
        elif kind == _ACCOUNT:
            self._take(child.given.pop(0), decode(raw, Account, "an account"))
        else:
            name, text = decode(raw, tuple[str, str], "an error")
            raise getattr(errors, name, RuntimeError)(text)


class _Child:
    """A child as its parent holds it.  `given`: the shares that it has; `out`: bytes that it has not taken yet."""

    def __init__(self, pid: int, wire: socket.socket) -> None:
        self.wire = wire
        self.given: list[Share] = []
        self.out = bytearray()
        self._pid = pid
        self._in = bytearray()
        wire.setblocking(False)

    @property
    def long(self) -> bool:
        """Whether it is at a file that takes long."""
        return any(share.large for share in self.given)

    def fileno(self) -> int:
        return self.wire.fileno()

    def send(self, kind: int, raw: bytes) -> None:
        self.out += _HEAD.pack(len(raw), kind) + raw
        self.push()

    def push(self) -> None:
        """Sends what the child takes."""
        with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):  # its end is seen when it is read
            while self.out:
                del self.out[: self.wire.send(self.out)]

    def receive(self) -> list[tuple[int, bytes]]:
        """The messages that are whole.  Raises ContbakError if the child is gone."""
        with suppress(BlockingIOError, ConnectionResetError):
            while raw := self.wire.recv(_READ):
                self._in += raw
                if len(raw) < _READ:
                    return self._messages()
            raise ContbakError("a process that writes files has died; run it again to go on")
        return self._messages()

    def _messages(self) -> list[tuple[int, bytes]]:
        out, at = [], 0
        while len(self._in) >= at + _HEAD.size:
            length, kind = _HEAD.unpack_from(self._in, at)
            if len(self._in) < at + _HEAD.size + length:
                break
            at += _HEAD.size
            out.append((kind, bytes(self._in[at : at + length])))
            at += length
        del self._in[:at]
        return out

    def end(self, interrupt: bool) -> None:
        self.wire.close()
        if interrupt:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGINT)
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


class Parent:
    """The parent as a child holds it."""

    def __init__(self, wire: socket.socket) -> None:
        self._wire = wire
        self._waiting: list[bytes] = []

    def locate(self, ids: Sequence[bytes]) -> list[tuple[Spot, ...]]:
        """Where the parent says the chunks lie."""
        self.send(_LOCATE, b"".join(ids))
        while True:
            kind, raw = self._receive()
            if kind == _PLACES:
                return decode(raw, list[tuple[Spot, ...]], "the places of chunks")
            self._waiting.append(raw)

    def share(self) -> Share:
        """The next share.  Raises EOFError when there is none and never will be."""
        raw = self._waiting.pop(0) if self._waiting else self._receive()[1]
        return decode(raw, Share, "a share")

    def send(self, kind: int, raw: bytes) -> None:
        self._wire.sendall(_HEAD.pack(len(raw), kind) + raw)

    def _receive(self) -> tuple[int, bytes]:
        length, kind = _HEAD.unpack(self._exactly(_HEAD.size))
        if length > MESSAGE_MAX:
            raise FormatError("a message has an impossible length")
        return kind, self._exactly(length)

    def _exactly(self, length: int) -> bytes:
        out = bytearray()
        while len(out) < length:
            raw = self._wire.recv(length - len(out))
            if not raw:
                raise EOFError
            out += raw
        return bytes(out)


def _fork(work: Work, others: Sequence[socket.socket]) -> _Child:
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid:
        theirs.close()
        return _Child(pid, ours)
    _be_child(work, theirs, [ours, *others])


def _be_child(work: Work, wire: socket.socket, others: Sequence[socket.socket]) -> NoReturn:
    """Does shares until there are no more.  Never returns: what the stack above would do is the parent's to do."""
    try:
        gc.freeze()
        gc.set_threshold(*GC)
        signal.signal(signal.SIGINT, _interrupted)
        for other in others:  # or nobody would see the parent's end
            other.close()
        _serve(work, Parent(wire))
    finally:
        os._exit(0)


def _interrupted(*_: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough, and what follows cleans up
    raise KeyboardInterrupt


def _serve(work: Work, parent: Parent) -> None:
    try:
        do = work(parent)
        while True:
            parent.send(_ACCOUNT, encode(do(parent.share())))
    except (EOFError, ConnectionError):
        return
    except ContbakError as error:
        ours = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in vars(errors))
        said = (ours, str(error))
    except Exception as error:  # it crosses to the parent, who tells
        said = ("", f"{type(error).__name__}: {error}")
    with suppress(ConnectionError):
        parent.send(_ERROR, encode(said))
