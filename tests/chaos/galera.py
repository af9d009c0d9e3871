"""Three real Galera nodes on loopback that may be killed, stopped, cut off, and come back by themselves.

What is needed besides MariaDB's server: Debian's `galera-4` (the provider library), `rsync`, and the scripts `wsrep_sst_*` of
its package `mariadb-server`, which `make .galera` unpacks into the virtual environment without installing that package.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pymysql

from ai_worker import embedded
from tests.chaos.arena import DATABASE, PASSWORD, Arena, program_of
from tests.chaos.ledger import wait_until
from tests.servers import free_port

_LIBRARIES = ("/usr/lib/galera/libgalera_smm.so", "/usr/lib64/galera-4/libgalera_smm.so", "/usr/lib/libgalera_smm.so")
_SCRIPTS = Path(sys.prefix, "tools", "wsrep")
_NOT_NOW = {0, 1040, 1047, 1053, 1205, 1213, 1290, 2003, 2006, 2013, 2014}
_RECOVERED = re.compile(r"WSREP: Recovered position:? *([0-9a-f-]{36}:-?\d+)")

SYNCED = "Synced"

# How soon the others give up a node that is silent: no write is taken meanwhile. Their defaults (5 s, 15 s, 7.5 s, 1 s) mind
# networks that are slow; docs/several-hosts.md advises these for nodes that are near one another.
GIVE_UP = (
    "evs.keepalive_period=PT0.5S",
    "evs.suspect_timeout=PT2S",
    "evs.inactive_timeout=PT4S",
    "evs.install_timeout=PT4S",
)


def missing() -> str | None:
    """What is not here that a cluster needs, for a test to be skipped by; None where all is."""
    if _library() is None:
        return "no Galera library: `make chaos-galera` installs it"
    if shutil.which("rsync") is None:
        return "no rsync: `make chaos-galera` installs it"
    if shutil.which("wsrep_sst_rsync", path=_path()) is None:
        return "no wsrep_sst_rsync: `make chaos-galera` fetches it"
    return None


def _library() -> str | None:
    return next((path for path in _LIBRARIES if Path(path).exists()), None)


def _path() -> str:
    return os.pathsep.join([str(_SCRIPTS), os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def _own_scripts(folder: Path) -> None:
    """A copy of the scripts of which rsync's daemon stays who it is: root's would turn into nobody, who may not enter here."""
    found = shutil.which("wsrep_sst_rsync", path=_path())
    assert found is not None, missing()
    scripts = folder / "scripts"
    scripts.mkdir()
    for name in ("wsrep_sst_rsync", "wsrep_sst_common"):
        text = Path(found).with_name(name).read_text()
        if os.geteuid() == 0:
            text = text.replace("\nread only = no\n", "\nread only = no\nuid = 0\ngid = 0\n")
        (scripts / name).write_text(text)
        (scripts / name).chmod(0o700)


class Node(Arena):
    """One server of a cluster. `kill`, `stop`, `frozen` as of any arena; `start` joins the others, `start_first` founds."""

    def __init__(self, number: int, folder: Path) -> None:
        super().__init__("mariadb", embedded.Server(folder / f"node{number}", program_of("mariadb")), free_port())
        self.number = number
        self.scripts = folder / "scripts"
        self.group_port, self._ist_port, self._sst_port = free_port(), free_port(), free_port()
        self.peers: list[Node] = []
        self.is_up = False
        """Whether it was started and not killed since; it may still be on its way."""

    @property
    def name(self) -> str:
        return f"node{self.number}"

    def _cluster_options(self, position: str | None) -> list[str]:
        addresses = ",".join(f"127.0.0.1:{node.group_port}" for node in self.peers)
        provider = ";".join(
            [
                f"gmcast.listen_addr=tcp://127.0.0.1:{self.group_port}",
                f"ist.recv_addr=127.0.0.1:{self._ist_port}",
                "gcache.size=128M",
                *GIVE_UP,
            ]
        )
        return [
            "--wsrep-on=ON",
            f"--wsrep-provider={_library()}",
            f"--wsrep-provider-options={provider}",
            "--wsrep-cluster-name=chaos",
            f"--wsrep-cluster-address=gcomm://{addresses}",
            f"--wsrep-node-name={self.name}",
            f"--wsrep-node-address=127.0.0.1:{self.group_port}",
            f"--wsrep-node-incoming-address=127.0.0.1:{self.port}",
            "--wsrep-sst-method=rsync",
            f"--wsrep-sst-receive-address=127.0.0.1:{self._sst_port}",
            "--binlog-format=ROW",
            "--innodb-autoinc-lock-mode=2",
            *([f"--wsrep-start-position={position}"] if position else []),
        ]

    def start(self) -> None:
        """Starts this server and waits until it is a synced member again: of what it has, it needs only what came since."""
        self.begin_start()
        self.wait_for(SYNCED)

    def start_first(self) -> None:
        """Founds the cluster, out of the data that this node has."""
        self.options = [*self._cluster_options(None), "--wsrep-new-cluster"]
        self._spawn()
        self.wait_for(SYNCED)

    def begin_start(self) -> None:
        """Starts this server without waiting for what the cluster has to tell it."""
        self.options = self._cluster_options(self._recovered())
        self._spawn()

    def kill(self) -> None:
        self.is_up = False
        super().kill()

    def _spawn(self) -> None:
        before = os.environ["PATH"]
        os.environ["PATH"] = f"{self.scripts}{os.pathsep}{_path()}"  # the server looks for them there
        try:
            super().start()
            self.is_up = True
        finally:
            os.environ["PATH"] = before

    def _recovered(self) -> str | None:
        """Where this node's data stand, as its systemd unit asks after a crash (`galera_recovery`): else all is copied anew."""
        data = self.server.folder / "data"
        if not (data / "grastate.dat").exists():
            return None
        text = (data / "grastate.dat").read_text()
        seqno = re.search(r"^seqno:\s*(-?\d+)", text, re.MULTILINE)
        if seqno is not None and seqno[1] != "-1":
            return None  # stopped in good order: it knows itself
        done = subprocess.run(
            [
                *(program_of("mariadb"), "--no-defaults", "--user=root", f"--datadir={data}", "--innodb-log-file-size=48M"),
                *(*self._cluster_options(None), "--wsrep-recover", "--disable-log-error", "--skip-networking"),
                *(f"--socket={self.server.folder / 'recover.sock'}", f"--pid-file={self.server.folder / 'recover.pid'}"),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        found = _RECOVERED.findall(done.stdout + done.stderr)
        assert found, f"{self.name}: no position recovered:\n{(done.stdout + done.stderr)[-2000:]}"
        position: str = found[-1]
        return position

    def state(self) -> str:
        """`Synced`, another word of the server's, or what kept it from answering."""
        try:
            return self.status().get("wsrep_local_state_comment", "no cluster")
        except (pymysql.err.Error, OSError) as error:
            return str(error)

    def status(self) -> dict[str, str]:
        """SHOW GLOBAL STATUS LIKE 'wsrep_%', over a connection of its own."""
        connection = self.connect()
        try:
            with connection.cursor() as cursor:
                cursor.execute("SHOW GLOBAL STATUS LIKE 'wsrep\\_%'")
                return {row["Variable_name"]: row["Value"] for row in cursor.fetchall()}
        finally:
            connection.close()

    def connect(self) -> pymysql.Connection[Any]:
        """By its socket, as the one who made the data: also before there are users, and in whatever state the node is."""
        return pymysql.connect(
            unix_socket=str(self.server.socket_path),
            user="root",
            autocommit=True,
            charset="utf8mb4",
            cursorclass=pymysql.cursors.DictCursor,
            connect_timeout=5,
            read_timeout=60,
        )

    def wait_for(self, state: str, timeout: float = 60) -> float:
        """Waits for this state; the seconds that it took."""
        return wait_until(lambda: self.state() == state, timeout, f"{self.name} {state}; it is {self.state()}")

    def isolate(self, is_isolated: bool) -> None:
        """Cuts this node off from the others, as a switch that fails does; its clients still reach it. Or joins it again."""
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute(f"SET GLOBAL wsrep_provider_options = 'gmcast.isolate={int(is_isolated)}'")


@dataclass
class Cluster:
    """Three nodes. `sql` reads and writes at the first of them that takes part, and sees all that was committed anywhere."""

    nodes: list[Node]
    _connection: pymysql.Connection[Any] | None = field(default=None, repr=False)

    def url(self, first: int = 0, user: str = "ai_worker") -> str:
        """All nodes in one URL, beginning with the one of this index, as a worker gets it."""
        order = [self.nodes[(first + step) % len(self.nodes)] for step in range(len(self.nodes))]
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in order)
        return f"mysql://{user}:{PASSWORD}@{hosts}/{DATABASE}?ssl=off"

    def sql(self, statement: str, parameters: Any = None) -> list[dict[str, Any]]:
        """Plain SQL at whichever node takes part; sent again, for at most 60 s, where its node went away or lost a conflict."""
        deadline = time.monotonic() + 60
        while True:
            try:
                if self._connection is None:
                    self._connection = self._any()
                with self._connection.cursor() as cursor:
                    cursor.execute(statement, parameters)
                    return list(cursor.fetchall())
            except (pymysql.err.OperationalError, pymysql.err.InterfaceError, pymysql.err.InternalError) as error:
                if error.args[0] not in _NOT_NOW or time.monotonic() > deadline:
                    raise
                self.forget_connection()
                time.sleep(0.1)

    def _any(self) -> pymysql.Connection[Any]:
        for node in self.nodes:
            if node.server.is_alive() and node.state() == SYNCED:
                connection = node.connect()
                with connection.cursor() as cursor:
                    cursor.execute("SET SESSION wsrep_sync_wait = 15")
                    cursor.execute(f"USE {DATABASE}")
                return connection
        raise pymysql.err.OperationalError(2003, "no node takes part")

    def forget_connection(self) -> None:
        if self._connection is not None:
            self._connection._force_close()  # its server may not be there to be told
            self._connection = None


@contextmanager
def cluster_of(count: int = 3) -> Iterator[Cluster]:
    """So many nodes, migrated, with the users of sql/grants.sql, for the length of the block."""
    with tempfile.TemporaryDirectory(prefix="ai-worker-galera-") as folder:
        _own_scripts(Path(folder))
        nodes = [Node(number, Path(folder)) for number in range(1, count + 1)]
        for node in nodes:
            node.peers = nodes
        cluster = Cluster(nodes)
        try:
            nodes[0].start_first()
            nodes[0].prepare()
            for node in nodes[1:]:
                node.start()
            yield cluster
        finally:
            cluster.forget_connection()
            for node in reversed(nodes):
                node.kill()
