"""The command line and --check: every mistake of a file in one go, each with its line, and nothing started."""

import os
import random
import re
import socket
import subprocess

import pytest

from daemon import PENSTOCKD, check, configuration, run_penstockd, tunnel
from peers import MIB, echoes

GOOD = configuration(tunnel("a", "internal:echo"))

# Each file is wrong in one way: its text, the line blamed (0 = the file as a whole), and words of the message.
MISTAKES = {
    "unknown keyword": ("wrokers = 2\n", 1, "workers"),
    "unknown keyword in a tunnel": ('\ntunnel "b" {\n listen = { "127.0.0.1:0" }\n connect = { "internal:echo" }\n max_conections = 1\n}\n',
                                    5, "max_connections"),
    "unknown section": ('tunel "b" { }\n', 1, "tunnel"),
    "no unit": ('timeouts { idle = "10" }\n', 1, "unit"),
    "unknown unit": ('timeouts { idle = "10 fortnights" }\n', 1, "space"),
    "sign": ('timeouts { idle = "-10s" }\n', 1, "sign"),
    "fraction": ('timeouts { idle = "1.5h" }\n', 1, ""),
    "overflow": ('timeouts { idle = "99999999999999999999h" }\n', 1, ""),
    "overflow of a product": ('max_memory = "18446744073709551TiB"\n', 1, ""),
    "size without a unit": ('max_memory = "64"\n', 1, "MiB"),
    "below its range": ('max_memory = "1KiB"\n', 1, ""),
    "above its range": ("workers = 100000\n", 1, ""),
    "not a number": ("workers = many\n", 1, ""),
    "octal that is none": ("workers = 0x2\n", 1, ""),
    "repeated keyword": ("workers = 1\n\nworkers = 2\n", 3, "twice"),
    "repeated title": ('tunnel "a" { listen = { "internal:x" }\n connect = { "internal:echo" } }\n', 1, ""),
    "no listen": ('tunnel "b" { connect = { "internal:echo" } }\n', 1, "listen"),
    "no connect": ('tunnel "b" { listen = { "127.0.0.1:0" } }\n', 1, "connect"),
    "bad port": (tunnel("b", "127.0.0.1:70000"), 3, "70000"),
    "no port": (tunnel("b", "127.0.0.1"), 3, "port"),
    "IPv6 without brackets": (tunnel("b", "::1:80"), 3, r"\["),
    "link-local without a zone": (tunnel("b", "internal:echo", "[fe80::1]:80"), 2, r"such as \[fe80::1%eth0\]:80"),
    "link-local target without a zone": (tunnel("b", ["127.0.0.1:9", "[fe80::1]:80"]), 3, r"such as \[fe80::1%eth0\]:80"),
    "link-local source without a zone": (tunnel("b", "[fe80::2%1]:80", bind="fe80::1"), 4, "such as fe80::1%eth0"),
    "listening on a name": (tunnel("b", "internal:echo", "localhost:80"), 2, ""),
    "host bits": (tunnel("b", "internal:echo", allow=["10.0.0.1/8"]), 4, "10.0.0.0/8"),
    "unknown choice": (tunnel("b", "internal:echo", balance="random"), 4, "round_robin"),
    "unknown internal name": (tunnel("b", "internal:ecko"), 3, "ecko"),
    "itself": (tunnel("b", "127.0.0.1:81", "127.0.0.1:81"), 3, "itself"),
    "cycle": (tunnel("b", "internal:c", "internal:b") + tunnel("c", "internal:b", "internal:c"), None, "b → c → b"),
    "one address twice": (tunnel("b", "internal:echo", "127.0.0.1:81") + tunnel("c", "internal:echo", "127.0.0.1:81"), 6, "81"),
    "syntax": ("tunnel {\n", 1, ""),
    "a beginning": (tunnel("b", "internal:echo", max_conn=5), 4, "did you mean 'max_connections'"),
    "in capitals": ('Tunnel "b" { }\n', 1, "did you mean 'tunnel'"),
    "a dash": (tunnel("b", "internal:echo").replace("listen", "accept-filters"), 2, "did you mean 'accept_filters'"),
    "nearer than another section's": (tunnel("b", "internal:echo", weight=5), 4, "did you mean 'weights'"),
    "nginx's semicolon": (tunnel("b", "internal:echo").replace(" }\n", " };\n", 1), 2, "';' ends nothing here"),
    "nginx's section": ("stream {\n}\n", 1, 'write tunnel "NAME"'),
    "HAProxy's section": ("frontend x\n", 1, 'write tunnel "NAME"'),
    "stunnel's section": ("[x]\naccept = 80\n", 1, 'write tunnel "NAME"'),
    "stunnel's word": (tunnel("b", "internal:echo", accept="127.0.0.1:1"), 4, "write listen"),
    "HAProxy's word": (tunnel("b", "internal:echo", maxconn=5), 4, "write max_connections"),
    "a section of the same name": (tunnel("b", "internal:echo")[:-2] + 'log { level = "info" }\n}\n', 4, "'log' does not belong"),
    "a filter's section inside": (tunnel("b", "internal:echo", tls="edge"), 4, 'accept_filters = "tls:NAME"'),
    "a limit's section inside": (tunnel("b", "internal:echo")[:-2] + 'limit { rate = "1MB/s" }\n}\n', 4,
                                 'write limit = "NAME" here, and limit "NAME"'),
    "a rate as a limit": (tunnel("b", "internal:echo", limit="10MB/s"), 4, "is not the name of a limit"),
    "a value for a section": (tunnel("b", "internal:echo", check="true"), 4, "write check { ... }"),
    "no braces around two": (tunnel("b", "internal:echo").replace('{ "internal:echo" }', '"internal:echo" "internal:discard"'), 3,
                             "several values as { VALUE, VALUE }"),
    "no comma between two": (tunnel("b", "internal:echo").replace('"internal:echo" }', '"internal:echo" "internal:discard" }'), 3,
                             "with a comma between values"),
    "a filter's title": ('zlib "fast" { }\n' + tunnel("b", "internal:echo", accept_filters=["fast"]), 5, "did you mean 'zlib:fast'"),
    "another's filter": (tunnel("b", "internal:echo", connect_filters=["send-proxy"]), 4, "did you mean 'proxy_protocol'"),
    "no filter at all": (tunnel("b", "internal:echo", connect_filters=["rot13"]), 4, "write one of .*tls, "),
    "two filters in one text": (tunnel("b", "internal:echo", connect_filters="zlib, zstd"), 4, "write a list"),
    "everybody": (tunnel("b", "internal:echo", allow="all"), 4, "0.0.0.0/0"),
    "networks in one text": (tunnel("b", "internal:echo", allow="10.0.0.0/8, ::1"), 4, "write a list"),
    "per client": ('limit "l" { per = "source" }\n', 1, "source/32 for each client address"),
    "a path as a log target": ('log { target = "/var/log/x" }\n', 1, "write file:/var/log/x"),
    "an internal name's beginning": (tunnel("b", "internal:adm"), 3, "did you mean internal:admin"),
    "open comment": ("workers = 1\n/* what\n", 2, "comment"),
    "no directory for the log": ('log { level = "info"\n target = "file:nowhere/log" }\n', 2, "nowhere/log: No such file"),
    "a directory as the log": ('log { target = "file:." }\n', 1, "name a file that the daemon may write"),
    "broken include": ('\ninclude("nowhere.conf")\n', 2, "nowhere.conf"),
    "a pattern of directories": ('include("*/*.conf")\n', 1, "only for the names of files"),
    "a pattern in no directory": ('include("nowhere/*.conf")\n', 1, "nowhere/.* cannot be read"),
    "included directory": ('include(".")\n', 1, "directory"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake(directory, name):
    text, line, words = MISTAKES[name]
    path = directory / "penstock.conf"
    path.write_text(text + tunnel("a", "internal:echo"))
    done = check(path)
    assert done.returncode == 1
    place = re.escape(str(path)) + (r":\d+" if line is None else f":{line}" if line else "")
    assert re.search(f"^{place}: .*{words}", done.stdout + done.stderr, re.MULTILINE), done.stderr
    found = re.findall(f"^{re.escape(str(directory))}/[^:]+:(?:\\d+:)? (.*)$", done.stderr, re.MULTILINE)
    assert found and all(re.search("; .", told) for told in found), f"what would be right is not said: {done.stderr}"


def test_a_byte_order_mark_is_skipped(directory):
    (directory / "penstock.conf").write_text("\ufeff" + GOOD)
    assert check(directory / "penstock.conf").returncode == 0


def test_all_mistakes_in_one_go(directory):
    path = directory / "penstock.conf"
    path.write_text('workers = -1\n'
                    'timeouts { idle = "1" half_open = "x" }\n'
                    'nonsense = 5\n'
                    'tunnel "a" {\n'
                    '        listen = { "127.0.0.1:99999" }\n'
                    '        connect = { "internal:nobody" }\n'
                    '        deny = { "300.0.0.0/8" }\n'
                    '}\n')
    done = check(path)
    assert done.returncode == 1
    blamed = [int(line) for line in re.findall(f"^{re.escape(str(path))}:(\\d+): ", done.stderr, re.MULTILINE)]
    assert blamed == [1, 2, 2, 3, 5, 6, 7], done.stderr


@pytest.mark.parametrize("count", [64, 65, 9000])
def test_a_chain_of_internal_names_has_an_end(start, directory, count):
    """A longer one would be too much for the stack at last."""
    chain = [tunnel(f"t{i}", f"internal:t{i + 1}", f"internal:t{i}") for i in range(1, count)]
    text = configuration(tunnel("t0", "internal:t1"), *chain, tunnel(f"t{count}", "internal:echo", f"internal:t{count}"))
    if count == 64:
        assert echoes(start(text).address("t0"))
        return
    path = directory / "penstock.conf"
    path.write_text(text)
    done = check(path)
    line = text[:text.index(f'tunnel "t{count - 65}"')].count("\n") + 1
    assert done.returncode == 1 and done.stderr.startswith(f'{path}:{line}: tunnel "t{count - 65}" leads through more than 64 others')
    assert done.stderr.count("leads through") == 1


def test_mistake_in_an_included_file(directory):
    (directory / "sub").mkdir()
    (directory / "penstock.conf").write_text(GOOD + 'include("sub/more.conf")\n')
    (directory / "sub" / "more.conf").write_text('\ninclude("last.conf")\n')  # relative to its own place
    (directory / "sub" / "last.conf").write_text('\n\nworkers = x\n')
    done = check(directory / "penstock.conf")
    assert done.returncode == 1
    assert "last.conf:3: " in done.stderr
    (directory / "sub" / "last.conf").write_text(tunnel("b", "internal:echo"))
    assert check(directory / "penstock.conf").returncode == 0


def test_good_file(directory):
    path = directory / "penstock.conf"
    path.write_text(GOOD)
    done = check(path)
    assert done.returncode == 0, done.stderr


def test_warning_is_no_mistake(directory):
    path = directory / "penstock.conf"
    path.write_text(tunnel("a", "internal:echo", "0.0.0.0:81") + tunnel("b", "internal:echo", "127.0.0.1:81"))
    done = check(path)
    assert done.returncode == 0
    assert re.search(r":6: warning: .*127\.0\.0\.1:81.*0\.0\.0\.0:81", done.stderr), done.stderr


def test_check_opens_no_listener(directory, start):
    daemon = start(GOOD)
    path = directory / "penstock.conf"
    path.write_text(configuration(tunnel("a", "internal:echo", "{}:{}".format(*daemon.address("a")))))
    assert check(path).returncode == 0


def test_check_changes_nothing(directory):
    """Neither a socket's file, which a start would replace, nor a log."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(f"{directory}/stale")
    path = directory / "penstock.conf"
    path.write_text(configuration(tunnel("a", "internal:echo", [f"unix:{directory}/stale", f"unix:{directory}/new"]),
                                  log={"target": f"file:{directory}/log"}))
    before = {entry.name: entry.stat().st_ino for entry in directory.iterdir()}
    assert check(path).returncode == 0
    assert {entry.name: entry.stat().st_ino for entry in directory.iterdir()} == before


@pytest.mark.parametrize("kind", ["directory", "missing", "fifo", "garbage", "zeros"])
def test_what_is_no_configuration(directory, kind):
    path = directory / "penstock.conf"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "garbage":
        path.write_bytes(random.Random(1).randbytes(10 * MIB))
    elif kind == "zeros":
        path.write_bytes(bytes(10_000))
    for arguments in (("--check",), ()):
        done = run_penstockd("-c", path, *arguments)
        assert done.returncode == 1
        assert done.stderr.startswith(str(path)), done.stderr[:300]
        assert len(done.stderr) < 10_000


def test_unreadable_file(directory):
    path = directory / "penstock.conf"
    path.write_text(GOOD)
    path.chmod(0)
    prefix = [] if os.getuid() else ["setpriv", "--reuid=65534", "--clear-groups"]
    done = subprocess.run([*prefix, PENSTOCKD, "--check", "-c", path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.search(f"{path}: .*Permission denied", done.stderr), done.stderr


def test_command_line():
    assert run_penstockd("--version").stdout.startswith("penstockd ")
    assert "usage" in run_penstockd("--help").stdout
    keywords = run_penstockd("--keywords").stdout
    for word in ("max_connections", "half_open", "balance"):
        assert word in keywords
    assert run_penstockd("--nonsense").returncode == 2
    assert run_penstockd("-c").returncode == 2
