"""Claims against a simple model: one holder for each chunk, nobody is told too early, nobody waits for ever."""

import random

from hypothesis import given
from hypothesis import strategies as st

from contbak.upload.claims import Claims

A, B, C = b"a" * 32, b"b" * 32, b"c" * 32


def test_each_chunk_goes_to_one_worker():
    claims = Claims()
    assert claims.reserve(1, 10, [A, B, A]) == [True, True, False]
    assert claims.reserve(2, 20, [B, C, B]) == [False, True, False]
    assert claims.settled(10) and not claims.settled(20) and claims.settled(30)
    assert claims.stored([A]) == []
    assert claims.stored([B]) == [20]
    assert claims.stored([C]) == [] and len(claims) == 0
    assert claims.stored([A, B, C]) == []


def test_a_dead_worker_takes_its_claims_and_names_who_waited():
    claims = Claims()
    claims.reserve(1, 10, [A])
    claims.reserve(2, 20, [A, B])
    claims.reserve(2, 21, [B])
    claims.reserve(3, 30, [A, B])
    assert claims.void(1) == {20, 30}
    assert claims.reserve(2, 40, [A]) == [True], "the chunk is free again"
    assert claims.reserve(1, 50, [A, B]) == [False, False]
    assert claims.stored([A]) == [] and claims.stored([B]) == [50] and claims.settled(20)


def test_a_forgotten_job_waits_for_nothing():
    claims = Claims()
    claims.reserve(1, 10, [A])
    claims.reserve(2, 20, [A])
    claims.forget(20)
    assert claims.settled(20) and claims.void(1) == set()


@given(st.integers(0, 10**9))
def test_against_a_model(seed):
    chance = random.Random(seed)
    claims, holder, waits, stored = Claims(), {}, {}, set()
    for job in range(30):
        worker, ids = chance.randrange(3), [bytes([chance.randrange(12)]) for _ in range(chance.randrange(5))]
        fresh = {id for id in ids if id not in holder}
        mine = claims.reserve(worker, job, ids)
        assert {id for id, is_mine in zip(ids, mine, strict=True) if is_mine} == fresh and sum(mine) == len(fresh)
        holder |= dict.fromkeys(fresh, worker)
        waits[job] = {id for id in ids if holder[id] != worker}
        if chance.random() < 0.5:
            done = {id for id in holder if chance.random() < 0.4}
            over = claims.stored(done)
            for id in done:
                del holder[id]
            stored |= done
            before = {job for job, needs in waits.items() if needs}
            for needs in waits.values():
                needs -= done
            assert sorted(over) == sorted(job for job in before if not waits[job])
        if chance.random() < 0.1:
            dead = chance.randrange(3)
            lost = {id for id, worker in holder.items() if worker == dead}
            hit = {job for job, needs in waits.items() if needs & lost}
            assert claims.void(dead) == hit
            holder = {id: worker for id, worker in holder.items() if worker != dead}
            for job in hit:
                waits[job] = set()
        assert len(claims) == len(holder)
        assert all(claims.settled(job) == (not needs) for job, needs in waits.items())
