"""testssl.sh against a listener whose TLS section names its certificates and leaves the rest to the defaults."""

import http.server
import json
import subprocess
import threading

import pytest

from certificates import Authority
from daemon import configuration, section, tunnel
from programs import peer, program

# What a server is reproached with, and LOW upwards; WARN is what testssl could not find out.
REPROACHES = ("WARN", "LOW", "MEDIUM", "HIGH", "CRITICAL")

# The findings that may be there: (what, how bad) and why.
ACCEPTED = {
    ("engine_problem", "WARN"): "about the openssl program testssl uses itself, which has no GOST",
    ("RC4", "WARN"): "that program has no RC4 to offer; the cipher categories, asked by sockets, show there is none",
}

# Asked at the same time by two of it, since it mostly waits: protocols, categories of ciphers, forward secrecy;
# vulnerabilities. And what each must have looked at, so that a run that asked nothing does not pass.
HALVES = {"-p -s -f": {"TLS1", "TLS1_3", "cipherlist_STRONG", "cipherlist_AVERAGE", "PFS"},
          "-U": {"heartbleed", "ROBOT", "ticketbleed", "secure_client_renego", "LUCKY13", "SWEET32"}}


class Page(http.server.BaseHTTPRequestHandler):
    """Some of the vulnerabilities are asked for where HTTP is spoken, alone."""
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def page():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_defaults(start, directory, page):
    """Nothing is found that is worth a word, for an ECDSA and an RSA certificate side by side."""
    authority = Authority(directory)
    certificates = [authority.issue(kind, "server.example", key=kind) for kind in ("ec", "rsa")]
    daemon = start(configuration(
        section("tls", "edge", certificate=[str(each[0]) for each in certificates], key=[str(each[1]) for each in certificates]),
        tunnel("t", f"127.0.0.1:{page}", accept_filters=["tls:edge"])))
    running = {}
    for number, options in enumerate(HALVES):
        file = directory / f"findings{number}.json"
        running[options] = file, subprocess.Popen(
            [program("testssl"), "--quiet", "--warnings", "off", "--color", "0", "--nodns", "none", "--ip", "127.0.0.1",
             "--jsonfile", file, *options.split(), f"server.example:{daemon.address('t')[1]}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        told = {options: process.communicate(timeout=300)[0] for options, (_, process) in running.items()}
    finally:
        for _, process in running.values():
            process.kill()
            process.wait()
    for options, seen in HALVES.items():
        findings = json.loads(running[options][0].read_text())
        assert seen <= {finding["id"] for finding in findings}, told[options]
        bad = [finding for finding in findings
               if finding["severity"] in REPROACHES and (finding["id"], finding["severity"]) not in ACCEPTED]
        assert not bad, "\n".join(f"{finding['severity']} {finding['id']}: {finding['finding']}" for finding in bad)
    peer("testssl.sh", "testssl", "--version", command="testssl --jsonfile FILE -p -s -f -U server.example:PORT")
