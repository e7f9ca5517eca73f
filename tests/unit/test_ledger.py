"""The ledger counts each kept file once: what is shared with its method, one seed of each point."""

from sweeps.planning.names import MethodNames
from sweeps.results.ledger import ledger_rows, ledger_totals
from sweeps.results.points import PointResult
from tests.searches import record_of
from tests.tiny import tiny_bank, tiny_base, tiny_learngene, tiny_score, tiny_transfer
from trainables.storage.record import Record, StoredFile


class FakeStore:
    """Answers with the bytes that a kind of job is said to have left."""

    FILES = {
        "learngene": ("learngene.safetensors", 1000),
        "bank": ("bank.parquet", 300),
        "base": ("model.safetensors", 50),
        "transfer": ("delta.safetensors", 7),
    }

    def record(self, job) -> Record:
        name, size = self.FILES[job.kind]
        return record_of(job, {"train_s": 2.0, "sampling_s": 3.0}, files={name: StoredFile(bytes=size, sha256="")})

    def result(self, job) -> PointResult:
        score, model_record = tiny_score(job), self.record(job)
        records = {"model_record": model_record, "score_record": record_of(score, {})}
        return PointResult(job=job, score=score, metrics=model_record.metrics, **records)


def test_shared_files_count_once_and_seeds_are_repeats():
    store = FakeStore()
    jobs = [tiny_base("fine", seed=s) for s in (0, 1)]
    jobs += [tiny_transfer("diff-tuning", seed=s) for s in (0, 1)] + [tiny_transfer("full")]
    rows = ledger_rows([store.result(job) for job in jobs], store, MethodNames(jobs))
    totals = ledger_totals(rows)
    assert totals["fine"] == {"initialize": {"bytes": 1000, "seconds": 2.0}, "serve": {"bytes": 50, "seconds": 2.0}}
    assert totals["diff-tuning linear retention weight 0.5 source ratio 0.25"]["initialize"] == {"bytes": 300, "seconds": 3.0}
    assert totals["diff-tuning linear retention weight 0.5 source ratio 0.25"]["serve"] == {"bytes": 7, "seconds": 2.0}
    assert totals["full"]["initialize"]["bytes"] == 0
    items = {row["item"] for row in rows}
    assert {tiny_learngene().label, tiny_bank(tiny_base("fine")).label, "L2-D16, delta to fine"} <= items
