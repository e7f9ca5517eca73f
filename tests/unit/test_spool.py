"""Writes on their way: kept in order over crashes and outages, nothing lost and nobody waiting; what is refused goes by."""

import threading
import time

import pytest

from mlflow_setup import writer as writer_module
from mlflow_setup.spool import Spool, Write
from mlflow_setup.writer import BackgroundWriter, one_line


class Refusal(Exception):
    pass


class Memory:
    """A store in memory that can be slow, away, or not to some writes' taste."""

    together = "log"

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.calls = 0
        self.pause_s = 0.0
        self.away = False
        self.refuses: set[int] = set()
        self.chokes_on: set[int] = set()

    def take(self, writes: list[Write]) -> None:
        self.calls += 1
        time.sleep(self.pause_s)
        if self.away:
            raise ConnectionError("http://me:secret@host is away\nfor a while")
        for write in writes:
            number = write.values["number"]
            if number in self.refuses:
                raise Refusal("no such run")
            if number in self.chokes_on:
                raise RuntimeError("it does not fit")
        self.taken += [write.values["number"] for write in writes]

    def is_refusal(self, error: Exception) -> bool:
        return isinstance(error, Refusal)

    def is_away(self, error: Exception) -> bool:
        return self.away


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Pauses and bounds of a hundredth."""
    for name in ("FIRST_PAUSE_S", "LONGEST_PAUSE_S", "LAST_PAUSE_S", "DRAIN_FAILING_S", "DRAIN_STUCK_S", "POLL_S"):
        monkeypatch.setattr(writer_module, name, getattr(writer_module, name) / 100)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "spool/run.jsonl"


def log(number: int, trial_id: str | None = "trial", action: str = "log") -> Write:
    return Write(action=action, trial_id=trial_id, time_ms=number, values={"number": number})


def numbers(spool: Spool) -> list[int]:
    return [write.values["number"] for write in spool.writes()]


def wait_until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_spool_opened_again_has_what_was_not_done_and_an_empty_one_leaves_no_file(path):
    spool = Spool(path)
    for number in range(5):
        spool.append(log(number))
    spool.done(2)
    spool.close()
    again = Spool(path)
    assert numbers(again) == [2, 3, 4] and again.writes()[0] == log(2)
    again.append(log(5))
    again.done(4)
    assert path.stat().st_size == 0, "it does not grow with the sweep"
    again.append(log(6))
    again.close()
    last = Spool(path)
    assert numbers(last) == [6]
    last.done(1)
    last.close()
    assert not path.exists()


@pytest.mark.parametrize("cut", range(1, 40, 6))
def test_a_line_that_a_crash_cut_off_is_no_write(path, cut):
    spool = Spool(path)
    for number in range(3):
        spool.append(log(number))
    spool.file.close()
    path.write_bytes(path.read_bytes()[:-cut])
    again = Spool(path)
    assert numbers(again) == ([0, 1, 2] if cut == 1 else [0, 1])  # the line's end alone is not missed
    again.append(log(3))
    again.file.close()
    assert numbers(Spool(path)) == [*numbers(again)], "what follows is a line of its own"


def test_a_write_keeps_its_numbers_and_is_told_alike_by_another_process(path):
    written = Write(
        action="log", trial_id=None, time_ms=7, values={"metrics": [["loss", 0.1 + 0.2, 3], ["nan", float("inf"), 3]]}
    )
    spool = Spool(path)
    spool.append(written)
    spool.file.close()
    assert Spool(path).writes() == [written]


def test_one_process_has_the_file_and_the_other_goes_on_in_memory(path, caplog):
    first = Spool(path)
    first.append(log(0))
    second = Spool(path)
    assert not second.is_durable and "another process runs this sweep" in caplog.text
    second.append(log(1))
    second.close()
    assert numbers(second) == [1] and numbers(first) == [0] and path.exists()


def test_a_full_disk_does_not_stop_a_sweep(path, caplog, monkeypatch):
    spool = Spool(path)

    class Full:
        def write(self, line: bytes) -> int:
            return 3

        def close(self) -> None: ...

    monkeypatch.setattr(spool, "file", Full())
    for number in range(3):
        spool.append(log(number))
    assert numbers(spool) == [0, 1, 2] and not spool.is_durable
    assert caplog.text.count("is the disk full?") == 1


def test_callers_do_not_wait_for_a_slow_store_and_order_is_kept(path):
    store = Memory()
    store.pause_s = 0.05
    writer = BackgroundWriter(Spool(path), store)
    started = time.monotonic()
    for number in range(1000):
        writer.spool.append(log(number, action="log" if number % 100 else "start"))
    assert time.monotonic() - started < 0.5
    writer.close()
    assert store.taken == list(range(1000)) and not path.exists()
    assert store.calls < 100, "metrics that wait are told together"


def test_many_threads_append_while_one_takes(path):
    store = Memory()
    writer = BackgroundWriter(Spool(path), store)
    threads = [
        threading.Thread(target=lambda t=t: [writer.spool.append(log(1000 * t + i)) for i in range(100)]) for t in range(32)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    assert sorted(store.taken) == sorted(1000 * t + i for t in range(32) for i in range(100))
    for t in range(32):
        assert [n % 1000 for n in store.taken if n // 1000 == t] == list(range(100))


def test_an_outage_is_said_in_two_lines_and_loses_nothing(path, caplog):
    store = Memory()
    writer = BackgroundWriter(Spool(path), store)
    writer.spool.append(log(0))
    wait_until(lambda: store.taken)
    store.away = True
    for number in range(1, 50):
        writer.spool.append(log(number))
    wait_until(lambda: store.calls > 8)
    assert len(writer.spool) == 49 and numbers(writer.spool)[0] == 1
    store.away = False
    writer.close()
    assert store.taken == list(range(50))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2 and "takes records again" in lines[1]
    assert "http://***@host is away" in lines[0] and str(path) in lines[0] and "secret" not in lines[0]


def test_what_is_left_is_told_first_by_the_next_writer(path, caplog):
    store = Memory()
    store.away = True
    writer = BackgroundWriter(Spool(path), store)
    for number in range(10):
        writer.spool.append(log(number))
    started = time.monotonic()
    writer.close()
    assert time.monotonic() - started < 5, "the wait for a store that is away is bounded"
    assert f"10 MLflow records are not written; they are kept in {path}; the same command completes them" in caplog.text
    writer.thread.join()
    store.away = False
    again = BackgroundWriter(Spool(path), store)
    again.spool.append(log(10))
    again.close()
    assert store.taken == list(range(11)) and not path.exists()


def test_a_store_that_hangs_is_waited_for_within_bounds(path):
    store = Memory()
    store.pause_s = 8.0
    writer = BackgroundWriter(Spool(path), store)
    writer.spool.append(log(0))
    started = time.monotonic()
    writer.close()
    assert time.monotonic() - started < 5 and len(path.read_text().splitlines()) == 1, "it is told again by the next run"


@pytest.mark.parametrize("kind", ["refuses", "chokes_on"])
def test_a_write_that_can_never_succeed_is_dropped_and_the_others_go_on(path, caplog, kind):
    store = Memory()
    store.pause_s = 0.02
    getattr(store, kind).update({3, 4, 20})
    writer = BackgroundWriter(Spool(path), store)
    for number in range(30):
        writer.spool.append(log(number))
    writer.close()
    assert sorted(store.taken) == sorted(set(range(30)) - {3, 4, 20}) and store.taken == sorted(store.taken)
    refusals = [record.getMessage() for record in caplog.records if "refuse" in record.getMessage()]
    assert len(refusals) == 2 and "the run of trial" in refusals[0] and "3 records in all" in refusals[1]


def test_an_outage_is_never_blamed_on_a_write(path):
    store = Memory()
    store.away, store.chokes_on = True, {0}
    writer = BackgroundWriter(Spool(path), store)
    writer.spool.append(log(0))
    wait_until(lambda: store.calls > 2 * writer_module.BLAMED_AFTER)
    assert numbers(writer.spool) == [0]
    store.away = False
    writer.close()
    assert not store.taken and not path.exists()


def test_an_error_is_one_line():
    assert one_line(ValueError("\nfirst\nsecond")) == "first"
    assert one_line(ValueError()) == "ValueError"
    wrapped = "Max retries exceeded with url: /api (Caused by NewConnectionError('[Errno 111] Connection refused'))"
    assert one_line(ValueError(wrapped)) == "[Errno 111] Connection refused"


def test_a_flipped_byte_costs_its_line_and_is_said(path, caplog):
    writes = [Write(action="log", trial_id="t", time_ms=1, values={"metrics": [["loss", float(n), n]]}) for n in range(3)]
    spool = Spool(path)
    for write in writes:
        spool.append(write)
    spool.file.close()
    content = path.read_bytes()
    path.write_bytes(content.replace(b"1.0, 1", b"9.0, 1"))
    again = Spool(path)
    assert [write.values["metrics"][0][2] for write in again.writes()] == [0, 2]
    assert "damaged lines" in caplog.text and caplog.text.count("\n") == 1


def test_lines_of_before_the_checksums_are_read(path):
    path.parent.mkdir(parents=True)
    path.write_text('{"number": 1, "action": "tag", "trial_id": "t", "time_ms": 1, "values": {"key": "a", "value": "b"}}\n')
    assert Spool(path).writes() == [Write(action="tag", trial_id="t", time_ms=1, values={"key": "a", "value": "b"})]
