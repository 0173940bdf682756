"""What agents make of an answer that refuses, whatever its body is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbak.core.problem import Problem, problem_of


def test_what_the_protocol_says_is_read():
    fields = {"type": "head", "title": "head", "status": 409, "detail": "another one", "head": None}
    assert problem_of(409, json.dumps(fields).encode()) == Problem(409, "head", "another one", fields)


NONSENSE = [b"", b"<html>", b"\xff", b"[]", b"1", b"null", b"{}", b'{"detail": "x"}', b"[" * 100_000]


@pytest.mark.parametrize("raw", NONSENSE, ids=range(len(NONSENSE)))
def test_anything_else_is_known_by_its_status(raw):
    assert problem_of(502, raw) == Problem(502, "status 502", "", {})


@given(st.binary(max_size=50))
def test_no_body_breaks_it(raw):
    assert problem_of(500, raw).status == 500
