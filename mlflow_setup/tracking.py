"""The tracking store: its URI, checked before the sweep starts, and its experiment, created once."""

from __future__ import annotations

import logging
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from fine_core.text import check_database_uri, sqlite_uri, without_password

# A sweep's writer retries by itself. A request that MLflow repeats could create a run twice.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # printed for every run that ends, if there is a server


class TrackingError(ValueError):
    """The tracking store cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """An open tracking store with one experiment."""

    uri: str
    experiment_id: str
    client: object  # mlflow.MlflowClient; MLflow is imported only when a store is opened
    spool_folder: Path  # folder of pending writes


def resolve_tracking_uri(uri: str | None, data_folder: Path) -> str:
    """The given URI, else MLFLOW_TRACKING_URI, else SQLite in `data_folder`. Relative SQLite paths become absolute.

    Raises TrackingError for a URI that MLflow does not write to.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(data_folder / "mlflow.db")
    if uri.startswith("sqlite:///"):
        path, separator, query = check_database_uri(uri).removeprefix("sqlite:///").partition("?")
        return f"sqlite:///{Path(path).expanduser().absolute()}{separator}{query}"
    if "://" not in uri or uri.startswith("file:"):
        raise TrackingError(
            f"tracking URI {without_password(uri)!r} is a plain folder; use sqlite:///PATH.db, http(s)://HOST or a database"
        )
    return uri


def open_tracking(uri: str, experiment: str, data_folder: Path) -> Tracking:
    """Connect to the store, and create its schema and the experiment if they are missing.

    Call it in the sweep's own process and under a lock: processes that create a SQLite schema at the same time all fail.
    Raises TrackingError, in one line, if the store cannot be reached.
    """
    shown = without_password(uri)
    if not uri.startswith(("http://", "https://")):
        _check_database(uri, shown)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="mlflow")
    import mlflow
    from mlflow.exceptions import MlflowException

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # after the import, which resets it; it logs every new table
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks; the writer reports one line

    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            # Without a server artifacts would go to the current folder, so the location is set here.
            location = None if uri.startswith("http") else (data_folder / "mlflow-artifacts" / experiment).as_uri()
            experiment_id = client.create_experiment(experiment, artifact_location=location)
        else:
            experiment_id = found.experiment_id
            if found.lifecycle_stage == "deleted":
                raise TrackingError(
                    f"experiment {experiment!r} was deleted in {shown!r}; restore it: mlflow experiments restore"
                )
    except MlflowException as error:
        raise TrackingError(without_password(_refused(shown, error))) from error
    return Tracking(uri=uri, experiment_id=experiment_id, client=client, spool_folder=data_folder / "spool")


def _refused(shown: str, error: Exception) -> str:
    reason = str(error).splitlines()[0]
    if getattr(error, "error_code", None) in ("UNAUTHENTICATED", "PERMISSION_DENIED") or re.search(r"\b40[13]\b", reason):
        return (
            f"tracking server {shown!r} refuses the login ({reason}); set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    if shown.startswith("http"):
        return (
            f"tracking server {shown!r} does not answer ({reason}); start it with `mlflow server` or leave --tracking-uri out"
        )
    return f"tracking URI {shown!r} cannot be used: {reason}"


def _check_database(uri: str, shown: str) -> None:
    """Fail fast on a dead database: MLflow itself would retry for almost two minutes."""
    import sqlalchemy

    try:
        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///").partition("?")[0]).parent.mkdir(parents=True, exist_ok=True)
        names = table_names(uri)  # reads the file: connecting alone accepts any file as a database
    except (sqlalchemy.exc.SQLAlchemyError, OSError, ImportError) as error:
        reason = str(error).splitlines()[0]
        text = f"tracking URI {shown!r} cannot be opened ({reason}); use sqlite:///PATH.db or http://HOST"
        raise TrackingError(without_password(text)) from error
    if "studies" in names:
        raise TrackingError(f"tracking URI {shown!r} holds Optuna's studies; name another --tracking-uri or --study-storage")


def table_names(uri: str) -> list[str]:
    """The tables of a database; none where there is no database yet. Raises what SQLAlchemy and the driver raise."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri)
    try:
        return sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()


def equal_to(text: str) -> str:
    """The end of a search condition that a text fulfils. MLflow escapes no quotes: a text with both kinds is only alike."""
    if "'" not in text:
        return f"= '{text}'"
    if '"' not in text:
        return f'= "{text}"'
    return f"LIKE '{text.replace(chr(39), '_')}'"  # any character in the place of the quote
