"""The audit log on a real Postgres: what is edited, cut or forged is found; what was killed goes on."""

import json
import os
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from feature_repo.database import connect
from tests.training.dying_client import Killed
from training.rating.audit import GENESIS, AuditError, AuditLog, Entry

NOW = datetime(2024, 5, 6, 21, tzinfo=UTC)


@pytest.fixture
def log(dsn, tmp_path):
    with connect(dsn, autocommit=True) as connection:
        empty = AuditLog(connection=connection, head_file=tmp_path / "audit" / "head.json")
        tamper(empty, "DELETE FROM audit_log")
        yield empty


def entry(number=1, **more):
    facts = {"variant": "lstm", "version": 1, "from_": "None", "to": "Staging", "allocation": 0.1, "actor": "anna"}
    return Entry(
        **{
            "time": NOW + timedelta(microseconds=number),
            "market": "us",
            "reason": "asked for",
            "change": f"c{number}",
            **facts,
            **more,
        }
    )


def fill(log, num_rows):
    return [log.append(entry(number)) for number in range(1, num_rows + 1)]


def tamper(log, statement, *values):
    """What a superuser can do, whom no trigger stops."""
    with log.connection.transaction():
        log.connection.execute("SET LOCAL session_replication_role = replica")
        log.connection.execute(statement, values)


def head(log):
    return json.loads(log.head_file.read_text())


# ---- what it holds ---------------------------------------------------------------------------------------------------


def test_what_is_read_is_what_was_appended_and_every_row_follows_the_one_before(log):
    evidence = {"sharpe": 0.1 + 0.2, "gate": "StepM – ünïcode \u2028", "tiny": 5e-324, "minus": -0.0, "count": 3}
    said = entry(1, evidence=evidence, reason="quote ' and \\ and\nline", allocation=1 / 3)
    rows = [log.append(said), log.append(entry(2, market="eu")), log.append(entry(3, variant="gru"))]
    assert log.rows() == rows
    assert rows[0].entry == said
    assert [row.seq for row in rows] == [1, 2, 3]
    assert [row.previous for row in rows] == [GENESIS, rows[0].hash, rows[1].hash]
    assert all(row.hash == row.computed() for row in rows)
    assert log.rows("us") == [rows[0], rows[2]]
    assert log.rows("us", "gru") == [rows[2]]
    assert log.last("us", "lstm") == rows[0]
    assert log.last("us", "nonesuch") is None
    assert log.verify().ok


def test_the_hash_is_what_the_documentation_says(log):
    """SHA-256 over compact JSON with sorted keys; anybody can recompute it without this code."""
    import hashlib

    row = log.append(entry(1, evidence={"b": 1.5, "a": "x"}))
    text = (
        '{"actor":"anna","allocation":0.1,"change":"c1","evidence":{"a":"x","b":1.5},"from_":"None","market":"us",'
        f'"previous":"{"0" * 64}","reason":"asked for","seq":1,"time":"2024-05-06T21:00:00.000001+00:00",'
        '"to":"Staging","variant":"lstm","version":1}'
    )
    assert row.hash == hashlib.sha256(text.encode()).hexdigest()


def test_whatever_the_session_s_time_zone_the_hash_is_the_same(log, dsn):
    fill(log, 2)
    with connect(dsn, autocommit=True) as elsewhere:
        elsewhere.execute("SET timezone = 'Asia/Kathmandu'")
        assert replace(log, connection=elsewhere).verify().ok


def test_numbers_that_are_not_finite_are_kept_as_null(log):
    row = log.append(entry(1, evidence={"nan": float("nan"), "inf": float("inf")}, allocation=0))
    assert row.entry.evidence == {"nan": None, "inf": None}
    assert log.rows() == [row]
    assert log.verify().ok


def test_a_change_is_in_the_log_once(log):
    first = log.append(entry(1))
    assert log.append(entry(1, reason="again", time=NOW)) is None
    assert log.append(entry(1, variant="gru")) is not None
    assert log.rows("us", "lstm") == [first]


@pytest.mark.parametrize("text", ["", "  \n", "nul \0", "half a pair \ud800"])
def test_an_actor_or_reason_that_says_nothing_or_cannot_be_stored_is_refused(text):
    for what in ("actor", "reason"):
        with pytest.raises(AuditError, match=f"the {what} of a change must be readable text"):
            entry(1, **{what: text})


def test_a_time_without_its_zone_is_refused():
    with pytest.raises(AuditError, match="must know its zone"):
        entry(1, time=NOW.replace(tzinfo=None))


def test_a_connection_that_does_not_commit_by_itself_is_refused(dsn, tmp_path):
    with connect(dsn) as connection, pytest.raises(AuditError, match="must commit by itself"):
        AuditLog(connection=connection, head_file=tmp_path / "head.json")


@pytest.mark.parametrize(
    "statement",
    ["UPDATE audit_log SET reason = 'x'", "DELETE FROM audit_log", "TRUNCATE audit_log"],
    ids=["update", "delete", "truncate"],
)
def test_the_database_refuses_edits(log, statement):
    rows = fill(log, 2)
    with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
        log.connection.execute(statement)
    assert log.rows() == rows


def test_no_two_rows_follow_the_same_one_even_without_the_lock(log):
    first = log.append(entry(1))
    fork = replace(first, seq=2, entry=entry(2), hash="f" * 64)
    with pytest.raises(psycopg.errors.UniqueViolation):
        log._insert(fork)


# ---- what is found ---------------------------------------------------------------------------------------------------

EDITS = {
    "time": "time + interval '1 microsecond'",
    "market": "'eu'",
    "variant": "'gru'",
    "version": "version + 1",
    "from_stage": "'Archived'",
    "to_stage": "'Production'",
    "allocation": "allocation + 1e-16",
    "actor": "'bob'",
    "reason": "reason || ' '",
    "evidence": "'{\"sharpe\": 9}'",
    "change": "'other'",
    "previous": "repeat('0', 63) || '1'",
    "hash": "repeat('a', 64)",
    "seq": "seq + 100",
}


def test_an_edit_of_any_column_names_its_row(log):
    fill(log, 4)
    columns = log.connection.execute(
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'audit_log'"
    ).fetchall()
    assert {name for (name,) in columns} == set(EDITS)
    for column, value in EDITS.items():
        with log.connection.transaction(force_rollback=True):
            log.connection.execute("SET LOCAL session_replication_role = replica")
            log.connection.execute(f"UPDATE audit_log SET {column} = {value} WHERE seq = 2")
            report = log.verify()
            assert (report.ok, report.first_bad) == (False, 2), column
    assert log.verify().ok


def test_an_edit_with_its_hash_made_to_fit_breaks_the_next_row(log):
    rows = fill(log, 3)
    forged = replace(rows[1], entry=replace(rows[1].entry, actor="bob"))
    tamper(log, "UPDATE audit_log SET actor = 'bob', hash = %s WHERE seq = 2", forged.computed())
    report = log.verify()
    assert (report.first_bad, report.why) == (3, "row 3 doesn't follow the row before it")


def test_a_chain_rewritten_to_its_end_does_not_end_in_the_head(log):
    rows = fill(log, 2)
    forged = replace(rows[1], entry=replace(rows[1].entry, actor="bob"))
    tamper(log, "UPDATE audit_log SET actor = 'bob', hash = %s WHERE seq = 2", forged.computed())
    report = log.verify()
    assert (report.first_bad, "rewritten" in report.why) == (2, True)


def test_a_row_taken_from_the_middle_is_missed(log):
    fill(log, 4)
    tamper(log, "DELETE FROM audit_log WHERE seq = 2")
    assert (log.verify().first_bad, log.verify().why) == (2, "row 2 is gone: the next one is 3")


@pytest.mark.parametrize("left", [3, 1, 0])
def test_a_cut_tail_is_found_and_nothing_is_appended_to_what_is_left(log, left):
    fill(log, 4)
    tamper(log, "DELETE FROM audit_log WHERE seq > %s", left)
    report = log.verify()
    assert (report.num_rows, report.first_bad) == (left, left + 1)
    assert report.why == f"the tail was cut: rows {left + 1} to 4 are gone"
    with pytest.raises(AuditError, match=r"the tail was cut.*perennial audit verify"):
        log.append(entry(9))
    with pytest.raises(AuditError, match="the tail was cut"):
        log.check()
    assert len(log.rows()) == left


def test_without_the_head_a_cut_tail_would_not_be_found(log, tmp_path):
    """Why the head is kept outside: the chain alone is whole."""
    fill(log, 4)
    tamper(log, "DELETE FROM audit_log WHERE seq > 2")
    rows = log.rows()
    log.head_file.write_text(json.dumps({"count": 2, "hash": rows[-1].hash, "announced": ""}))
    assert log.verify().ok


def test_a_forged_row_that_follows_well_was_not_written_here(log):
    rows = fill(log, 2)
    forged = replace(rows[1], seq=3, entry=entry(3, actor="mallory"), previous=rows[1].hash)
    log._insert(replace(forged, hash=forged.computed()))
    report = log.verify()
    assert (report.first_bad, report.why) == (3, "rows 3 to 3 were not written here: the head names 2 rows")
    with pytest.raises(AuditError, match="not written here"):
        log.append(entry(4))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"count": 1}x', '{"rows": 1}'])
def test_a_head_that_cannot_be_read_is_no_head(log, content):
    fill(log, 1)
    log.head_file.write_text(content)
    assert not log.verify().ok
    with pytest.raises(AuditError, match="can't be read"):
        log.append(entry(2))


def test_a_lost_head_is_not_taken_for_a_new_log(log):
    fill(log, 2)
    log.head_file.unlink()
    assert (log.verify().first_bad, "the head names no rows" in log.verify().why) == (1, True)
    with pytest.raises(AuditError, match="head names no rows"):
        log.append(entry(3))


def test_a_person_can_accept_the_log_as_it_is_and_that_is_on_record(log):
    fill(log, 4)
    known = head(log)
    tamper(log, "DELETE FROM audit_log WHERE seq > 2")
    row = log.accept(by="anna", reason="restored the backup of Monday", now=NOW)
    assert (row.seq, row.entry.market, row.entry.actor) == (3, "*", "anna")
    assert json.loads(row.entry.evidence["head"]) == known
    assert row.entry.evidence["num_rows"] == 2
    assert log.verify().ok
    assert log.append(entry(9)).seq == 4
    assert log.rows("us", "lstm")[-1].seq == 4


def test_accepting_does_not_hide_an_edited_row(log):
    fill(log, 3)
    tamper(log, "UPDATE audit_log SET actor = 'bob' WHERE seq = 3")
    log.accept(by="anna", reason="looked into it", now=NOW)
    assert log.verify().first_bad == 3


# ---- crashes ---------------------------------------------------------------------------------------------------------


def kill_at(monkeypatch, log, point):
    """Die before or after one of the three writes of an append: announcing, inserting, moving the head on."""
    place, when, number = point
    owner, name = {"head": (Path, "replace"), "row": (AuditLog, "_insert")}[place]
    original, calls = getattr(owner, name), iter(range(10))

    def dying(*args):
        hit = next(calls) == number
        if hit and when == "before":
            raise Killed
        original(*args)
        if hit:
            raise Killed

    monkeypatch.setattr(owner, name, dying)
    with pytest.raises(Killed):
        log.append(entry(3))
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("point", "there"),
    [
        (("head", "before", 0), False),
        (("head", "after", 0), False),
        (("row", "before", 0), False),
        (("row", "after", 0), True),
        (("head", "before", 1), True),
        (("head", "after", 1), True),
    ],
)
def test_wherever_an_append_is_killed_the_log_is_sound_and_appending_again_adds_no_row_twice(
    log, monkeypatch, point, there
):
    fill(log, 2)
    kill_at(monkeypatch, log, point)
    assert len(log.rows()) == 2 + there
    assert log.verify().ok
    assert (log.append(entry(3)) is None) == there
    assert [row.entry.change for row in log.rows()] == ["c1", "c2", "c3"]
    assert head(log) == {"count": 3, "hash": log.rows()[-1].hash, "announced": ""}
    assert log.append(entry(4)).seq == 4
    assert log.verify().ok


def test_a_row_that_a_crash_left_behind_the_head_is_not_lost_unseen_after_the_next_look(log, monkeypatch):
    fill(log, 2)
    kill_at(monkeypatch, log, ("row", "after", 0))
    log.check()
    tamper(log, "DELETE FROM audit_log WHERE seq = 3")
    assert log.verify().first_bad == 3


def test_an_announced_row_that_never_came_may_be_another_one(log, monkeypatch):
    fill(log, 2)
    kill_at(monkeypatch, log, ("row", "before", 0))
    assert head(log)["announced"]
    assert log.append(entry(4)).seq == 3
    assert log.verify().ok


def test_a_half_written_head_never_shows(log, monkeypatch):
    fill(log, 1)
    before = log.head_file.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        log.append(entry(2))
    monkeypatch.undo()
    assert log.head_file.read_bytes() == before
    assert log.append(entry(2)).seq == 2


# ---- several writers -------------------------------------------------------------------------------------------------


def test_writers_at_once_make_one_chain(log, dsn):
    start, errors = threading.Barrier(4), []

    def write(writer):
        try:
            with connect(dsn, autocommit=True) as connection:
                own = replace(log, connection=connection)
                start.wait(30)
                for number in range(5):
                    own.append(entry(number, change=f"{writer}-{number}"))
                    own.append(entry(number, change=f"all-{number}"))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=[writer]) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(log.rows()) == 4 * 5 + 5
    assert log.verify().ok


def test_a_lock_ends_with_its_connection(log, dsn):
    holder = connect(dsn, autocommit=True)
    holding = replace(log, connection=holder).alone("stages of us.lstm")
    holding.__enter__()
    taken = "SELECT pg_try_advisory_lock(hashtextextended('stages of us.lstm', 0))"
    assert log.connection.execute(taken).fetchone() == (False,)
    holder.close()
    with log.alone("stages of us.lstm"):
        pass
