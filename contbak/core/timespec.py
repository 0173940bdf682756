"""What `--at` accepts: text to the moment or snapshot that it means.

    latest  latest~2                      the newest snapshot, the one two before it
    1f3a  1f3a77c0                        a snapshot id, or its first 4 or more hex digits
    2026-07-30  2026-07-30 18:00  2026-07-30T18:00:05.5+02:00    ISO 8601, local zone if it names none
    now  today  yesterday  monday         days in words; a weekday is the last one before today
    yesterday 18:00  monday noon  6pm     a time of such a day; alone, the last such time that has passed
    3d  90m  2 hours ago  1w 2d           so long before now: s m h d w y, or the words; mo or month
    @1785427200                           seconds since 1970

Rules: a text means the last nanosecond of what it names: a date the end of that day, 18:00 the end of that
minute.  Days, weeks, months and years are counted on the local calendar, so `1 day ago` is the same time on
yesterday's clock; hours, minutes and seconds are elapsed time.  A clock time that comes twice (end of summer
time) means its second coming; one that is skipped counts on from the moment of the skip.  Hex comes first:
`100d` and `20260730` are snapshot ids, `100 days` and `2026-07-30` are times.

Not here: the clock (now and zone are arguments), and which snapshot is meant (who asks has the list).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo

from contbak.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Latest:
    """The newest snapshot, or the one `back` (0 or more) before it."""

    back: int


@dataclass(frozen=True, slots=True)
class Prefix:
    """The snapshot whose id begins with `hex` (4 to 64 lower-case digits)."""

    hex: str


@dataclass(frozen=True, slots=True)
class Moment:
    """A time: `ns` since 1970 UTC.  What happened at `ns` is included."""

    ns: int


When = Latest | Prefix | Moment

_EXAMPLES = "latest, latest~2, 1f3a77c0, 2026-07-30, '2026-07-30 18:00', 'yesterday 18:00', '2 hours ago' or 3d"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = 1_000_000_000
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_ELAPSED = {"second": 1, "minute": 60, "hour": 3600}
_UNITS = {
    alias: unit
    for unit, aliases in {
        "second": "s sec secs second seconds",
        "minute": "m min mins minute minutes",
        "hour": "h hr hrs hour hours",
        "day": "d day days",
        "week": "w week weeks",
        "month": "mo month months",
        "year": "y yr yrs year years",
    }.items()
    for alias in aliases.split()
}

_LATEST = re.compile(r"latest(?:~(\d{1,9}))?")
_HEX = re.compile(r"[0-9a-f]{4,64}")
_UNIX = re.compile(r"@(-?\d{1,11})")
_DATE = re.compile(r"(\d{4}-\d{2}-\d{2})(?:[t ]\s*(.+))?")
_ZONE = re.compile(r"(.*?)\s*(z|[+-]\d{2}(?::?\d{2})?)")
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2})(?:[.,](\d{1,9}))?)?\s*(am|pm)?|(\d{1,2})\s*(am|pm)")
_SPAN = re.compile(r"(\d{1,9}|an?)\s*([a-z]+)\s*(?:,|and\b)?\s*")


def parse(text: str, now_ns: int, zone: tzinfo) -> When:
    """What `text` means at `now_ns` (ns since 1970) for somebody whose clock shows `zone`.

    Raises UsageError, with examples, for a text that means nothing.
    """
    try:
        when = _meaning(" ".join(text.casefold().split()), now_ns, zone)
    except (ValueError, OverflowError):  # 30 February, 25:00, a year that no calendar has
        when = None
    if when is None:
        raise UsageError(f"{text!r} is no time or snapshot; write for example {_EXAMPLES}")
    return when


def _meaning(text: str, now_ns: int, zone: tzinfo) -> When | None:
    if latest := _LATEST.fullmatch(text):
        return Latest(int(latest[1] or 0))
    if _HEX.fullmatch(text):
        return Prefix(text)
    if unix := _UNIX.fullmatch(text):
        return Moment(int(unix[1]) * _SECOND + _SECOND - 1)
    if text == "now":
        return Moment(now_ns)
    if iso := _DATE.fullmatch(text):
        return _on_day(date.fromisoformat(iso[1]), iso[2], zone)
    if (ago := _ago(text, now_ns, zone)) is not None:
        return ago
    return _in_words(text, now_ns, zone)


def _on_day(day: date, clock: str | None, zone: tzinfo) -> Moment | None:
    """The end of `day`, or of the time `clock` on it."""
    if clock is None:
        # Where midnight comes twice, the day ends before the first; where it is skipped, at the skip.
        return Moment(_ns(datetime.combine(day + timedelta(days=1), time(), zone)) - 1)
    if (zoned := _ZONE.fullmatch(clock)) is not None:
        clock, zone = zoned[1], _offset(zoned[2])
    if (found := _clock(clock)) is None:
        return None
    at, into_second, length = found
    start = datetime.combine(day, at, zone)
    # Ambiguous times: fold=1 is the later reading.  Skipped times: fold=0 is.
    return Moment(max(_ns(start), _ns(start.replace(fold=1))) + into_second + length - 1)


def _offset(text: str) -> tzinfo:
    """The zone that `z`, `+02`, `+0200` or `+02:00` names."""
    if text == "z":
        return UTC
    hours, minutes = int(text[1:3]), int(text[-2:]) if len(text) > 3 else 0
    if minutes > 59:
        raise ValueError(f"no offset has {minutes} minutes")
    offset = timedelta(hours=hours, minutes=minutes)
    return timezone(-offset if text[0] == "-" else offset)


def _clock(text: str) -> tuple[time, int, int] | None:
    """A time of day: to the second, ns into that second, and how many ns the text names."""
    text = {"noon": "12:00", "midnight": "00:00"}.get(text, text)
    if (match := _CLOCK.fullmatch(text)) is None:
        return None
    hour, minute, second = int(match[1] or match[6]), int(match[2] or 0), int(match[3] or 0)
    half = match[5] or match[7]
    if half:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if half == "pm" else 0)
    fraction = match[4] or ""
    length = _SECOND // 10 ** len(fraction) if match[3] else 60 * _SECOND
    return time(hour, minute, second), int(fraction.ljust(9, "0")), length


def _ago(text: str, now_ns: int, zone: tzinfo) -> Moment | None:
    """`3d`, `2 hours ago`, `1 week and 2 days`; None if `text` is nothing of that kind."""
    text = text.removesuffix(" ago")
    amounts: dict[str, int] = {}
    place = 0
    while place < len(text):
        match = _SPAN.match(text, place)
        if match is None or match[2] not in _UNITS:
            return None
        unit = _UNITS[match[2]]
        amounts[unit] = amounts.get(unit, 0) + (1 if match[1].startswith("a") else int(match[1]))
        place = match.end()
    return _before(amounts, now_ns, zone) if amounts else None


def _before(amounts: dict[str, int], now_ns: int, zone: tzinfo) -> Moment:
    """`amounts` (unit to count) before now: calendar units on the local calendar first, then elapsed time."""
    ns = now_ns
    months = amounts.get("month", 0) + 12 * amounts.get("year", 0)
    days = amounts.get("day", 0) + 7 * amounts.get("week", 0)
    if months or days:
        local = _local(now_ns, zone)
        earlier = _months_before(local.date(), months) - timedelta(days=days)
        wall = datetime.combine(earlier, local.time().replace(fold=0), zone)
        ns = max(_ns(wall), _ns(wall.replace(fold=1))) + now_ns % 1000
    return _checked(ns - sum(amounts.get(unit, 0) * seconds for unit, seconds in _ELAPSED.items()) * _SECOND)


def _months_before(day: date, months: int) -> date:
    """The same day of an earlier month, or that month's last day if it is shorter."""
    month = day.year * 12 + day.month - 1 - months
    first = date(month // 12, month % 12 + 1, 1)
    last = first.replace(day=28) + timedelta(days=4)
    last -= timedelta(days=last.day)
    return first.replace(day=min(day.day, last.day))


def _in_words(text: str, now_ns: int, zone: tzinfo) -> Moment | None:
    """`yesterday`, `last monday 18:00`, `9:30`."""
    today = _local(now_ns, zone).date()
    word, _, clock = text.removeprefix("last ").partition(" ")
    if word == "today":
        return _on_day(today, clock or None, zone)
    if word == "yesterday":
        return _on_day(today - timedelta(days=1), clock or None, zone)
    for number, name in enumerate(_WEEKDAYS):
        if word in (name, name[:3]):
            back = (today.weekday() - number - 1) % 7 + 1
            return _on_day(today - timedelta(days=back), clock or None, zone)
    if _clock(text) is None:
        return None
    moment = _on_day(today, text, zone)
    if moment is not None and moment.ns > now_ns:
        moment = _on_day(today - timedelta(days=1), text, zone)
    return moment


def _local(ns: int, zone: tzinfo) -> datetime:
    """`ns` on the clock of `zone`, to the microsecond below."""
    return (_EPOCH + timedelta(microseconds=ns // 1000)).astimezone(zone)


def _ns(moment: datetime) -> int:
    """ns since 1970 of a datetime that has a zone."""
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def _checked(ns: int) -> Moment:
    """`ns` as a Moment if a calendar can show it; raises OverflowError if not."""
    _local(ns, UTC)
    return Moment(ns)
