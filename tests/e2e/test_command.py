"""The command line: what penstockd does without becoming a daemon."""

import contextlib
import re
import socket
import ssl
import subprocess
import threading
import time

import pytest

from certificates import Authority
from daemon import DEADLINE, PENSTOCKD, configuration, run_penstockd, section, tunnel
from peers import ClosedPort, EchoTarget, Target

pytestmark = pytest.mark.sanitize


def test_help_fits_one_screen():
    done = run_penstockd("--help")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) <= 24 and all(len(line) <= 80 for line in lines)
    for option in ("--config", "--check", "--diff", "--test-connection", "--keywords", "--version", "--help"):
        assert option in done.stdout


def test_version_names_the_libraries():
    done = run_penstockd("--version")
    assert done.returncode == 0
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names[:4] == ["penstockd", "libevent", "libconfuse", "jansson"] and "OpenSSL" in names
    assert all(re.search(r"\d+\.\d+", line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("arguments", [["--wrong"], ["extra"], ["--diff"], ["-c"]])
def test_wrong_usage(arguments):
    assert run_penstockd(*arguments).returncode == 2


WHOLE = configuration(tunnel("a", "internal:echo"))


@pytest.mark.parametrize("how", [">/dev/full", ">&-"])
@pytest.mark.parametrize("arguments", ["--version", "--help", "--keywords", "-c {0} --check", "-c {0} --diff {0}",
                                       "-c {0} --test-connection a"])
def test_an_answer_that_cannot_be_written(directory, arguments, how):
    path = directory / "penstock.conf"
    path.write_text(WHOLE)
    command = f"{PENSTOCKD} {arguments.format(path)} {how}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 1 and done.stderr.startswith("penstockd: cannot write to standard output"), done


# --- diff

def diff(directory, old, new):
    (directory / "old.conf").write_text(old)
    (directory / "new.conf").write_text(new)
    done = run_penstockd("-c", directory / "new.conf", "--diff", directory / "old.conf")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_file_without_its_option(directory):
    done = run_penstockd(directory / "x.conf")
    assert done.returncode == 2 and f"write -c {directory}/x.conf" in done.stderr


def test_diff_of_equal_files(directory):
    text = configuration(tunnel("a", "internal:echo", allow="10.0.0.0/8", timeouts={"idle": "5s"}))
    assert diff(directory, text, text.replace("idle = \"5s\"", "idle = \"5000ms\"")) == ["no differences"]


def test_diff_tells_rows_and_effects(directory):
    old = configuration(
        tunnel("a", "internal:echo", allow="10.0.0.0/8", deny=["unix", "uid:1"], backlog=10, timeouts={"idle": "5s"}),
        tunnel("gone", "internal:echo"),
        'limit "up" { rate = "1MB/s" }\n', 'zlib "z" { level = 1 }\n',
        workers=1, timeouts={"connect": "10s"}, log={"level": "info"})
    new = configuration(
        tunnel("a", "internal:echo", allow=["10.0.0.0/8", "::1"], deny=["unix", "uid:2"], backlog=20, unix_mode="0660",
               max_new_per_source="5/min", timeouts={"idle": "7s"})[:-2] + 'match { sni = "a.example" }\n}\n',
        tunnel("b", ["internal:echo", "127.0.0.1:1"]),
        'limit "up" { rate = "8Mbit/s" }\n', 'limit "more" { rate = "3MB/s" }\n', 'zlib "z" { level = 2 }\n',
        workers=2, timeouts={"connect": "20s"}, log={"level": "debug"})
    assert diff(directory, old, new) == [
        "workers: 1 -> 2 (needs a restart)",
        "log level: info -> debug (live)",
        "timeouts connect: 10s -> 20s (new connections)",
        'limit "more" is new (live)',
        'zlib "z" level: 1 -> 2 (new connections)',
        'tunnel "a" allow: { 10.0.0.0/8 } -> { 10.0.0.0/8, ::1 } (new connections)',
        'tunnel "a" deny: { unix, uid:1 } -> { unix, uid:2 } (new connections)',
        'tunnel "a" backlog: 10 -> 20 (live)',
        'tunnel "a" unix_mode: 0600 -> 0660 (live)',
        'tunnel "a" max_new_per_source: 0 -> 5/min (new connections)',
        'tunnel "a" match sni: { } -> { "a.example" } (new connections)',
        'tunnel "a" timeouts idle: 5s -> 7s (new connections)',
        'tunnel "b" is new (new connections)',
        'tunnel "gone" is gone: it accepts no more, its connections go on',
        "14 differences: 4 live, 9 for new connections, 1 after a restart",
    ]


def test_diff_of_targets(directory):
    assert diff(directory, configuration(tunnel("a", ["internal:echo", "internal:discard"])), configuration(
        tunnel("a", ["internal:echo", "internal:discard"], backup=["internal:chargen"], balance="source", max_per_target=5)
        .replace("balance", "weights = { 3, 1 }  balance"))) == [
            'tunnel "a" backup: { } -> { "internal:chargen" } (new connections)',
            'tunnel "a" balance: order -> source (new connections)',
            'tunnel "a" weights: { } -> { 3, 1 } (new connections)',
            'tunnel "a" max_per_target: 0 -> 5 (new connections)',
            "4 differences: 0 live, 4 for new connections, 0 after a restart",
        ]


def test_diff_of_checks(directory):
    def a(check):
        return configuration(tunnel("a", "internal:echo")[:-2] + check + "}\n")

    none, usual, quick = a(""), a("check { }\n"), a('check { interval = "1s" fall = 2 }\n')
    assert diff(directory, none, usual)[:-1] == ['tunnel "a" check is new (live)']
    assert diff(directory, quick, none)[:-1] == ['tunnel "a" check is gone (live)']
    assert diff(directory, usual, quick) == [
        'tunnel "a" check interval: 10s -> 1s (live)',
        'tunnel "a" check fall: 3 -> 2 (live)',
        "2 differences: 2 live, 0 for new connections, 0 after a restart",
    ]


def test_diff_with_a_wrong_file(directory):
    good, bad = configuration(tunnel("a", "internal:echo")), configuration()
    for old, new in ((good, bad), (bad, good)):
        (directory / "old.conf").write_text(old)
        (directory / "new.conf").write_text(new)
        done = run_penstockd("-c", directory / "new.conf", "--diff", directory / "old.conf")
        assert done.returncode == 1 and "no tunnel is declared" in done.stderr and not done.stdout


# --- test-connection

def try_tunnel(directory, text, name="a"):
    path = directory / "penstock.conf"
    path.write_text(text)
    done = run_penstockd("-c", path, "--test-connection", name)
    return done.returncode, re.sub(r"\(\d+ ms\)", "(…)", done.stdout), done.stderr


def test_connection_to_a_working_target(directory):
    with EchoTarget() as target:
        status, told, _ = try_tunnel(directory, configuration(tunnel("a", target.text)))
        assert status == 0
        assert told.splitlines() == [
            f'tunnel "a", target {target.text}',
            f"  connected  {target.text} (…)",
            "  ready      the handshakes of connect_filters are done (…)",
            "  open       the target waits for us to speak (…)",
        ]


def test_a_trial_ends_in_order(start, directory):
    """Each filter has said its goodbye: what was tried is no failure of a client where it was tried."""
    (directory / "secrets").write_text(f"site:{'ab' * 32}\n")
    (directory / "secrets").chmod(0o600)
    line = section("tls", "line", psk=f"{directory}/secrets") + section("zstd", "line")
    daemon = start(configuration(line, tunnel("far", "internal:echo", accept_filters=["tls:line", "zstd:line"])))
    address = "{}:{}".format(*daemon.address("far"))
    status, told, _ = try_tunnel(directory, configuration(line, tunnel("a", address, connect_filters=["tls:line", "zstd:line"])))
    assert status == 0, told
    assert daemon.ended("far")["reason"] == "ok"


def test_connection_by_name(directory):
    with EchoTarget() as target:
        status, told, _ = try_tunnel(directory, configuration(tunnel("a", f"localhost:{target.port}")))
        assert status == 0 and "  resolved   the name has addresses" in told


def test_a_timeout_of_more_milliseconds_than_32_bits_hold(directory):
    """Cut to 32 bits it would be over before this target answers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*Authority(directory).issue("localhost"))

    def answer_late():
        sock, _ = listener.accept()
        time.sleep(0.2)
        with contextlib.suppress(OSError), context.wrap_socket(sock, server_side=True) as tls:
            tls.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer_late)
        thread.start()
        status, told, _ = try_tunnel(directory, configuration(
            tunnel("a", f"127.0.0.1:{listener.getsockname()[1]}", connect_filters=["tls:out"],
                   timeouts={"handshake": f"{(1 << 32) + 50}ms"})) + section("tls", "out", verify="none"))
        thread.join()
    assert status == 0 and "  ready      the handshakes" in told, told


def test_each_target_is_tried(directory):
    with EchoTarget(path=str(directory / "sock")) as target, socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
        closed.close()
        status, told, _ = try_tunnel(directory, configuration(tunnel("a", [f"127.0.0.1:{port}", target.text, "x.invalid:1"])))
        assert status == 1
        assert f"  failed     connect to 127.0.0.1:{port}: Connection refused" in told
        assert "  connected  to the UNIX socket" in told
        assert 'tunnel "a", target x.invalid:1\n  failed     x.invalid' in told.replace("connect to ", "")


def test_target_that_ends_at_once(directory):
    with Target() as target:
        threading.Thread(target=lambda: target.accept().close()).start()
        status, told, _ = try_tunnel(directory, configuration(tunnel("a", target.text)))
        assert status == 1 and "  failed     the target ends the connection" in told


def test_target_that_resets_at_once(directory):
    """What is written then is no reason to die."""
    def serve():
        with contextlib.suppress(OSError):
            while True:
                target.accept().reset()

    with Target() as target:
        threading.Thread(target=serve, daemon=True).start()
        text = configuration(tunnel("a", target.text, connect_filters="tls"))
        for _ in range(8):
            status, told, _ = try_tunnel(directory, text)
            assert status == 1 and re.search("  failed     .+", told), (status, told)


def test_internal_targets_are_followed(directory):
    with EchoTarget() as target:
        status, told, _ = try_tunnel(directory, configuration(
            tunnel("a", "internal:b"), tunnel("b", [target.text, "internal:echo"], listen="internal:b")))
        assert status == 0
        assert '  leads to   tunnel "b"; its accept_filters are not tried\n' in told
        assert f'tunnel "b", target {target.text}\n  connected  ' in told
        assert "  open       echo is built in\n" in told


@pytest.mark.parametrize("rest", [False, True])
def test_internal_targets_are_followed_to_each_tunnel_that_a_client_may_get_into(directory, rest):
    with EchoTarget() as target, ClosedPort() as dead:
        status, told, _ = try_tunnel(directory, configuration(
            tunnel("a", "internal:b"), tunnel("b", dead.text, "internal:b", match={"sni": ["b.example"]}),
            tunnel("c", target.text, "internal:b" if rest else "127.0.0.1:0")))
        assert status == 1
        assert f'tunnel "b", target {dead.text}\n  failed     connect to {dead.text}: Connection refused' in told
        assert (f'tunnel "c", target {target.text}\n  connected  ' in told) == rest


def test_unknown_tunnel(directory):
    status, told, wrong = try_tunnel(directory, configuration(tunnel("cache", "internal:echo")), "cahce")
    assert status == 1 and not told
    assert 'has no tunnel "cahce"; did you mean "cache"?' in wrong
