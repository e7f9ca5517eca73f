"""Where a sweep's files lie that are not in the storage path: reports, and databases, which need a local disk."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from trainables.storage.store import Store

DEFAULT_DATA_FOLDER = Path("~/fine-sweeps-data")
# SQLite's locks do not work on all of these, and a database that two hosts write is damaged.
NETWORK_FILE_SYSTEMS = (
    "nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "afs", "9p",
    "orangefs", "pvfs2", "panfs", "wekafs", "vastfs", "efs", "davfs",
)  # fmt: skip


def reports_folder(store: Store) -> Path:
    """Beside the results, or at home where these are in an object store."""
    return Path(store.root) if store.is_local else DEFAULT_DATA_FOLDER.expanduser()


def databases_folder(store: Store) -> Path:
    """Beside the results, at home, or in /var/tmp: the first of these on a local disk."""
    own = Path("/var/tmp") / f"fine-sweeps-data-{os.getuid()}"
    wanted = (reports_folder(store), DEFAULT_DATA_FOLDER.expanduser())
    wanted = (reports_folder(store), DEFAULT_DATA_FOLDER.expanduser())
    return next((folder for folder in wanted if not is_network(folder)), own)


def is_network(path: Path) -> bool:
    """Whether a path, which need not exist yet, lies on a file system that other hosts may share."""
    path = Path(os.path.realpath(path))
    mounts = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    kind = next((mounts[folder] for folder in (path, *path.parents) if folder in mounts), "")
    return kind in NETWORK_FILE_SYSTEMS or kind.startswith("fuse.")


def why_elsewhere(store: Store, databases: Path) -> str | None:
    """What is said of databases that do not lie beside the results; None where they do."""
    if store.is_local and databases == Path(store.root):
        return None
    where = "on a network file system" if store.is_local else "in an object store"
    return f"databases are in {databases}, as the storage path is {where}; several hosts need --tracking-uri of a server"
