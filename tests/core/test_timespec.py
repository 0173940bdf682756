"""core.timespec: every form that the module promises, on calendars with awkward days."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbak.core.errors import UsageError
from contbak.core.timespec import Latest, Moment, Prefix, parse

BERLIN = ZoneInfo("Europe/Berlin")
ZONES = st.sampled_from(
    [
        UTC,
        *map(
            ZoneInfo,
            (
                "Europe/Berlin",
                "America/Sao_Paulo",  # summer time began at midnight, so that midnight did not exist
                "America/Havana",  # it ends at 01:00, so that midnight comes twice
                "Australia/Lord_Howe",  # half an hour of summer time
                "Asia/Kathmandu",  # +05:45
                "Pacific/Kiritimati",  # +14
                "Pacific/Apia",  # had no 30 December 2011
            ),
        ),
    ]
)
SECOND = 1_000_000_000


def ns(*fields, zone=BERLIN, fold=0):
    moment = datetime(*fields, tzinfo=zone, fold=fold)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


NOW = ns(2026, 7, 30, 9, 12, 34) + 567  # a Thursday


def moment(text, now=NOW, zone=BERLIN):
    when = parse(text, now, zone)
    assert isinstance(when, Moment), when
    return when.ns


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("latest", Latest(0)),
        (" Latest~2 ", Latest(2)),
        ("latest~0", Latest(0)),
        ("1f3a", Prefix("1f3a")),
        ("DEADBEEF", Prefix("deadbeef")),
        ("ab" * 32, Prefix("ab" * 32)),
        ("2026", Prefix("2026")),
        ("20260730", Prefix("20260730")),
        ("100d", Prefix("100d")),
    ],
)
def test_snapshots(text, when):
    assert parse(text, NOW, BERLIN) == when


@pytest.mark.parametrize(
    ("text", "next_ns"),
    [
        ("2026-07-29", ns(2026, 7, 30)),
        ("2026-07-29 18:00", ns(2026, 7, 29, 18, 1)),
        ("2026-07-29T18:00", ns(2026, 7, 29, 18, 1)),
        ("2026-07-29t18:00:05", ns(2026, 7, 29, 18, 0, 6)),
        ("2026-07-29 18:00:05.25", ns(2026, 7, 29, 18, 0, 5, 260_000)),
        ("2026-07-29 18:00:05,123456789", ns(2026, 7, 29, 18, 0, 5, 123_456) + 790),
        ("2026-07-29T18:00Z", ns(2026, 7, 29, 18, 1, zone=UTC)),
        ("2026-07-29T18:00:05.5+05:45", ns(2026, 7, 29, 12, 15, 5, 600_000, zone=UTC)),
        ("2026-07-29 18:00 -0230", ns(2026, 7, 29, 20, 31, zone=UTC)),
        ("2026-07-29 18:00+02", ns(2026, 7, 29, 16, 1, zone=UTC)),
        ("2026-07-29 6pm", ns(2026, 7, 29, 18, 1)),
        ("1969-12-31T23:59:59Z", 0),
        ("today", ns(2026, 7, 31)),
        ("Yesterday", ns(2026, 7, 30)),
        ("yesterday 18:00", ns(2026, 7, 29, 18, 1)),
        ("yesterday  6:30 PM", ns(2026, 7, 29, 18, 31)),
        ("yesterday noon", ns(2026, 7, 29, 12, 1)),
        ("yesterday 12am", ns(2026, 7, 29, 0, 1)),
        ("today 9:30", ns(2026, 7, 30, 9, 31)),
        ("monday", ns(2026, 7, 28)),
        ("last friday 08:15:30", ns(2026, 7, 24, 8, 15, 31)),
        ("thu", ns(2026, 7, 24)),
        ("wed midnight", ns(2026, 7, 29, 0, 1)),
        ("9:00", ns(2026, 7, 30, 9, 1)),
        ("18:00", ns(2026, 7, 29, 18, 1)),
        ("@1785427200", 1_785_427_201 * SECOND),
    ],
)
def test_the_last_nanosecond_of_what_is_named(text, next_ns):
    assert moment(text) == next_ns - 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", NOW),
        ("0s", NOW),
        ("90 seconds ago", NOW - 90 * SECOND),
        ("90m", NOW - 5400 * SECOND),
        ("an hour ago", NOW - 3600 * SECOND),
        ("2 hours ago", NOW - 7200 * SECOND),
        ("1h30m", NOW - 5400 * SECOND),
        ("3d", ns(2026, 7, 27, 9, 12, 34) + 567),
        ("100 days", ns(2026, 4, 21, 9, 12, 34) + 567),
        ("1 week, 2 days and 1 hour ago", ns(2026, 7, 21, 8, 12, 34) + 567),
        ("a month ago", ns(2026, 6, 30, 9, 12, 34) + 567),
        ("5 months", ns(2026, 2, 28, 9, 12, 34) + 567),
        ("7mo", ns(2025, 12, 30, 9, 12, 34) + 567),
        ("2y", ns(2024, 7, 30, 9, 12, 34) + 567),
    ],
)
def test_so_long_ago(text, expected):
    assert moment(text) == expected


MEANINGLESS = """
    latest~ | latest~-1 | newest | 1f | 1f3 | g123 | 2026-02-30 | 2026-13-01 | 2026-7-3 | 2026-07-30T | 2026-07-30 25:00
    2026-07-30 18 | 18:60 | 13pm | 0am | 2026-07-30 18:00+25:00 | 2026-07-30 18:00+02:60 | 2026-07-30+02:00 | 3 | 3 x
    ago | d | 99999 years ago | 999999999 hours ago | 999999999 weeks ago | yesterday yesterday | last | tomorrow
    a | -3d | monday tuesday | in 2 hours | @ | @99999999999999 | 9999-12-31 | 18:00Z
"""


@pytest.mark.parametrize(
    "text",
    ["", "f" * 65, "\u00b2:00", "2026-07-30\0"]
    + [text.strip() for line in MEANINGLESS.split("\n") for text in line.split("|") if text.strip()],
)
def test_what_means_nothing_is_answered_with_examples(text):
    with pytest.raises(UsageError, match=r"no time or snapshot; write for example latest, .* or 3d$") as caught:
        parse(text, NOW, BERLIN)
    assert caught.value.exit_code == 2


@given(st.text(alphabet=st.sampled_from("0123456789abdfhlmnortwyz:.~@+- "), max_size=24) | st.text(max_size=12))
def test_any_text_has_a_meaning_or_a_usage_error(text):
    try:
        when = parse(text, NOW, BERLIN)
    except UsageError:
        return
    assert isinstance(when, Latest | Prefix | Moment)


@given(ZONES, st.dates(date(1990, 1, 1), date(2035, 1, 1)))
def test_a_date_ends_with_its_day(zone, day):
    end = moment(day.isoformat(), zone=zone)
    last, following = (datetime.fromtimestamp((end + plus) // SECOND, zone).date() for plus in (0, 1))
    assert following > day
    assert last <= day  # less only where the calendar has no such day


@given(ZONES, st.datetimes(datetime(1990, 1, 1), datetime(2035, 1, 1)))
def test_what_isoformat_writes_is_read_back(zone, naive):
    aware = naive.replace(tzinfo=zone)
    exact = (aware - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
    step = 1000 if aware.microsecond else SECOND
    assert moment(aware.astimezone(UTC).isoformat(), zone=BERLIN) == exact + step - 1


@given(ZONES, st.datetimes(datetime(1990, 1, 1), datetime(2035, 1, 1)), st.integers(0, 400))
def test_days_ago_keeps_the_time_on_the_clock(zone, naive, days):
    now = ns(*naive.timetuple()[:6], zone=zone)
    today = datetime.fromtimestamp(now // SECOND, zone)
    then = datetime.fromtimestamp(moment(f"{days} days ago", now, zone) // SECOND, zone)
    wanted = (today - timedelta(days=days)).replace(fold=0)
    exists = wanted.astimezone(UTC).astimezone(zone).replace(tzinfo=None) == wanted.replace(tzinfo=None)
    if days and exists:
        assert then.replace(tzinfo=None) == wanted.replace(tzinfo=None)


def test_an_hour_that_comes_twice_means_the_second():
    assert moment("2026-10-25 02:30") == ns(2026, 10, 25, 2, 30, fold=1) + 60 * SECOND - 1


def test_an_hour_that_is_skipped_counts_on_from_the_skip():
    assert moment("2026-03-29 02:30") == ns(2026, 3, 29, 3, 30) + 60 * SECOND - 1


def test_elapsed_hours_ignore_the_change_of_the_clock():
    now = ns(2026, 3, 29, 3, 30)
    assert moment("1 hour ago", now) == ns(2026, 3, 29, 1, 30)
    assert moment("1 day ago", now) == ns(2026, 3, 28, 3, 30)


def test_a_day_ago_where_that_hour_comes_twice_or_is_skipped():
    assert moment("1 day ago", ns(2026, 10, 26, 2, 30)) == ns(2026, 10, 25, 2, 30, fold=1)
    assert moment("1 day ago", ns(2026, 3, 30, 2, 30)) == ns(2026, 3, 29, 3, 30)


def test_today_is_where_the_user_is():
    assert moment("yesterday", ns(2026, 7, 31, 0, 30)) == ns(2026, 7, 31) - 1


def test_a_midnight_that_is_skipped_or_comes_twice():
    sao_paulo, havana = ZoneInfo("America/Sao_Paulo"), ZoneInfo("America/Havana")
    assert moment("2018-11-03", zone=sao_paulo) == ns(2018, 11, 4, 3, zone=UTC) - 1
    assert moment("2025-11-01", zone=havana) == ns(2025, 11, 2, 4, zone=UTC) - 1
