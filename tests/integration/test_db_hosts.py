"""What only a server of one's own can show: failover to another host, a crash, and encryption that is verified."""

from __future__ import annotations

import datetime
import ipaddress
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGKILL

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ai_worker import embedded, migrate
from ai_worker.database_url import DatabaseUrl, SslMode, parse_database_url
from ai_worker.db import Database, Transaction
from ai_worker.errors import DatabaseAway, DatabaseRefused
from tests.servers import TestServer, free_port, private_mariadb, tcp_options


@dataclass(frozen=True)
class Primary:
    """A private server with a certificate, a migrated database, and a user without any administrator's right."""

    admin: TestServer
    server: embedded.Server
    options: list[str]
    ca: Path
    strange_ca: Path

    @property
    def url(self) -> DatabaseUrl:
        return parse_database_url(self.admin.url("ai_worker", "app", "app"))

    def read_only(self, on: bool) -> None:
        self.admin.execute(f"SET GLOBAL read_only = {int(on)}")


def make_certificates(folder: Path) -> list[str]:
    """An authority in ca.pem, another one in strange.pem, and what the first vouches for: a server on 127.0.0.1."""
    now = datetime.datetime.now(datetime.UTC)

    def sign(name: str, issuer: str | None, issuer_key: ec.EllipticCurvePrivateKey | None) -> ec.EllipticCurvePrivateKey:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer or name)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        )
        certificate = builder.sign(issuer_key or key, hashes.SHA256())
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return key

    authority = sign("ca", None, None)
    sign("strange", None, None)
    key = sign("server", "ca", authority)
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.key").write_bytes(private)
    return [f"--ssl-ca={folder / 'ca.pem'}", f"--ssl-cert={folder / 'server.pem'}", f"--ssl-key={folder / 'server.key'}"]


@pytest.fixture(scope="module")
def primary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Primary]:
    folder = tmp_path_factory.mktemp("certificates")
    options, port = make_certificates(folder), free_port()
    with private_mariadb(port, *options) as (admin, server):
        admin.execute(
            "CREATE DATABASE ai_worker", "CREATE USER app@'%' IDENTIFIED BY 'app'", "GRANT ALL ON ai_worker.* TO app@'%'"
        )
        primary = Primary(admin, server, tcp_options(port, *options), folder / "ca.pem", folder / "strange.pem")
        database = Database(primary.url)
        migrate.migrate(database)
        database.close()
        yield primary


@pytest.fixture(scope="module")
def other_url() -> Iterator[DatabaseUrl]:
    """The same user and database on a second server."""
    with private_mariadb(free_port()) as (admin, _):
        admin.execute(
            "CREATE DATABASE ai_worker", "CREATE USER app@'%' IDENTIFIED BY 'app'", "GRANT ALL ON ai_worker.* TO app@'%'"
        )
        url = parse_database_url(admin.url("ai_worker", "app", "app"))
        database = Database(url)
        migrate.migrate(database)
        database.close()
        yield url


def add_item(tx: Transaction) -> int:
    tx.insert("insert_items", {"id_task": 1, "external_key": None, "context_key": None, "context": None, "text_original": "x"})
    port: int = tx.raw("SELECT @@port AS port")[0]["port"]
    return port


def test_a_read_only_host_is_passed_over(primary: Primary, other_url: DatabaseUrl) -> None:
    database = Database(replace(primary.url, hosts=primary.url.hosts + other_url.hosts))
    primary.read_only(True)
    try:
        assert database.transaction(add_item) == other_url.hosts[0][1]
    finally:
        primary.read_only(False)
        database.close()


def test_a_host_that_refuses_is_passed_over(primary: Primary, other_url: DatabaseUrl) -> None:
    """A replica without the database yet, say. Only when all refuse is it the set-up that is wrong."""
    primary.admin.execute("RENAME USER app@'%' TO app_elsewhere@'%'")
    database = Database(replace(primary.url, hosts=primary.url.hosts + other_url.hosts))
    try:
        assert database.transaction(add_item) == other_url.hosts[0][1]
    finally:
        database.close()
        primary.admin.execute("RENAME USER app_elsewhere@'%' TO app@'%'")
    unknown = replace(primary.url, hosts=primary.url.hosts + other_url.hosts, database="no_such_database")
    with pytest.raises(DatabaseRefused) as caught:
        Database(unknown, patience=60).connect()
    assert caught.value.exit_code == 78


def test_a_host_that_becomes_read_only_is_left(primary: Primary, other_url: DatabaseUrl) -> None:
    """A failover: the old primary still answers, but takes no writes (error 1290)."""
    database = Database(replace(primary.url, hosts=primary.url.hosts + other_url.hosts))
    assert database.transaction(add_item) == primary.url.hosts[0][1]
    primary.read_only(True)
    try:
        assert database.transaction(add_item) == other_url.hosts[0][1]
    finally:
        primary.read_only(False)
        database.close()


def test_where_one_thread_leaves_a_host_the_others_follow(primary: Primary, other_url: DatabaseUrl) -> None:
    """Else they would go on reading there, as long as the connection holds: from what is a replica now."""

    def read() -> int:
        port: int = database.transaction(lambda tx: tx.raw("SELECT @@port AS port"))[0]["port"]
        return port

    database = Database(replace(primary.url, hosts=primary.url.hosts + other_url.hosts))
    with ThreadPoolExecutor(1) as another:
        assert another.submit(read).result() == read() == primary.url.hosts[0][1]
        primary.read_only(True)
        try:
            assert another.submit(database.transaction, add_item).result() == other_url.hosts[0][1]
            assert read() == other_url.hosts[0][1]
            assert database.connections == 2
        finally:
            primary.read_only(False)
            database.close()


def test_when_every_host_is_read_only_the_database_is_away(primary: Primary) -> None:
    database = Database(primary.url, patience=0.2)
    primary.read_only(True)
    try:
        with pytest.raises(DatabaseAway, match="read-only"):
            database.connect()
    finally:
        primary.read_only(False)


def test_a_server_that_crashes_and_comes_back_loses_and_repeats_nothing(primary: Primary) -> None:
    database = Database(primary.url, patience=60)
    before = len(database.transaction(lambda tx: tx.raw("SELECT 1 FROM task_item")))
    killed: list[float] = []

    def work(tx: Transaction) -> None:
        add_item(tx)
        if not killed:
            killed.append(time.monotonic())
            primary.server.stop(SIGKILL)
            threading.Thread(target=primary.server.start, args=[primary.options]).start()
            tx.query("server_clock")

    database.transaction(work)
    assert len(database.transaction(lambda tx: tx.raw("SELECT 1 FROM task_item"))) == before + 1
    database.close()


def test_a_verified_certificate(primary: Primary) -> None:
    def cipher(ssl: SslMode, host: str, ca: Path | None) -> str:
        ((_, port),) = primary.url.hosts
        url = replace(primary.url, ssl=ssl, hosts=((host, port),), ssl_ca=str(ca) if ca else None)
        database = Database(url, patience=0)
        try:
            text: str = database.query("server_cipher")[0]["Value"]
        finally:
            database.close()
        return text

    assert cipher("verify", "127.0.0.1", primary.ca)
    assert cipher("required", "127.0.0.1", None)
    for host, ca in (("localhost", primary.ca), ("127.0.0.1", primary.strange_ca), ("127.0.0.1", None)):
        with pytest.raises(DatabaseRefused, match="CERTIFICATE_VERIFY_FAILED"):
            cipher("verify", host, ca)
