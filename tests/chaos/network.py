"""Hosts in network namespaces of their own, each on a cable of its own, and what can happen to a cable.

Needs root, `ip` and `nft`. In everybody else's namespace is one end of each cable, and goes with the host.
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import subprocess
from types import TracebackType
from typing import Self

_numbers = itertools.count()


@functools.cache
def why_not() -> str | None:
    """Why there can be no hosts here; None where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [program for program in ("ip", "nft") if shutil.which(program, path=_PATH) is None]:
        return f"not installed: {', '.join(missing)}"
    try:
        with Host() as host:
            host.lossy(50)
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {error.stderr.decode(errors='replace').strip()}"
    return None


_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _run(*command: str) -> None:
    environment = {**os.environ, "PATH": _PATH}
    subprocess.run(command, check=True, capture_output=True, timeout=30, env=environment)


class Host:
    """A host: `gateway` is this machine's address as it sees it, `prefix` is what a program runs under to be on it.

    A context manager; at its end the host is gone, with its cable.
    """

    def __init__(self) -> None:
        number = next(_numbers)
        self.name = f"aiw{os.getpid()}-{number}"
        self._cable = f"aw{os.getpid()}.{number}"[:15]
        place = (os.getpid() * 16 + number) % 16_384  # of 10.200.0.0/16 and what follows, four addresses each
        network = f"10.{200 + place // 16_384}.{place // 64 % 256}"
        self.gateway = f"{network}.{place % 64 * 4 + 1}"
        self.address = f"{network}.{place % 64 * 4 + 2}"
        self.prefix = [shutil.which("ip", path=_PATH) or "ip", "netns", "exec", self.name]

    def cut(self) -> None:
        """Nothing gets through, either way, and nobody is told."""
        self._rules("input", "drop")
        self._rules("output", "drop")

    def deaf(self) -> None:
        """Half-open: what the host sends arrives, what it is sent does not. A COMMIT is done, and its answer never comes."""
        self._rules("input", "drop")

    def dumb(self) -> None:
        """Half-open the other way: the host hears, and is not heard."""
        self._rules("output", "drop")

    def lossy(self, percent: int) -> None:
        """So many of a hundred packets are lost, either way."""
        for way in ("input", "output"):
            self._rules(way, f"numgen random mod 100 < {percent} drop")

    def mend(self) -> None:
        """As it was: of all that was done to the cable, nothing is left."""
        _run(*self.prefix, "nft", "flush", "ruleset")

    def unplug(self) -> None:
        """The link goes down, which the host's own system sees at once."""
        _run("ip", "-n", self.name, "link", "set", "eth0", "down")

    def plug(self) -> None:
        _run("ip", "-n", self.name, "link", "set", "eth0", "up")

    def _rules(self, way: str, *rules: str) -> None:
        table = f"inet fault_{way}"
        text = f"add table {table}; add chain {table} it {{ type filter hook {way} priority 0; }}; "
        _run(*self.prefix, "nft", text + "; ".join(f"add rule {table} it {rule}" for rule in rules))

    def __enter__(self) -> Self:
        _run("ip", "netns", "add", self.name)
        try:
            _run("ip", "link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
            _run("ip", "addr", "add", f"{self.gateway}/30", "dev", self._cable)
            _run("ip", "link", "set", self._cable, "up")
            _run("ip", "-n", self.name, "addr", "add", f"{self.address}/30", "dev", "eth0")
            _run("ip", "-n", self.name, "link", "set", "eth0", "up")
            _run("ip", "-n", self.name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._remove()

    def _remove(self) -> None:
        _run("ip", "netns", "del", self.name)  # the cable's other end goes with it
