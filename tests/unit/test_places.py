"""Where things are kept: relative paths in a job, databases of two owners in one file, and passwords."""

import base64
import sqlite3
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import optuna
import pytest
from click.testing import CliRunner

from fine_core.text import without_password
from mlflow_setup.tracking import open_tracking
from sweeps.encode_latents import main as encode_latents
from sweeps.pick import main as pick
from sweeps.schedule_search import main as schedule_search
from sweeps.size_grid import main as size_grid

PASSWORD = "p/a:s#s w@ord'\""
COMMANDS = {"size_grid": size_grid, "schedule_search": schedule_search, "pick": pick, "encode_latents": encode_latents}


def refused(name: str, *arguments: str) -> str:
    """What a command says that is refused, in one line."""
    result = CliRunner().invoke(COMMANDS[name], list(arguments))
    assert result.exit_code == 2 and result.output.startswith("error: ") and result.output.count("\n") == 1, result.output
    return result.output


@pytest.fixture()
def job(monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")


@pytest.mark.parametrize(
    ("name", "option", "place"),
    [
        ("size_grid", "--storage-path", "runs"),
        ("size_grid", "--tracking-uri", "sqlite:///runs.db"),
        ("size_grid", "--dataset", "imagefolder:images"),
        ("size_grid", "--target", "parquet:../target"),
        ("schedule_search", "--study-storage", "sqlite:///study.db"),
        ("encode_latents", "--data", "imagefolder:images"),
        ("encode_latents", "--out", "latents"),
    ],
)
def test_a_relative_place_is_refused_in_a_job(job, tmp_path, name, option, place):
    given = {"--storage-path": str(tmp_path)} if name != "encode_latents" else {"--vae": "v", "--data": "digits", "--out": "/o"}
    arguments = [part for pair in (given | {option: place}).items() for part in pair]
    assert f"{option} {place} would lie in the job's temporary folder" in refused(name, *arguments)


def test_a_relative_place_is_refused_wherever_it_comes_from(job, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db")
    assert "MLFLOW_TRACKING_URI sqlite:///runs.db would lie" in refused("size_grid", "--storage-path", str(tmp_path))
    absolute = ["--storage-path", str(tmp_path), "--tracking-uri", f"sqlite:///{tmp_path}/x.db", "--dry-run"]
    assert CliRunner().invoke(size_grid, absolute).exit_code == 0


def test_one_database_for_runs_and_studies_is_refused_both_ways(tmp_path):
    studies, runs = tmp_path / "studies.db", tmp_path / "runs.db"
    optuna.create_study(storage=f"sqlite:///{studies}")
    before = studies.read_bytes()
    where = ["--storage-path", str(tmp_path / "store")]
    assert "holds Optuna's studies" in refused("size_grid", *where, "--tracking-uri", f"sqlite:///{studies}")
    assert studies.read_bytes() == before
    open_tracking(f"sqlite:///{runs}", "test", tmp_path)
    before = _tables(runs)
    assert "holds MLflow's runs" in refused("schedule_search", *where, "--study-storage", f"sqlite:///{runs}")
    both = f"sqlite:///{tmp_path}/new.db"
    assert "holds MLflow's runs" in refused("schedule_search", *where, "--study-storage", both, "--tracking-uri", both)
    assert _tables(runs) == before


def _tables(path) -> set[str]:
    with sqlite3.connect(path) as database:
        return {name for (name,) in database.execute("select name from sqlite_master")}


class Guarded(BaseHTTPRequestHandler):
    """A tracking server behind basic auth that lets nobody in."""

    asked: list[str] = []

    def do_GET(self):
        self.asked.append(self.headers.get("Authorization", ""))
        self.send_response(401)
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *arguments):
        pass


@pytest.fixture()
def guarded():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Guarded)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_server_that_refuses_the_login_is_named_without_the_password(guarded, tmp_path):
    said = refused("size_grid", "--storage-path", str(tmp_path), "--tracking-uri", f"http://user:secret@{guarded}")
    assert f"'http://***@{guarded}' refuses the login" in said and "MLFLOW_TRACKING_USERNAME" in said and "secret" not in said
    assert base64.b64encode(b"user:secret").decode() in Guarded.asked[-1], "the login in the address is used"


@pytest.mark.parametrize(
    ("name", "option", "uri"),
    [
        ("size_grid", "--tracking-uri", f"http://user:{PASSWORD}@127.0.0.1:1"),
        ("size_grid", "--tracking-uri", f"postgresql://user:{PASSWORD}@127.0.0.1:1/x"),
        ("size_grid", "--tracking-uri", f"ftp://user:{PASSWORD}@host"),
        ("size_grid", "--storage-path", f"s3://key:{PASSWORD}@bucket/runs"),
        ("size_grid", "--dataset", f"parquet:s3://key:{PASSWORD}@bucket/set"),
        ("schedule_search", "--study-storage", f"postgresql://user:{PASSWORD}@127.0.0.1:1/x"),
        ("pick", "--storage-path", f"s3://key:{PASSWORD}@bucket/runs"),
        ("pick", "--tracking-uri", f"http://user:{PASSWORD}@127.0.0.1:1"),
    ],
)
def test_no_command_shows_a_password(tmp_path, monkeypatch, name, option, uri):
    monkeypatch.chdir(tmp_path)
    arguments = [] if option == "--storage-path" else ["--storage-path", str(tmp_path / "store")]
    said = refused(name, *arguments, option, uri)
    assert not any(part in said for part in ("p/a", "s#s", "w@ord", "ord'")), said
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or b"s#s" not in file.read_bytes(), file


def test_a_password_of_any_characters_is_hidden():
    assert without_password(f"http://u:{PASSWORD}@host/x is away") == "http://***@host/x is away"
    assert without_password("sqlite:///a.db") == "sqlite:///a.db"
