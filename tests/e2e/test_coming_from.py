"""doc/coming-from.md: every block does what its section says."""

import re
import shlex
import socket
import ssl
import subprocess
import threading

import pytest

from daemon import DEADLINE, PENSTOCKD, ROOT, wait_until
from programs import free_port, program

TEXT = (ROOT / "doc/coming-from.md").read_text()
BLOCKS = [(job.split("\n")[0], tool.split("\n")[0], re.search(r"^```\n(.*?)^```$", tool, re.M | re.S)[1])
          for job in TEXT.split("\n## ")[1:] for tool in job.split("\n### ")[1:]]
COMMANDS = {
    "stunnel": lambda path: [program("stunnel"), path],
    "HAProxy": lambda path: [program("haproxy"), "-f", path],
    "nginx stream": lambda path: [program("nginx"), "-p", path.parent, "-c", path, "-g", "pid nginx.pid; error_log stderr;"],
    "socat": lambda path: shlex.split(path.read_text()),
    "penstock": lambda path: [PENSTOCKD, "-c", path],
}


class Echo:
    """Answers each connection with its name and what it got; over TLS if it has a context."""

    def __init__(self, name, context=None):
        self.name, self.context = name, context
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[sock], daemon=True).start()

    def _serve(self, sock):
        try:
            with (self.context.wrap_socket(sock, server_side=True) if self.context else sock) as peer:
                peer.settimeout(DEADLINE)
                while piece := peer.recv(1000):
                    peer.sendall(self.name + piece)
        except OSError:
            pass

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """edge.pem, edge.key and edge.pem.key as HAProxy wants it."""
    folder = tmp_path_factory.mktemp("certificate")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                    "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", folder / "edge.key",
                    "-out", folder / "edge.pem"], check=True, capture_output=True)
    (folder / "edge.pem.key").write_text((folder / "edge.key").read_text())
    return folder


def ask(port, context):
    """The answer to `x` of what listens there, or None if nobody does yet, or not within a part of the deadline:
    socat's first answer was once seen not to come at all."""
    try:
        with socket.create_connection(("127.0.0.1", port), DEADLINE / 5) as plain:
            with (context.wrap_socket(plain, server_hostname="localhost") if context else plain) as client:
                client.sendall(b"x")
                return client.recv(100)
    except OSError:
        return None


@pytest.mark.parametrize("job, tool, text", BLOCKS, ids=[f"{tool}: {job}" for job, tool, _ in BLOCKS])
def test_block(directory, certificate, job, tool, text):
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate / "edge.pem", certificate / "edge.key")
    echoes = [Echo(name, server if "to a TLS service" in job else None) for name in (b"one:", b"two:")]
    port = free_port()
    ours = {"8443": port, "8080": echoes[0].port, "8081": echoes[1].port, "8089": free_port(), "/etc/penstock": certificate}
    # In one go: a port may have another one's number in it.
    text = re.sub("|".join(ours), lambda found: str(ours[found.group()]), text)
    path = directory / "block.conf"
    path.write_text(text)
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(COMMANDS[tool](path), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        context = ssl.create_default_context(cafile=certificate / "edge.pem") if "in front of" in job else None
        answer = wait_until(lambda: ask(port, context), f"an answer of {tool}")
        answers = {answer} | {ask(port, context) for _ in range(3)}
        if "always to the same" in job:
            assert len(answers) == 1
        else:
            assert answers == ({b"one:x", b"two:x"} if "Two targets" in job else {b"one:x"})
    except AssertionError as failure:
        raise AssertionError(f"{failure}\n{(directory / 'log').read_text()}") from None
    finally:
        process.terminate()
        process.wait(DEADLINE)
        for echo in echoes:
            echo.close()


def test_page_is_whole():
    assert {tool for _, tool, _ in BLOCKS} == set(COMMANDS)
    assert len(BLOCKS) == 19


def test_words_are_keywords():
    """What the tables name as a word of a file here is one."""
    keywords = set(re.findall(r"\w+", subprocess.run([PENSTOCKD, "--keywords"], capture_output=True, text=True, check=True).stdout))
    rows = "\n".join(line for line in TEXT.splitlines() if line.startswith("|"))
    words = set(re.findall(r"`([a-z_]+)\b[^`]*`", rows)) - {"systemctl"}
    assert len(words) > 50 and words <= keywords, words - keywords
