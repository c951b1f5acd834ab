"""Programs that people trust, straight and through chains of filters: what they tell in the end is the same."""

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
from pathlib import Path

import pytest

from chains import make_certificate, over_a_pair, over_sockets, stuttering
from daemon import configuration, tunnel, wait_until
from peers import KIB, MIB
from programs import Server, free_port, peer, postgres_server, redis_server, run

# By name: who joins front and back of the chain, and the chain.
WAYS = {
    "TLS": (over_sockets, ("tls",)),
    "TLS+zlib": (over_sockets, ("tls", "zlib")),
    "PROXY+TLS+zlib over an internal name": (over_a_pair, ("proxy_protocol", "tls", "zlib")),
}


@pytest.fixture
def ways(start, directory):
    """ways(port) gives (name, port) for each way to that port: straight, a plain tunnel, chains; two workers each."""
    def make(port):
        make_certificate(directory)
        target = f"127.0.0.1:{port}"
        plain = start(configuration(tunnel("a", target), workers=2))
        fronts = {name: join(start, stuttering(chain), target, workers=2, certificates=directory)
                  for name, (join, chain) in WAYS.items()}
        ports = {"straight": port, "plain": plain.address("a")[1]}
        for name, front in fronts.items():
            ports[name] = (front[0] if isinstance(front, tuple) else front).address("a")[1]
        return ports.items()
    return make


def all_the_same(ways, tell):
    """tell(port, number) for each way; all must say what the first said."""
    first = None
    for number, (name, port) in enumerate(ways):
        told = tell(port, number)
        first = told if first is None else first
        assert told == first, name


def tree(top):
    """Names and contents below a directory."""
    return {str(path.relative_to(top)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(Path(top).rglob("*")) if path.is_file() and ".git" not in path.parts}


def plant(top, seed):
    """A tree of files of many sizes, some that compress and some that do not."""
    chance = random.Random(seed)
    for number in range(60):
        path = top / f"branch{number % 7}" / f"leaf{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = chance.choice((0, 1, 100, 4 * KIB, 70 * KIB, 200 * KIB))
        path.write_bytes(chance.randbytes(size) if number % 2 else b"pipe and gate %d\n" % number * (size // 15))


# --- redis

COMMANDS = b"".join(b"set key%d %s\nappend key%d tail\nstrlen key%d\nlpush list %d\nlrange list 0 5\nhset hash f%d %d\n"
                    % (n, b"v" * (n * 37 % 900), n, n, n, n, n) for n in range(300)) + b"info nonsense\nnosuchcommand\nhgetall hash\n"


@pytest.mark.slow
@pytest.mark.sanitize
def test_redis(directory, ways):
    benchmark = "redis-benchmark -p PORT -t set,incr,lpush,zadd,mset -n 2000 -c 20 -P 8 -d 100 -q"
    peer("redis-benchmark, straight and through chains", "redis-benchmark", "--version", command=benchmark)
    peer("redis-cli, straight and through chains", "redis-cli", "--version", command="redis-cli -p PORT < commands")

    def tell(port, _):
        run("redis-cli", "-p", port, "flushall")
        output = run(*benchmark.replace("PORT", str(port)).split()).decode()
        names = re.findall(r"(\S+): [\d.]+ requests per second", output)
        return names, run("redis-cli", "-p", port, data=COMMANDS), run("redis-cli", "-p", port, "debug", "digest")

    with redis_server(directory, "--enable-debug-command", "local") as server:
        all_the_same(ways(server.port), tell)


# --- PostgreSQL

@pytest.mark.slow
def test_pgbench(directory, ways):
    """The balances behind the same transactions."""
    initialise, work = "pgbench -i -q -s 1", "pgbench -n -c 4 -j 2 -t 25 --random-seed=1"
    peer("pgbench, straight and through chains", "pgbench", "--version", command=f"{initialise}, then {work}")
    sums = ("select md5(string_agg(aid || ':' || abalance, ',' order by aid)), count(*) from pgbench_accounts union all "
            "select md5(string_agg(tid || ':' || tbalance, ',' order by tid)), count(*) from pgbench_tellers union all "
            "select md5(string_agg(concat(tid, bid, aid, delta), ',' order by aid, tid, delta)), count(*) from pgbench_history")

    def tell(port, _):
        where = ["-h", "127.0.0.1", "-p", port, "-U", "tester"]
        run(*initialise.split(), *where, "postgres")
        output = run(*work.split(), *where, "postgres").decode()
        done = re.findall(r"number of (?:transactions actually processed|failed transactions): (\d+)", output)
        assert done == ["100", "0"], output
        return run("psql", "-X", "-q", "-A", "-t", *where, "-d", "postgres", "-c", sums)

    with postgres_server(directory) as server:
        all_the_same(ways(server.port), tell)


# --- git

def git(*arguments, at):
    return run("git", "-C", at, *arguments, env=dict(
        os.environ, HOME=str(at), GIT_CONFIG_NOSYSTEM="1", GIT_TERMINAL_PROMPT="0", GIT_AUTHOR_NAME="a", GIT_AUTHOR_EMAIL="a@example",
        GIT_COMMITTER_NAME="a", GIT_COMMITTER_EMAIL="a@example", GIT_AUTHOR_DATE="@0 +0000", GIT_COMMITTER_DATE="@0 +0000"))


@pytest.mark.slow
def test_git(directory, ways):
    """Clone, and push what was changed."""
    peer("git, straight and through chains", "git", "--version", command="git clone git://127.0.0.1:PORT/origin, git push")
    work, port = directory / "work", free_port()
    work.mkdir()
    git("init", "-q", "-b", "main", at=work)
    for seed in range(3):
        plant(work, seed)
        git("add", "-A", at=work)
        git("commit", "-q", "-m", f"change {seed}", at=work)
    git("clone", "-q", "--bare", work, directory / "served" / "origin", at=directory)

    def tell(port, number):
        clone = directory / f"clone{number}"
        git("clone", "-q", f"git://127.0.0.1:{port}/origin", clone, at=directory)
        git("fsck", "--strict", at=clone)
        plant(clone, "pushed")
        git("add", "-A", at=clone)
        git("commit", "-q", "-m", "pushed", at=clone)
        git("push", "-q", "origin", f"HEAD:refs/heads/way{number}", at=clone)
        served = git("rev-parse", f"way{number}", at=directory / "served" / "origin")
        return tree(clone), git("rev-parse", "HEAD", at=clone), served

    with Server(directory, "git", "daemon", "--reuseaddr", "--listen=127.0.0.1", f"--port={port}", "--export-all",
                "--enable=receive-pack", f"--base-path={directory}/served", port=port, env=dict(os.environ, HOME=str(directory))):
        all_the_same(ways(port), tell)
        git("fsck", "--strict", at=directory / "served" / "origin")


# --- rsync

@pytest.mark.sanitize
def test_rsync(directory, ways):
    """A tree fetched, the same changed and brought back."""
    peer("rsync, straight and through chains", "rsync", "--version", command="rsync -a rsync://127.0.0.1:PORT/…, both ways")
    port, served = free_port(), directory / "served"
    plant(served / "given", "given")
    (served / "taken").mkdir()
    file = directory / "rsyncd.conf"
    file.write_text(f"port = {port}\naddress = 127.0.0.1\nuse chroot = no\npid file = {directory}/rsyncd.pid\n"
                    f"[files]\npath = {served}\nread only = no\nuid = {os.getuid()}\ngid = {os.getgid()}\n")

    def tell(port, number):
        url, copy = f"rsync://127.0.0.1:{port}/files", directory / f"copy{number}"
        run("rsync", "-a", f"{url}/given/", copy)
        fetched = tree(copy)
        assert fetched == tree(served / "given")
        back = served / "taken" / str(number)
        shutil.copytree(served / "given", back)  # so that only differences travel
        plant(copy, "changed")
        run("rsync", "-ac", "--delete", f"{copy}/", f"{url}/taken/{number}")
        return fetched, tree(back)

    with Server(directory, "rsync", "--daemon", "--no-detach", "--config", file, port=port):
        all_the_same(ways(port), tell)


# --- iperf3

SENT = 8 * MIB
IPERF_BLOCK = 128 * KIB


@contextlib.contextmanager
def iperf3_server(directory, *options):
    port = free_port()
    # Whether a port listens would take its only test: let the server itself tell.
    with Server(directory, "iperf3", "-s", "-p", port, "--forceflush", *options) as server:
        server.wait(lambda: b"listening" in server.log.read_bytes(), "listening")
        yield port


def iperf3(command, port):
    """The server takes one test at a time, and the end of the one before may still be on its way to it."""

    def ask():
        output = json.loads(run(*command.replace("PORT", str(port)).split(), "-J"))
        return None if "busy" in output.get("error", "") else output

    output = wait_until(ask, "iperf3's server")
    assert "error" not in output, output
    return output["end"]


def test_iperf3_up(directory, ways):
    """What was sent; its end is told over another connection, which may be the faster one, also straight."""
    command = f"iperf3 -c 127.0.0.1 -p PORT -P 2 -n {SENT}"
    peer("iperf3, straight and through chains", "iperf3", "--version", command=command)

    with iperf3_server(directory) as port:
        for name, way in ways(port):
            end = iperf3(command, way)
            sent = end["sum_sent"]["bytes"]
            assert SENT <= sent <= SENT + 2 * IPERF_BLOCK, name  # its streams count together, after each block
            assert end["sum_received"]["bytes"] <= sent, name


@pytest.mark.sanitize
def test_iperf3_down(directory, ways):
    """A whole file, byte for byte."""
    command = f"iperf3 -c 127.0.0.1 -p PORT --reverse -n {SENT} -F {directory}/copy"
    peer("iperf3, straight and through chains", "iperf3", "--version", command="iperf3 -c 127.0.0.1 -p PORT --reverse -n SIZE -F FILE")
    given, copy = directory / "given", directory / "copy"
    given.write_bytes(os.urandom(SENT))

    def tell(port, _):
        received = iperf3(command, port)["sum_received"]["bytes"]
        try:
            return received, hashlib.sha256(copy.read_bytes()).digest()
        finally:
            copy.unlink()

    with iperf3_server(directory, "-F", given) as port:
        all_the_same(ways(port), tell)
