"""Where lost data belongs in a file: every byte that comes back is at its place, whatever is lost."""

from hypothesis import given
from hypothesis import strategies as st

from contbak.core.errors import FormatError
from contbak.recall import content
from contbak.recall.content import _file_ranges, _inverse, _Part, _Survey

lengths = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def bytes_of(ranges):
    return [at for offset, length in ranges for at in range(offset, offset + length)]


def is_tidy(ranges):
    """Sorted, none empty, none touching the next."""
    ends = [offset + length for offset, length in ranges]
    return all(length > 0 for _, length in ranges) and all(
        end < offset for end, (offset, _) in zip(ends, ranges[1:], strict=False)
    )


@given(lengths, st.lists(st.integers(0, 9), min_size=12, max_size=12), st.data())
def test_ranges_of_the_data_become_ranges_of_the_file(sizes, gaps, data):
    extents, at = [], 0
    for size, gap in zip(sizes, gaps, strict=False):
        extents.append((at + gap, size))
        at += gap + size
    total = sum(sizes)
    place = bytes_of(extents)  # byte of the data to byte of the file
    lost = sorted(data.draw(st.sets(st.integers(0, total - 1))))
    ranges = []
    for byte in lost:
        content._grow(ranges, byte, 1)
    assert bytes_of(ranges) == lost and is_tidy(ranges)
    found = list(_file_ranges(extents, ranges))
    assert bytes_of(found) == [place[byte] for byte in lost] and is_tidy(found)
    kept = list(_inverse(ranges, total))
    assert sorted(bytes_of(kept) + lost) == list(range(total))


@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from(["sound", "lost", "unknown"])), max_size=12))
def test_what_is_sound_has_a_sure_place(parts):
    survey = _Survey()
    for number, (length, state) in enumerate(parts):
        survey.add(_Part(bytes([number]) * 32 if state == "sound" else None, None if state == "unknown" else length))
    total = sum(length for length, _ in parts)
    lost = survey.lost(total)
    assert is_tidy(lost)
    kept = [byte for start, length in _inverse(lost, total) for byte in range(start, start + length)]
    sound = [id_[0] for id_ in survey.sound()]
    starts = [sum(length for length, _ in parts[:number]) for number in range(len(parts))]
    assert kept == bytes_of([(starts[number], parts[number][0]) for number in sound])
    unknown = [number for number, (_, state) in enumerate(parts) if state == "unknown"]
    for number, (_, state) in enumerate(parts):  # nothing is given up that has a sure place
        if state == "sound" and not (unknown and unknown[0] < number < unknown[-1]):
            assert number in sound


def test_lengths_that_cannot_add_up():
    for parts, total in (([5, 5], 9), ([5, 5], 11), ([5, None, 5], 9)):
        survey = _Survey()
        for length in parts:
            survey.add(_Part(None if length is None else bytes(32), length))
        try:
            survey.lost(total)
        except FormatError:
            continue
        raise AssertionError((parts, total))
