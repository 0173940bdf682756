"""Watches sources and tells where something may have changed, or where that cannot be known.

Rules:
- What comes out are hints: the owner looks at the path to learn what is there.
- Linux has a reader of its own under watchdog's emitter; other systems use watchdog's stock observer.  Those do
  not tell when they lose events, so there the owner must scan now and then.
- The sink is called from the threads of the emitters and must be quick: while it runs, nothing is read.
- The generation rises before each batch.  Whoever arms, notes it, scans, and sees no newer notice for a
  path may call that path clean.
- A network file system is a gap from the start and is not watched at all.
- A source whose top is gone stays quiet after its gap until it is unwatched and watched again.

This is the only module that knows watchdog.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileAttribEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver, EventEmitter, EventQueue, ObservedWatch

from contbak.capture import mounts
from contbak.capture.follower import Follower
from contbak.capture.gaps import GONE, STOPPED, UNRELIABLE, Changed, Gap, Notice
from contbak.capture.walker import Prune
from contbak.core.errors import UsageError

__all__ = ["Changed", "Gap", "Notice", "Prune", "Watcher"]

# Without those for opening and reading: our own reading would come back as events.
_STOCK_EVENTS: list[type[FileSystemEvent]] = [
    FileCreatedEvent,
    FileModifiedEvent,
    FileAttribEvent,
    FileClosedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
]


class Watcher:
    """All watched sources of a device.

    `sink` is called with one notice after another.  `stock` uses watchdog's own observer, the only way off Linux.
    """

    def __init__(self, sink: Callable[[Notice], None], stock: bool = sys.platform != "linux") -> None:
        self._sink = sink
        self._stock = stock
        self._lock = threading.Lock()
        self._generation = 0
        self._started = False
        self._sources: dict[str, _Source] = {}

    def watch(self, source_name: str, top: bytes, prune: Prune) -> threading.Event:
        """Add a source; returns an event that is set when it is armed, or when it is known that it cannot be.

        `top` is absolute.  `prune(path relative to top, is a directory)` names what is neither watched nor reported;
        it is asked level by level and from another thread.  Raises UsageError for a name in use or a relative top.
        """
        if source_name in self._sources:
            raise UsageError(f"source {source_name} is watched already")
        if not os.path.isabs(top):
            raise UsageError(f"source {source_name} needs an absolute path")
        source = self._sources[source_name] = _Source(source_name, top, prune, self._deliver, self._stock)
        if self._started:
            source.start()
        return source.ready

    def unwatch(self, source_name: str) -> None:
        """Remove a source, if it is there; no notice of it comes afterwards.  Not to be called from the sink."""
        source = self._sources.pop(source_name, None)
        if source is not None:
            source.stop()

    def start(self) -> None:
        """Begin with the sources there are; later ones begin at once."""
        self._started = True
        for source in self._sources.values():
            source.start()

    def stop(self) -> None:
        """End all watching; no notice comes afterwards.  Not to be called from the sink."""
        for name in list(self._sources):
            self.unwatch(name)
        self._started = False

    def ready(self, source_name: str) -> threading.Event:
        """The event that `watch` returned.  Raises UsageError for an unknown source."""
        if source_name not in self._sources:
            raise UsageError(f"source {source_name} is not watched")
        return self._sources[source_name].ready

    def generation(self) -> int:
        """Number of batches so far; a notice that comes later belongs to a higher number."""
        return self._generation

    def watches(self) -> int:
        """How many directories are watched, as far as that is known."""
        return sum(source.watches() for source in list(self._sources.values()))

    def _deliver(self, notices: list[Notice]) -> None:
        with self._lock:
            self._generation += 1
        for notice in notices:
            self._sink(notice)


class _Source:
    """One source and the observer that watches it."""

    def __init__(
        self, name: str, top: bytes, prune: Prune, deliver: Callable[[list[Notice]], None], stock: bool
    ) -> None:
        self.name = name
        self.top = top.rstrip(b"/") or b"/"
        self.prune = prune
        self.deliver = deliver
        self.ready = threading.Event()
        self.follower: Follower | None = None
        self._stock = stock
        self._observer: BaseObserver | None = None

    def start(self) -> None:
        if self._observer is not None:
            return
        kind = mounts.fstype(self.top)
        if not mounts.tells_all(kind):
            self.refuse(UNRELIABLE.format(fstype=kind))
            return
        top = os.fsdecode(self.top)
        if self._stock:
            self._start_stock(top)
            return
        self._observer = BaseObserver(_Emitter, source=self)
        self._observer.schedule(FileSystemEventHandler(), top, recursive=True)
        self._observer.start()

    def stop(self) -> None:
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()
            observer.join()

    def watches(self) -> int:
        return 0 if self.follower is None else self.follower.watches()

    def refuse(self, reason: str) -> None:
        self.deliver([Gap(self.name, self.top, reason)])
        self.ready.set()

    def _start_stock(self, top: str) -> None:
        observer = Observer()
        try:
            observer.schedule(_StockHandler(self), top, recursive=True, event_filter=_STOCK_EVENTS)
            observer.start()
        except OSError as error:
            self.refuse(GONE if isinstance(error, FileNotFoundError) else STOPPED.format(error=error))
            return
        self._observer = observer
        self.ready.set()


class _Emitter(EventEmitter):
    """Runs a follower in watchdog's thread.  Notices go straight to the sink, not through watchdog's queue."""

    def __init__(self, event_queue: EventQueue, watch: ObservedWatch, *, source: _Source, **options: Any) -> None:
        super().__init__(event_queue, watch, **options)
        self._source = source
        self._follower = Follower(source.name, source.top, source.prune, self._deliver)
        self._ending = threading.Lock()
        self._closed = False

    def run(self) -> None:
        """Arm, then follow until stopped.  What breaks us is told before it ends the thread."""
        self._source.follower = self._follower
        try:
            self._follower.arm()
            self._source.ready.set()
            super().run()
        except Exception as error:
            self._source.refuse(STOPPED.format(error=error))
            raise
        finally:
            with self._ending:
                self._closed = True
                self._follower.close()

    def queue_events(self, timeout: float) -> None:
        """One turn of the follower; it waits until there is something, however long."""
        self._follower.turn()

    def on_thread_stop(self) -> None:
        """Called by whoever stops us."""
        with self._ending:
            if not self._closed:
                self._follower.wake()

    def _deliver(self, notices: list[Notice]) -> None:
        if self.should_keep_running():
            self._source.deliver(notices)


class _StockHandler(FileSystemEventHandler):
    """Turns events of watchdog's own observer into notices."""

    def __init__(self, source: _Source) -> None:
        self._source = source

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Both ends of a move are told of; a directory that comes to a place asks for a look below."""
        notices: list[Notice] = []
        came = event.is_directory and event.event_type in ("created", "moved")
        for end, appeared in ((event.src_path, came and not event.dest_path), (event.dest_path, came)):
            path = os.fsencode(end)
            if path and not self._left_out(path, event.is_directory):
                notices.append(Changed(self._source.name, path, appeared))
        if notices:
            self._source.deliver(notices)

    def _left_out(self, path: bytes, is_dir: bool) -> bool:
        relative = path.removeprefix(self._source.top).lstrip(b"/")
        levels = [at for at, char in enumerate(relative) if char == ord("/")]
        if any(self._source.prune(relative[:at], True) for at in levels):
            return True
        return bool(relative) and self._source.prune(relative, is_dir)
