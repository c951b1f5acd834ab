"""Chains of filters as the tests write them: their sections, and daemons behind one another that speak them.

Where two tunnels face each other, the one in front has the chain on its far side and the one behind on its near
side; what goes in plain at one end comes out plain at the other."""

import contextlib
import functools
import re
import select
import socket
import subprocess
import threading

from daemon import DEADLINE, configuration, listed, run_penstockd, tunnel

# What a chain may name; "{0}" is the directory of the certificates.
SECTIONS = {
    "zlib:one": 'zlib "one" { level = 1 }',
    "zlib:adaptive": 'zlib "adaptive" { level = 1  adaptive = "true" }',
    "zstd:one": 'zstd "one" { level = 1 }',
    "zstd:adaptive": 'zstd "adaptive" { level = 1  adaptive = "true" }',
    "proxy_protocol:local": 'proxy_protocol "local" { trust = { "127.0.0.0/8" } }',
    "tls:server": 'tls "server" { certificate = "{0}/certificate.pem"  key = "{0}/key.pem" }',
    "tls:client": 'tls "client" { ca = "{0}/certificate.pem"  server_name = "penstock.example" }',
    "stutter:one": 'stutter "one" { seed = 1 }',
    "stutter:two": 'stutter "two" { seed = 2 }',
    "fail_after:few": 'fail_after "few" { bytes = "1KiB" }',
}

# Filters that tell an end of their wire from its being cut.
MARKED = ("tls", "zlib", "zstd")


@functools.cache
def has_doubles():
    """Whether this is a test build."""
    return "stutter" in run_penstockd("--keywords").stdout


def stuttering(chain):
    """In a test build the chain with what cuts its bytes at random on both sides of each filter; else the chain."""
    return ("stutter:one", *(part for name in chain for part in (name, "stutter:two"))) if has_doubles() else chain


def stuttered(text):
    """That configuration with the same around each filter of its chains; only for a test build."""
    def cut(match):
        return match[1] + listed(stuttering(re.findall(r'"([^"]*)"', match[2])))
    return sections(("stutter:one", "stutter:two"), None) + re.sub(r"\b((?:accept|connect)_filters = )(.*)", cut, text)


def make_certificate(directory):
    """For `penstock.example`, signed by itself."""
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                    "-days", "2", "-subj", "/CN=penstock.example", "-addext", "subjectAltName=DNS:penstock.example",
                    "-keyout", directory / "key.pem", "-out", directory / "certificate.pem"],
                   check=True, capture_output=True)
    (directory / "key.pem").chmod(0o600)


def accepting(chain):
    """The chain as a near side writes it."""
    return [{"tls": "tls:server", "proxy_protocol": "proxy_protocol:local"}.get(name, name) for name in chain]


def connecting(chain):
    """The chain as a far side writes it."""
    return [{"tls": "tls:client", "proxy_protocol": "proxy_protocol:local"}.get(name, name) for name in chain]


def is_marked(chain):
    return any(name.partition(":")[0] in MARKED for name in chain)


def sections(names, certificates):
    """The text of the sections that are named."""
    lines = dict.fromkeys(SECTIONS[name] for name in names if name in SECTIONS)
    return "".join(line.replace("{0}", str(certificates)) + "\n" for line in lines)


def facing(chain, target, listen="127.0.0.1:0", *, near=False, far=False, certificates=None, name="a", **rows):
    """A tunnel with the chain on its near side, its far side or both: the text of its sections, and its own."""
    names = []
    if near:
        names += accepting(chain)
        rows["accept_filters"] = accepting(chain)
    if far:
        names += connecting(chain)
        rows["connect_filters"] = connecting(chain)
    return sections(names, certificates), tunnel(name, target, listen, **rows)


def over_sockets(start, chain, target, *, workers=1, certificates=None):
    """Two daemons joined by TCP, which speak the chain to each other. Front first."""
    behind = start(configuration(*facing(chain, target, near=True, certificates=certificates), workers=workers))
    text = "{}:{}".format(*behind.address("a"))
    return start(configuration(*facing(chain, text, far=True, certificates=certificates), workers=workers)), behind


def over_a_pair(start, chain, target, *, workers=1, certificates=None):
    """One daemon whose tunnel "a" speaks the chain to its tunnel "b", inside the process."""
    names = accepting(chain) + connecting(chain)
    return start(configuration(sections(names, certificates),
                               tunnel("a", "internal:b", connect_filters=connecting(chain)),
                               tunnel("b", target, "internal:b", accept_filters=accepting(chain)), workers=workers))


class Cutter:
    """A wire that can be cut: passes on what comes, until `cut` ends it for one of the two ends with a FIN, as if
    all had been said. Takes one connection."""

    def __init__(self, address):
        self.address = address
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.text = "{}:{}".format(*self.sock.getsockname())
        self._ends, self._cut = [], [False, False]
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def cut(self, towards_target):
        with self._lock:
            self._cut[0 if towards_target else 1] = True
            self._ends[1 if towards_target else 0].shutdown(socket.SHUT_WR)

    def _run(self):
        with contextlib.suppress(OSError):
            near = self.sock.accept()[0]
            self._ends = [near, socket.create_connection(self.address)]
            for end in self._ends:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            poll = select.poll()  # select takes no descriptor above 1023
            alive = {end.fileno(): number for number, end in enumerate(self._ends)}
            for descriptor in alive:
                poll.register(descriptor, select.POLLIN)
            while alive:
                for descriptor, _ in poll.poll():
                    if not self._pass_on(alive[descriptor]):
                        poll.unregister(descriptor)
                        del alive[descriptor]
        for end in self._ends:
            end.close()

    def _pass_on(self, number):
        try:
            piece = self._ends[number].recv(65536)
        except OSError:
            piece = b""
        with self._lock, contextlib.suppress(OSError):
            if self._cut[number]:
                return bool(piece)
            if piece:
                self._ends[1 - number].sendall(piece)
            else:
                self._ends[1 - number].shutdown(socket.SHUT_WR)
        return bool(piece)

    def close(self):
        self.sock.close()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._thread.join(DEADLINE)
