"""The spool on disk: append-only segment files, a cursor before which everything is acknowledged, a lock for one process.

A segment is written by one client only: the next one begins its own, so that nothing is ever appended behind a torn line.
"""

import fcntl
import logging
import os
import threading
import weakref
from collections import deque
from pathlib import Path
from typing import Final

from headrace.client.errors import ClosedError, HeadraceError, SpoolError, SpoolFullError, SpoolHeldError
from headrace.client.spool import Taken, full_message
from headrace.client.spool_lines import count_lines, line_of, lines_in, text_of

logger = logging.getLogger(__name__)

LOCK: Final = "lock"
CURSOR: Final = "cursor"
SUFFIX: Final = ".events"
NUMBER_WIDTH: Final = 12
SEGMENTS_IN_BOUND: Final = 16
LARGEST_SEGMENT: Final = 4 * 1024 * 1024


class _Segment:
    """A file of lines. `readable` bytes of `written` may be taken; they differ while a flush to disk is under way."""

    def __init__(self, number: int, path: Path, written: int, readable: int, descriptor: int | None = None) -> None:
        self.number = number
        self.path = path
        self.written = written
        self.readable = readable
        self.descriptor = descriptor
        self.unflushed_events = 0

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class DiskSpool:
    """A `Spool` in a directory of its own. With `durable`, an append has returned when the event is on disk.

    Appends of threads that come together share a flush. Raises SpoolHeldError where another client has the directory,
    SpoolError where it cannot be used.
    """

    keeps = True

    def __init__(self, folder: Path, max_bytes: int, *, durable: bool = True) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._segment_bytes = max(1, min(LARGEST_SEGMENT, max_bytes // SEGMENTS_IN_BOUND))
        self._durable = durable
        self._lock = threading.Lock()
        self._flush_lock = threading.Lock()
        self._refusal: tuple[type[HeadraceError], str] | None = None
        self._segments: deque[_Segment] = deque()
        self._bytes = 0
        self.appended = 0
        self.acknowledged = 0
        self.damaged = 0
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._held = _hold(folder)
        except OSError as error:
            raise SpoolError(f"{folder} cannot be a spool ({error}): give a directory that can be written") from error
        try:
            self._recover()
        except OSError as error:
            os.close(self._held)
            raise SpoolError(f"the spool in {folder} cannot be read ({error}): mend or remove it") from error
        _let_go_when_forked(self)

    def append(self, event: bytes) -> None:
        line = line_of(event)
        with self._lock:
            self._check()
            segment = self._segment_for(len(line))
            self._write(segment, line)
            segment.unflushed_events += 1
            end = segment.written
            if not self._durable:
                self._make_readable(segment, end, 1)
        if self._durable:
            self._flush(segment, end)

    def take(self, most_events: int, most_bytes: int) -> Taken:
        while True:
            with self._lock:
                number, offset = self._cursor
                behind = [
                    each
                    for each in self._segments
                    if each.number >= number and each.readable > _from(each, offset, number)
                ]
                if not behind:
                    self._count_lost()
                    return Taken((), self._cursor)
                segment, start, end = behind[0], _from(behind[0], offset, number), behind[0].readable
            taken = self._read(segment, start, end, most_events, most_bytes)
            if taken.events:
                return taken
            self.ack(taken)  # nothing but damaged lines

    def ack(self, taken: Taken) -> None:
        try:
            _write_whole(self._folder / CURSOR, line_of(b"%d %d" % taken.until))
        except OSError as error:
            # A full disk must not keep files from being deleted. What a crash would send again is counted once all the same.
            logger.warning(
                "the spool's cursor could not be moved, which the next acknowledgement tries again: %s", error
            )
        with self._lock:
            self._cursor = taken.until
            self.acknowledged += len(taken.events)
            self._drop_acknowledged()

    def close(self) -> None:
        with self._flush_lock:
            with self._lock:
                failed = self._refusal is not None
                self._refusal = ClosedError, "the client is closed: make a new one"
            try:
                if not failed:
                    self._flush_all()  # for an append that is under way
            except SpoolError as error:
                logger.warning("closing the spool: %s", error)  # that append raises too
            with self._lock:
                for segment in self._segments:
                    segment.close()
                self._segments.clear()
                self._let_go()

    def _count_lost(self) -> None:
        """All is taken and acknowledged: what is not counted so was whole when it was written, and is damaged since."""
        lost = self.appended - self.acknowledged
        if lost:
            logger.warning("%d events in the spool in %s were damaged after they were written", lost, self._folder)
            self.damaged += lost
            self.acknowledged = self.appended

    def _let_go(self) -> None:
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def _check(self) -> None:
        if self._refusal is not None:
            kind, message = self._refusal
            raise kind(message)

    def _recover(self) -> None:
        """Take up what a former client left; `damaged` counts what is no whole event."""
        self._cursor = _read_cursor(self._folder / CURSOR)
        number, offset = self._cursor
        self._last_number = number
        for path in sorted(self._folder.glob("[0-9]" * NUMBER_WIDTH + SUFFIX)):
            segment = int(path.stem)
            self._last_number = max(self._last_number, segment)
            if segment < number:
                path.unlink()
                continue
            whole, damaged, end = count_lines(path, offset if segment == number else 0)
            self.damaged += damaged
            if whole == 0:
                path.unlink()
                continue
            size = path.stat().st_size
            self._segments.append(_Segment(segment, path, size, end))
            self._bytes += size
            self.appended += whole
        if self.damaged:
            logger.warning("%d pieces in the spool are no whole events: their writing was cut short", self.damaged)
        if self.appended:
            logger.info("%d events wait in the spool from before", self.appended)

    def _segment_for(self, size: int) -> _Segment:
        """The segment that a line of `size` bytes goes to. Raises SpoolFullError."""
        active = self._segments[-1] if self._segments and self._segments[-1].descriptor is not None else None
        if self._bytes + size > self._max_bytes and active and self._is_done(active):
            self._drop(active)
            active = None
        if self._bytes + size > self._max_bytes:
            raise SpoolFullError(full_message(str(self._folder), self._bytes, self._max_bytes))
        if active is None or active.written >= self._segment_bytes:
            active = self._new_segment()
        return active

    def _new_segment(self) -> _Segment:
        self._last_number += 1
        path = self._folder / f"{self._last_number:0{NUMBER_WIDTH}}{SUFFIX}"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise self._not_written(error) from error
        segment = _Segment(self._last_number, path, 0, 0, descriptor)
        self._segments.append(segment)
        return segment

    def _write(self, segment: _Segment, line: bytes) -> None:
        assert segment.descriptor is not None
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(segment.descriptor, rest) :]
        except OSError as error:
            self._take_back(segment)
            raise self._not_written(error) from error
        segment.written += len(line)
        self._bytes += len(line)

    def _take_back(self, segment: _Segment) -> None:
        """Cut off what was written of a line that could not be written whole."""
        assert segment.descriptor is not None
        try:
            os.ftruncate(segment.descriptor, segment.written)
        except OSError as worse:
            self._give_up(worse)

    def _give_up(self, error: OSError) -> None:
        what = f"the spool in {self._folder} takes no more since its disk failed ({error}): mend that, then make a new client"
        self._refusal = SpoolError, what

    def _flush(self, segment: _Segment, end: int) -> None:
        """Return when the segment is on disk up to `end`."""
        with self._flush_lock:
            if segment.readable < end:
                with self._lock:
                    self._check()
                self._flush_all()

    def _flush_all(self) -> None:
        """Flush what was written, the older file first: events become readable in the order in which they were appended.

        Call with the flush lock held. Raises SpoolError.
        """
        with self._lock:
            due = [(each, each.written, each.unflushed_events) for each in self._segments if each.unflushed_events]
        for segment, written, events in due:
            assert segment.descriptor is not None, "a segment stays open until all of it is acknowledged"
            try:
                os.fsync(segment.descriptor)
                if segment.readable == 0:
                    _flush_folder(self._folder)
            except OSError as error:
                self._give_up(error)  # what the system has kept of it is unknown, and a second flush would not tell
                raise self._not_written(error) from error
            with self._lock:
                self._make_readable(segment, written, events)

    def _make_readable(self, segment: _Segment, end: int, events: int) -> None:
        segment.readable = end
        segment.unflushed_events -= events
        self.appended += events

    def _read(self, segment: _Segment, start: int, end: int, most_events: int, most_bytes: int) -> Taken:
        try:
            with segment.path.open("rb") as file:
                file.seek(start)
                data = file.read(min(end - start, most_bytes))
                if b"\n" not in data:
                    data += file.readline()
        except OSError as error:
            raise SpoolError(f"{segment.path} cannot be read ({error}): mend its disk") from error
        events: list[bytes] = []
        until = 0
        for text, after in lines_in(data):
            if len(events) == most_events:
                break
            until = after
            if text is not None:
                events.append(text)
        return Taken(tuple(events), (segment.number, start + until))

    def _drop_acknowledged(self) -> None:
        while self._segments and self._is_done(self._segments[0]):
            if len(self._segments) == 1 and self._segments[0].descriptor is not None:
                return  # the next event goes there
            self._drop(self._segments[0])

    def _is_done(self, segment: _Segment) -> bool:
        """Whether all of it is acknowledged."""
        return (segment.number, segment.readable) <= self._cursor and not segment.unflushed_events

    def _drop(self, segment: _Segment) -> None:
        segment.close()
        segment.path.unlink(missing_ok=True)
        self._segments.remove(segment)
        self._bytes -= segment.written

    def _not_written(self, error: OSError) -> SpoolError:
        return SpoolError(
            f"the event could not be written to the spool in {self._folder} ({error}): make room, then send it again with the same event_id"
        )


def _from(segment: _Segment, offset: int, number: int) -> int:
    """Where in a segment the cursor stands."""
    return offset if segment.number == number else 0


def _hold(folder: Path) -> int:
    """Descriptor of the lock, which the system lets go with the process. Raises SpoolHeldError."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(descriptor, 20).decode(errors="replace") or "unknown"
        os.close(descriptor)
        raise SpoolHeldError(
            f"the spool in {folder} is held by another client (process {holder}): close that one, or give each its own directory"
        ) from error
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    return descriptor


def _let_go_when_forked(spool: DiskSpool) -> None:
    """A forked child shares the lock: without this, it would hold the directory for as long as it lives."""
    reference = weakref.ref(spool)

    def let_go() -> None:
        if (forked := reference()) is not None:
            forked._refusal = ClosedError, "the client was made before a fork: make one in each process"
            forked._let_go()

    os.register_at_fork(after_in_child=let_go)


def _read_cursor(path: Path) -> tuple[int, int]:
    """(segment, offset) before which everything is acknowledged; (0, 0) at first."""
    try:
        text = text_of(path.read_bytes().removesuffix(b"\n"))
    except FileNotFoundError:
        return 0, 0
    if text is None:
        logger.warning("the spool's cursor cannot be read: what waits is sent from the oldest file on, perhaps again")
        return 0, 0
    segment, offset = text.split()
    return int(segment), int(offset)


def _write_whole(path: Path, content: bytes) -> None:
    """Whoever opens the file after a crash finds the old content or the new."""
    draft = path.with_suffix(".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(draft, path)
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
