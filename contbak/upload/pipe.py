"""A worker's end of the pipes to the main process: orders come in, reports go out."""

from __future__ import annotations

import os
import select

from contbak.upload import orders
from contbak.upload.orders import Order, Report

_READ = 1 << 16


class Pipe:
    """Messages over two file descriptors, blocking."""

    def __init__(self, source: int, sink: int) -> None:
        self._source = source
        self._sink = sink
        self._in = bytearray()
        self._out: list[bytes] = []

    def waiting(self) -> bool:
        """Whether an order (or the end, or a part of an order) can be read without waiting."""
        return bool(self._in) or bool(select.select([self._source], [], [], 0)[0])

    def receive(self) -> Order | None:
        """The next order; None at the end."""
        size = orders.LENGTH.size
        if not self._fill(size):
            return None
        end = size + orders.LENGTH.unpack_from(self._in)[0]
        if not self._fill(end):
            return None
        raw = bytes(self._in[size:end])
        del self._in[:end]
        return orders.parse_order(raw)

    def say(self, report: Report) -> None:
        """Queues a report; `flush` sends it."""
        self._out.append(orders.pack_report(report))

    def flush(self) -> None:
        """Sends what is queued.  Raises BrokenPipeError when the parent is gone."""
        rest = memoryview(b"".join(self._out))
        self._out.clear()
        while rest:
            rest = rest[os.write(self._sink, rest) :]

    def _fill(self, length: int) -> bool:
        """Reads until there are `length` bytes; False if the input ends before."""
        while len(self._in) < length:
            part = os.read(self._source, _READ)
            if not part:
                return False
            self._in += part
        return True
