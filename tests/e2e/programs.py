"""Real programs as peers: found or the test fails, started, waited for, ended by their process id. What
talked through a tunnel is written to PEERS.md."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

from daemon import DEADLINE, wait_until

PLACES = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def program(name):
    """The full path of a peer; a missing peer is a failure, never a skip."""
    path = PLACES
    if postgres := sorted(Path("/usr/lib/postgresql").glob("*/bin")):
        path += f":{postgres[-1]}"
    found = shutil.which(name, path=path)
    assert found, f"{name} is not installed"
    return found


PEERS_FILE = Path(__file__).with_name("PEERS.md")
HEADER = """# Real peers of the end-to-end tests

Written by the tests as they run: what talked through a tunnel, and how.

| program | version | command |
| --- | --- | --- |
"""
PEERS = {}


def peer(name, *version_command, command):
    """Notes a peer for PEERS.md."""
    done = subprocess.run([program(version_command[0]), *version_command[1:]], capture_output=True, text=True, check=False)
    version = re.search(r"\d+\.\d[\w.]*", done.stdout + done.stderr)
    assert version, f"{name} does not tell its version"
    PEERS[name, command.replace("|", "\\|")] = version[0]


def write_peers(ran):
    """After a run without a failure; `ran` are the names of its tests. Rows that no test wrote any more
    go when all tests that write some ran."""
    texts = [path.read_text() for path in PEERS_FILE.parent.glob("test_*.py")]
    writers = {name for text in texts if "peer(" in text for name in re.findall(r"^def (test_\w+)", text, re.M)}
    rows = {}
    if not writers <= set(ran):
        known = re.findall(r"^\| (.*?) \| (\S+) \| `(.*)` \|$", PEERS_FILE.read_text(), re.M)
        rows = {(name, command): version for name, version, command in known}
    rows.update(PEERS)
    lines = [f"| {name} | {version} | `{command}` |\n" for (name, command), version in sorted(rows.items())]
    fresh = PEERS_FILE.with_suffix(f".{os.getpid()}") # other variants may run at the same time
    fresh.write_text(HEADER + "".join(lines))
    fresh.rename(PEERS_FILE)


HELD_PORTS = []


def free_port():
    """A port for a program that binds it with SO_REUSEADDR, as servers do. It stays bound here until the tests
    end, so that the kernel gives it to nobody else: neither who binds port 0 nor who connects."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    HELD_PORTS.append(sock)
    return sock.getsockname()[1]


def is_listening(port):
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


class Server:
    """A program that serves until it is ended; its output goes to a file."""

    def __init__(self, directory, *command, port=None, **options):
        self.log = directory / f"{Path(command[0]).name}.log"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([program(command[0]), *map(str, command[1:])], stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log, **options)
        if port:
            self.wait(lambda: is_listening(port), f"port {port}")

    def wait(self, condition, what):
        def alive():
            assert self.process.poll() is None, f"{self.process.args} ended:\n{self.log.read_text()}"
            return condition()
        try:
            return wait_until(alive, f"{self.process.args[0]}: {what}")
        except AssertionError:
            self.stop()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def run(*command, deadline=120, data=None, **options):
    """Runs a program to its end, which must be a good one; gives its output as bytes."""
    done = subprocess.run([program(command[0]), *map(str, command[1:])], input=data, capture_output=True,
                          timeout=deadline, check=False, **options)
    assert done.returncode == 0, (f"{' '.join(map(str, command))} ended with {done.returncode}:\n"
                                  f"{done.stderr.decode(errors='replace')[-2000:]}"
                                  f"{done.stdout.decode(errors='replace')[-1000:]}")
    return done.stdout


@contextlib.contextmanager
def redis_server(directory, *options):
    port = free_port()
    with Server(directory, "redis-server", "--port", port, "--save", "", "--bind", "127.0.0.1", "--dir", directory, *options,
                port=port) as server:
        server.port = port
        yield server


@contextlib.contextmanager
def postgres_server(directory):
    port, data = free_port(), directory / "cluster"
    owner = {}
    if os.getuid() == 0:  # the server refuses to run as root
        owner = {"user": "postgres", "group": "postgres"}
        data.mkdir()
        shutil.chown(data, "postgres", "postgres")
    run("initdb", "-D", data, "-A", "trust", "-U", "tester", "--no-sync", "--locale=C", "--encoding=UTF8", cwd="/", **owner)
    with Server(directory, "postgres", "-D", data, "-p", port, "-k", "", "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off",
                port=port, cwd="/", **owner) as server:
        server.port = port
        server.wait(lambda: b"ready to accept connections" in server.log.read_bytes(), "ready")
        yield server


def haproxy_server(directory, port, text):
    file = directory / "haproxy.cfg"
    timeouts = "".join(f"    timeout {name} 10s\n" for name in ("connect", "client", "server"))
    file.write_text(f"global\n    maxconn 100\ndefaults\n{timeouts}{text}\n")
    return Server(directory, "haproxy", "-db", "-f", file, port=port)
