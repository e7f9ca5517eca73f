"""A command under which processes die, and what it must leave behind."""

import subprocess
import uuid
from pathlib import Path

from tests.commands import PATIENCE_S, command, environment, runs, weights

FAULTS = Path(__file__).parent / "faults"


def run_with_faults(store: Path, faults: list[str], *options: str) -> tuple[int, str]:
    """The command with these faults, one after the other; its exit code and what it printed. All have happened."""
    folder = store.parent
    driver, done = folder / "driver", folder / f"done-{uuid.uuid4().hex}"
    variables = {"PYTHONPATH": str(FAULTS), "FAULTS": " ".join(faults), "FAULTS_DONE": str(done), "FAULT_DRIVER": str(driver)}
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(
            command(store, *options), env={**environment(), **variables}, stdout=output, stderr=subprocess.STDOUT
        )
        driver.write_text(str(process.pid))
        try:
            code = process.wait(timeout=PATIENCE_S)
        finally:
            process.kill()
    text = (folder / "output").read_text()
    happened = [done.with_name(f"{done.name}-{number}").exists() for number in range(len(faults))]
    assert all(happened), f"{happened}: not all faults came about\n{text}"
    return code, text


def check_whole(store: Path, expected: Path) -> None:
    """Every point once, every run finished, no step twice, the weights of an undisturbed sweep."""
    assert weights(store) == weights(expected)
    client, (parent,), children = runs(store)
    assert parent.info.status == "FINISHED" and {child.info.status for child in children} == {"FINISHED"}
    ids = [child.data.tags["trial_id"] for child in children]
    assert sorted(ids) == sorted(file.name for file in (store / "base").iterdir()) and len(set(ids)) == len(ids)
    for child in children:
        steps = sorted(metric.step for metric in client.get_metric_history(child.info.run_id, "train/loss"))
        assert steps == sorted(set(steps)) and steps[-1] == 12
    assert not [*(store / "tune").rglob("checkpoint_*"), *(store / "train").rglob("checkpoint_*")], "nothing is left behind"
