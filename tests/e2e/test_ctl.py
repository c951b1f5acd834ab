"""penstockctl against a running daemon: what people read, what programs read, how it ends."""

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import termios
from pathlib import Path

import pytest

from certificates import Authority
from daemon import DEADLINE, PENSTOCKCTL, configuration, parse_address, section, tunnel, wait_until
from peers import CLIENT_STREAM, connect, echoes, is_closed, is_refused, transfer
from programs import free_port

pytestmark = pytest.mark.sanitize


class Ctl:
    def __init__(self, daemon, socket):
        self.daemon, self.socket = daemon, socket
        self.env = {**os.environ, "PENSTOCK_SOCKET": str(socket)}

    def run(self, *arguments, status=0, socket=None):
        env = {**self.env, "PENSTOCK_SOCKET": str(socket)} if socket else self.env
        done = subprocess.run([PENSTOCKCTL, *map(str, arguments)], env=env, capture_output=True, text=True,
                              timeout=DEADLINE, check=False)
        assert done.returncode == status, (done.stdout, done.stderr)
        return done.stdout if status == 0 else done.stderr

    def json(self, *arguments):
        return json.loads(self.run("--json", *arguments))


@pytest.fixture
def ctl(start, directory):
    def start_daemon(*tunnels, **options):
        path = directory / "admin.sock"
        text = configuration(*tunnels, tunnel("admin", "internal:admin", listen=f"unix:{path}"), **options)
        return Ctl(start(text), path)
    return start_daemon


def rows(text):
    """A table as a list of rows, each a dictionary by title."""
    titles, *lines = text.splitlines()
    titles = re.split(r"\s{2,}", titles.strip())
    return [dict(zip(titles, re.split(r"\s{2,}", line.strip()))) for line in lines]


def test_tables(ctl):
    asked = ctl(tunnel("a", "internal:echo"), tunnel("b", "127.0.0.1:9"))
    assert is_refused(asked.daemon.address("b"))
    with connect(asked.daemon.address("a"), expects=CLIENT_STREAM) as client:
        transfer(client, client, 123_456)
        status = asked.run("status")
        assert f"pid {asked.daemon.pid}" in status and "generation 1" in status
        a, b, _ = rows(asked.run("tunnels"))
        assert a["TUNNEL"] == "a" and a["OPEN"] == "1" and a["UP"] == a["DOWN"] == "123 kB"
        assert b["FAILED"] == "1"
        target = rows(asked.run("targets"))[1]
        assert target["TARGET"] == "127.0.0.1:9" and target["STATE"] == "failed"
        (one,) = rows(asked.run("connections", "--tunnel", "a"))
        assert one["CLIENT"] == "{}:{}".format(*client.sock.getsockname()) and one["TARGET"] == "internal:echo"
        shown = asked.run("show", one["ID"])
        assert re.search(r"^tunnel +a$", shown, re.M) and "round trip" in shown and "whole life" in shown
        assert asked.run("why", one["ID"]).splitlines()[0]
        assert "\033" not in status + shown


def test_json_is_what_the_daemon_answers(ctl):
    asked = ctl(tunnel("a", "internal:echo"))
    assert [one["name"] for one in asked.json("tunnels")["tunnels"]] == ["a", "admin"]
    assert asked.json("status")["ready"] is True
    assert asked.json("connections", "--sort", "age", "--limit", 1)["connections"][0]["tunnel"] == "admin"
    assert len(rows(asked.run("top", "--rounds", 1))) == 1


def test_kill_drain_reload_and_level(ctl):
    asked = ctl(tunnel("a", "internal:echo"))
    daemon = asked.daemon
    with connect(daemon.address("a"), expects=CLIENT_STREAM) as client:
        transfer(client, client, 1)
        number = asked.json("connections", "--tunnel", "a")["connections"][0]["id"]
        assert asked.run("kill", number) == "killed\n"
        client.expect_reset()
    assert "is not open" in asked.run("kill", number, status=1)
    assert asked.run("drain", "a").startswith("drained")
    assert is_closed(daemon.address("a"))
    assert rows(asked.run("tunnels"))[0]["TUNNEL"] == "a (drained)"
    assert asked.run("undrain", "a") == "open again\n"
    assert echoes(parse_address(asked.json("tunnels")["tunnels"][0]["listen"][0]))
    assert "no tunnel" in asked.run("drain", "x y", status=1)
    assert asked.run("log-level", "debug")
    assert "there is no level 'loud'; it is error, warning" in asked.run("log-level", "loud", status=1)
    assert asked.json("status")["log"]["level"] == "debug"
    assert asked.run("reload") == "reloaded\n"
    daemon.write(daemon.text + "\nnonsense = 1\n")
    assert re.match(r"penstockctl: .*:\d+: unknown keyword 'nonsense'", asked.run("reload", status=1))


def test_ends(ctl):
    """Who ended last, and why; many good ends push no bad one out."""
    asked = ctl(tunnel("a", "internal:echo"), tunnel("dead", f"127.0.0.1:{free_port()}"))
    with connect(asked.daemon.address("dead")) as client:
        client.expect_reset()
    for _ in range(20):
        assert echoes(asked.daemon.address("a"))
    ends = rows(asked.run("ends"))
    assert len([end for end in ends if end["REASON"] == "ok"]) == 12
    (bad,) = [end for end in ends if end["REASON"] != "ok"]
    assert (bad["TUNNEL"], bad["ENDED BY"], bad["REASON"]) == ("dead", "target", "refused"), bad
    assert "Connection refused" in bad["WHY"]
    assert asked.json("ends")["ends"][-1]["reason"] == "refused"


def test_diff(ctl):
    """What a reload would change is told, for how many, and nothing is changed by asking."""
    asked = ctl(tunnel("a", "internal:echo"), tunnel("b", "internal:echo"), tunnel("old", "internal:echo"), workers=1)
    daemon, path = asked.daemon, asked.socket
    admin = tunnel("admin", "internal:admin", listen=f"unix:{path}")
    assert asked.run("diff") == "no differences\n"
    with connect(daemon.address("a"), expects=CLIENT_STREAM) as client:
        transfer(client, client, 100)
        daemon.write(configuration(tunnel("a", "internal:discard"), tunnel("b", "internal:echo"),
                                   tunnel("new", "internal:echo"), admin, workers=3))
        told = {(row["WHERE"], row["WHAT"]): (row["COUNTS FOR"], row["OPEN NOW"]) for row in rows(asked.run("diff"))}
        assert told == {
            ("daemon", "workers: 1 -> 3"): ("after a restart", "2"),
            ('tunnel "a"', 'connect: { "internal:echo" } -> { "internal:discard" }'): ("new connections", "1"),
            ('tunnel "new"', "is new"): ("new connections", "0"),
            ('tunnel "old"', "is gone"): ("new connections", "0"),
        }
        assert asked.json("diff")["differences"][0]["effect"] == "restart"
        assert asked.run("reload") == "reloaded\n"
        # What counts after a restart alone is not in force by that.
        assert [(row["WHAT"], row["COUNTS FOR"]) for row in rows(asked.run("diff"))] == [
            ("workers: 1 -> 3", "after a restart")]
        daemon.write("bad = 1\n")
        assert f"{daemon.config}:1: unknown keyword 'bad'" in asked.run("diff", status=1)
        transfer(client, client, 100)
        assert asked.json("status")["generation"] == 2 and not daemon.find_log("not reloaded")


def test_diff_tells_what_the_files_say(ctl):
    """Not what they leave to the daemon, which has other room for connections beside more listeners."""
    asked = ctl(tunnel("a", "internal:echo"))
    asked.daemon.write(asked.daemon.text + tunnel("new", "internal:echo", ["127.0.0.1:0", "127.0.0.2:0", "127.0.0.3:0"]))
    assert [row["WHERE"] for row in rows(asked.run("diff"))] == ['tunnel "new"']
    asked.daemon.write("max_connections = 7\n" + asked.daemon.text)
    assert re.match(r"max_connections: \d+ -> 7", rows(asked.run("diff"))[0]["WHAT"])


def test_nobody_there(ctl, directory):
    asked = ctl(tunnel("a", "internal:echo"))
    assert "there is no socket" in asked.run("status", status=1, socket=directory / "nothing")
    (directory / "file").touch()
    assert "nobody answers at" in asked.run("status", status=1, socket=directory / "file")
    asked.daemon.stop()
    assert "is penstockd running" in asked.run("status", status=1)


@pytest.mark.parametrize("arguments, said", [
    ((), "usage: penstockctl"),
    (("nothing",), "penstockctl: there is no command nothing; see penstockctl --help"),
    (("statsu",), "penstockctl: there is no command statsu; did you mean status?"),
    (("show",), "penstockctl: write show ID; see"),
    (("kill", "1", "2"), "penstockctl: write kill ID; see"),
    (("status", "all"), "penstockctl: write status alone; see"),
    (("--nothing", "status"), "penstockctl: unrecognized option '--nothing'\nsee penstockctl --help"),
    (("top", "--every", "0"), "from 0.1 to 3600 seconds"),
    (("connections", "--limit", "x"), "this is no count: x"),
    (("status", "--tunnel", "a"), "penstockctl: status takes no --tunnel; see"),
    (("connections", "--direction", "up"), "penstockctl: connections takes no --direction; see"),
])
def test_wrong_usage(arguments, said):
    """Told without any daemon."""
    done = subprocess.run([PENSTOCKCTL, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and said in done.stderr and not done.stdout, done


def test_names_that_nobody_has(ctl):
    """They are mistakes, and what has nothing to show says so."""
    asked = ctl(tunnel("a", "internal:echo", limit="each"), 'limit "each" { per = "source/32" rate = "1MB/s" }\n')
    assert 'there is no tunnel "nobody"' in asked.run("connections", "--tunnel", "nobody", status=1)
    assert "state: one of choosing, opening" in asked.run("connections", "--state", "asleep", status=1)
    assert "a limit has no speed" in asked.run("limit", "each", "speed=1MB/s", status=1)
    assert asked.run("connections", "--tunnel", "a") == asked.run("connections", "--state", "half_open") == "no connections\n"
    assert asked.run("limits", "each").startswith("nobody is there: it has a node for each key")
    assert asked.run("limits").startswith("no limits, or none that anybody uses")
    for act in (["limit", "nobody", "rate=1MB/s"], ["limits", "nobody"]):
        assert 'there is no limit "nobody"; penstockctl limits shows all' in asked.run(*act, status=1)
    assert "penstockctl limits each shows its keys" in asked.run("limit", "each@10.0.0.1", "rate=1MB/s", status=1)
    assert "penstockctl tunnels shows all" in asked.run("drain", "nobody", status=1)
    assert len(rows(asked.run("connections", "--limit", 1))) == 1
    assert asked.run("help") == asked.run("--help")


def on_terminal(asked, *arguments, columns, keys=b"", until=None):
    """What it writes to a terminal of that width, and how it ends; with `keys`, which are pressed when `until` is there."""
    terminal, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 20, columns, 0, 0))
    program = subprocess.Popen([PENSTOCKCTL, *arguments], env={**asked.env, "TERM": "xterm"}, stdin=inner, stdout=inner,
                               stderr=inner, start_new_session=True)
    os.close(inner)
    seen = b""

    def read():
        nonlocal seen
        try:
            while select.select([terminal], [], [], 0)[0]:
                seen += os.read(terminal, 65536)
        except OSError:  # it has ended
            return True
        return False
    if until:
        wait_until(lambda: read() or until in seen, until)
        if callable(keys):
            keys()
        else:
            os.write(terminal, keys)
    wait_until(read, "its end")
    os.close(terminal)
    return program.wait(DEADLINE), seen.decode()


@pytest.mark.parametrize("columns", [40, 60, 80, 300])
def test_a_narrow_terminal(ctl, columns):
    """No line is longer; what matters most is there, and what is cut shows it."""
    asked = ctl(tunnel("a-tunnel-with-quite-a-long-name", "internal:echo", limit="each"),
                'limit "all" { rate = "8MB/s" }\nlimit "each" { parent = "all" per = "source/32" rate = "1MB/s" }\n')
    with connect(asked.daemon.address("a-tunnel-with-quite-a-long-name"), expects=CLIENT_STREAM) as client:
        transfer(client, client, 1000)
        for command, titles in (("connections", ["ID", "TUNNEL", "CLIENT", "UP", "DOWN", "WHY"]), ("tunnels", ["TUNNEL", "OPEN", "UP"]),
                                ("limits", ["LIMIT", "UP", "WAITING"]), ("why", ["ID", "TUNNEL", "CLIENT", "WHY"]),
                                ("targets", ["TUNNEL", "TARGET", "STATE"]), ("top", ["penstock", "by rate", "k kill", "UP", "DOWN"])):
            status, seen = on_terminal(asked, command, *(["--rounds", "1", "--every", "0.1"] if command == "top" else []),
                                       columns=columns)
            assert status == 0
            lines = re.sub(r"\033\[[?\d]*[a-zA-Z]", "", seen).splitlines()
            assert max(map(len, lines)) <= columns, (command, lines)
            assert all(title in seen for title in titles[:None if columns >= 60 else 1]), (command, seen)
            assert ("…" in seen) <= (columns < 300)
    assert "IN ALL" in on_terminal(asked, "connections", columns=300)[1]


def test_top_when_the_daemon_ends(ctl):
    """The terminal is given back before it is said."""
    asked = ctl(tunnel("a", "internal:echo"))
    status, seen = on_terminal(asked, "top", "--every", "0.1", columns=80, until=b"k kill", keys=asked.daemon.stop)
    assert status == 1 and re.search(r"\033\[\?1049l.*penstockctl: .*is penstockd running", seen, re.S), seen


def test_an_answer_that_cannot_be_written(ctl):
    asked = ctl(tunnel("a", "internal:echo"))
    for arguments in ("status", "--json tunnels", "top", "--help", "--version"):
        for how in (">/dev/full", ">&-"):
            done = subprocess.run(["sh", "-c", f"{PENSTOCKCTL} {arguments} {how}"], env=asked.env, capture_output=True,
                                  text=True, check=False)
            assert done.returncode == 1 and done.stderr.startswith("penstockctl: cannot write"), done


def test_numbers_that_are_none(ctl):
    asked = ctl(tunnel("a", "internal:echo"))
    assert "is no connection's number" in asked.run("kill", "../reload", status=1)
    assert "is not open" in asked.run("show", "999", status=1)


def test_a_daemon_elsewhere(ctl, start, directory):
    """Through a tunnel of one's own, with one's own certificate and the rights that it gives there."""
    authority = Authority(directory)
    there, here = authority.issue("there"), authority.issue("ops")
    remote = ctl(tunnel("far", "internal:admin", accept_filters=["tls:admin"]),
                 section("tls", "admin", certificate=there[0], key=there[1], client_ca=authority.certificate),
                 'admin { change = { "cn:ops" } }\n')
    host, port = remote.daemon.address("far")
    start(configuration(tunnel("there", f"{host}:{port}", listen=f"unix:{directory}/there.sock", connect_filters=["tls:out"]),
                        section("tls", "out", ca=authority.certificate, server_name="there", certificate=here[0], key=here[1])))
    assert f"pid {remote.daemon.pid}" in remote.run("status", socket=directory / "there.sock")
    assert remote.run("reload", socket=directory / "there.sock") == "reloaded\n"
    assert remote.daemon.wait_log("reload asked for", cn="ops")


def test_limits(ctl):
    asked = ctl(tunnel("a", "internal:echo", limit="each"), 'limit "all" { rate = "8MB/s" }\n',
                'limit "each" { parent = "all"  per = "source/32"  up = "1MB/s" }\n')
    with connect(asked.daemon.address("a"), expects=CLIENT_STREAM) as client:
        transfer(client, client, 20_000)
        all_, each = rows(asked.run("limits"))
        assert all_["LIMIT"] == "all" and all_["UP"] == "8.00 MB/s" and all_["TOTAL"] == "20.0 kB"
        assert each["LIMIT"] == "└ each 127.0.0.1/32" and each["UP"] == "1.00 MB/s" and each["DOWN"] == "-"
        assert asked.run("limit", "all", "down=20MB/s", "up=2MB/s").startswith("done")
        assert [one["down"]["rate"] for one in asked.json("limits", "all")["limits"]] == [20_000_000]
        assert asked.run("charge", "each@127.0.0.1/32", "90MB", "--direction", "up") == "charged\n"
        assert "debt" in asked.run("limits", "each")
        assert asked.run("credit", "each@127.0.0.1/32", "900MB") == "credited\n"
        assert asked.run("reset", "all") == "done\n"
        told = [line.text for line in asked.daemon.wait_log("limit ", count=4)]
        assert told == ['limit "all" changed: up 2MB/s, down 20MB/s, by unix:uid=0',
                        'limit "each" of 127.0.0.1/32 changed: up charge 90MB, by unix:uid=0',
                        'limit "each" of 127.0.0.1/32 changed: up credit 900MB, down credit 900MB, by unix:uid=0',
                        'limit "all" changed: up totals begin anew, down totals begin anew, by unix:uid=0'], told
        assert "say which, in penstockctl as each@KEY" in asked.run("charge", "each", "1MB", status=1)
        assert "is no new value" in asked.run("limit", "each", "5MB/s", status=1)
        assert "there is no limit" in asked.run("limit", "nobody", "rate=1MB/s", status=1)


def test_top_on_a_terminal(ctl):
    asked = ctl(tunnel("a", "internal:echo"))
    with connect(asked.daemon.address("a"), expects=CLIENT_STREAM) as client:
        transfer(client, client, 1)
        pid, terminal = pty.fork()
        if pid == 0:
            os.execve(PENSTOCKCTL, [PENSTOCKCTL, "top", "--tunnel", "a", "--every", "0.2"],
                      {**asked.env, "TERM": "xterm"})
        seen = b""

        def shows(text):
            nonlocal seen
            try:
                while select.select([terminal], [], [], 0)[0]:
                    seen += os.read(terminal, 65536)
            except OSError:  # it has ended
                pass
            return text in seen

        try:
            wait_until(lambda: shows(b"internal:echo"), "the connection")
            os.write(terminal, b"b")
            wait_until(lambda: shows(b"by bytes"), "another order")
            os.write(terminal, b"k")
            wait_until(lambda: shows(b"y or n"), "the question")
            os.write(terminal, b"y")
            client.expect_reset()
            os.write(terminal, b"q")
            wait_until(lambda: shows(b"\033[?1049l"), "the old screen")
            _, status = os.waitpid(pid, 0)
            assert os.waitstatus_to_exitcode(status) == 0
        finally:
            os.close(terminal)


def test_completion(ctl):
    asked = ctl(tunnel("web", "internal:echo"))
    script = Path(__file__).resolve().parents[2] / "ctl" / "completion.bash"

    def complete(*words):
        text = (f'. {script}; COMP_WORDS=({" ".join(words)!s} ""); COMP_CWORD={len(words)}; _penstockctl; '
                'echo "${COMPREPLY[@]}"')
        path = f"{Path(PENSTOCKCTL).parent}:{os.environ['PATH']}"
        return subprocess.run(["bash", "-c", text], env={**asked.env, "PATH": path}, capture_output=True, text=True,
                              check=True).stdout.split()

    assert {"status", "why", "reload"} <= set(complete("penstockctl"))
    assert complete("penstockctl", "drain") == complete("penstockctl", "undrain") == ["web", "admin"]
    assert "debug" in complete("penstockctl", "log-level")
    assert complete("penstockctl", "kill")
