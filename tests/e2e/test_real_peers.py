"""Programs that people really put behind and before a tunnel."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from daemon import configuration, tunnel
from peers import MIB
from programs import Server, free_port, peer, postgres_server, program, redis_server, run


@pytest.fixture
def memory_directory():
    """A directory in memory, for big files."""
    path = Path(tempfile.mkdtemp(prefix="penstock-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def through(start):
    """through(port) gives the port of a tunnel to that port, with two workers."""
    def make(port, **options):
        daemon = start(configuration(tunnel("peer", f"127.0.0.1:{port}"), workers=2, **options))
        daemon.port = daemon.address("peer")[1]
        return daemon
    return make


def sha256(*paths):
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while piece := file.read(MIB):
                digest.update(piece)
    return digest.hexdigest()


def make_file(path, size):
    """Bytes that differ from block to block."""
    block = os.urandom(min(size, 8 * MIB))
    with open(path, "wb") as file:
        for number in range(0, size, len(block)):
            piece = number.to_bytes(8, "big") + block[8:] if size >= 8 else block
            file.write(piece[:size - number])


# --- curl and nginx

@pytest.fixture
def nginx(memory_directory):
    port = free_port()
    (memory_directory / "nginx.conf").write_text(f"""
        daemon off; master_process off; pid nginx.pid; error_log stderr error;
        events {{ worker_connections 4096; }}
        http {{ access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
                uwsgi_temp_path uwsgi; scgi_temp_path scgi; sendfile on;
                server {{ listen 127.0.0.1:{port} backlog=4096; root {memory_directory}/files;
                          location /short/ {{ keepalive_timeout 0; return 200 "short\\n"; }} }} }}""")
    (memory_directory / "files").mkdir()
    with Server(memory_directory, "nginx", "-p", memory_directory, "-e", "stderr", "-c", memory_directory / "nginx.conf",
                port=port) as server:
        server.port, server.files = port, memory_directory / "files"
        yield server


@pytest.mark.slow
def test_curl_nginx(nginx, through, report):
    peer("nginx", "nginx", "-v", command="nginx -c nginx.conf")
    peer("curl", "curl", "--version", command="curl http://127.0.0.1:PORT/SIZE | sha256sum")
    daemon = through(nginx.port)
    sizes = (1, 1000, 65536, 1 * MIB + 1, 100 * MIB, 1024 * MIB)
    for size in sizes:
        file = nginx.files / str(size)
        make_file(file, size)
        expected = sha256(file)
        done = subprocess.run([program("sh"), "-c", f"{program('curl')} -sS --fail --max-time 120 "
                               f"http://127.0.0.1:{daemon.port}/{size} | sha256sum"],
                              capture_output=True, text=True, check=True)
        assert done.stdout.split()[0] == expected, f"{size} bytes: {done.stderr}"
        file.unlink()
    for line in daemon.ended("peer", len(sizes)):
        assert line["reason"] == "ok"
    report(f"curl and nginx: {', '.join(map(str, sizes))} bytes, checksums equal")


@pytest.mark.slow
@pytest.mark.sanitize
def test_thousands_of_short_http_connections(nginx, through, report):
    count = 4000
    peer("curl, many", "curl", "--version",
         command=f"curl --parallel --parallel-max 64 http://127.0.0.1:PORT/short/?[1-{count}]")
    daemon = through(nginx.port)
    sockets = daemon.descriptors("socket:")
    output = run("curl", "-sS", "--fail", "--no-progress-meter", "--parallel", "--parallel-max", 64, "-o", os.devnull, "-w", "%{http_code}\n",
                 f"http://127.0.0.1:{daemon.port}/short/?[1-{count}]")
    assert output.split() == [b"200"] * count
    assert all(line["reason"] == "ok" for line in daemon.ended("peer", count))
    daemon.wait_sockets(sockets)
    report(f"curl and nginx: {count} short connections")


# --- iperf3

@pytest.mark.slow
@pytest.mark.parametrize("direction", ["", "--reverse", "--bidir"])
def test_iperf3(directory, through, direction, report):
    command = f"iperf3 -c 127.0.0.1 -p PORT -P 4 -t 2 {direction}".strip()
    peer("iperf3", "iperf3", "--version", command=command)
    port = free_port()
    # is_listening would take its only test: let the server itself tell.
    with Server(directory, "iperf3", "-s", "-p", port, "--forceflush") as server:
        server.wait(lambda: b"listening" in server.log.read_bytes(), "listening")
        daemon = through(port)
        output = json.loads(run("iperf3", "-c", "127.0.0.1", "-p", daemon.port, "-P", 4, "-t", 2, "-J",
                                *([direction] if direction else [])))
    end = output["end"]
    assert "error" not in output
    keys = ["sum_sent", "sum_received"] + (["sum_sent_bidir_reverse", "sum_received_bidir_reverse"] if "bidir" in direction else [])
    for key in keys:
        assert end[key]["bytes"] > 10 * MIB, f"{key}: {end[key]}"
    rates = ", ".join(f"{key} {end[key]['bits_per_second'] / 8 / MIB:.0f} MiB/s" for key in keys[1::2])
    report(f"{command}: {rates}")


# --- redis

@pytest.fixture
def redis(directory):
    with redis_server(directory) as server:
        yield server


@pytest.mark.slow
def test_redis(redis, through, report):
    peer("redis-server", "redis-server", "--version", command="redis-server --port PORT")
    peer("redis-cli", "redis-cli", "--version", command="redis-cli -p PORT -x set big < 3 MiB")
    benchmark = "redis-benchmark -p PORT -t set,get -n 20000 -c 50 -P 16 -q"
    peer("redis-benchmark", "redis-benchmark", "--version", command=benchmark)
    daemon = through(redis.port)
    cli = ("redis-cli", "-p", daemon.port)
    assert run(*cli, "ping") == b"PONG\n"
    value = os.urandom(3 * MIB).hex()[:3 * MIB].encode()
    assert run(*cli, "-x", "set", "big", data=value) == b"OK\n"
    assert run(*cli, "get", "big") == value + b"\n"
    output = run(*benchmark.replace("PORT", str(daemon.port)).split())
    rates = re.findall(rb"(SET|GET): ([\d.]+) requests per second", output)
    assert [name for name, _ in rates] == [b"SET", b"GET"]
    report(f"{benchmark}: {', '.join(f'{name.decode()} {float(rate):.0f}/s' for name, rate in rates)}")


# --- OpenSSH

@pytest.fixture
def sshd(directory):
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    for name in ("host", "user"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name)
    shutil.copy(directory / "user.pub", directory / "authorized_keys")
    (directory / "sshd_config").write_text(f"""
        HostKey {directory}/host
        AuthorizedKeysFile {directory}/authorized_keys
        StrictModes no
        UsePAM no
        PermitRootLogin prohibit-password
        PidFile none\n""")
    port = free_port()
    with Server(directory, "sshd", "-D", "-e", "-f", directory / "sshd_config", "-o", f"ListenAddress=127.0.0.1:{port}",
                port=port) as server:
        server.port = port
        yield server


def test_openssh(sshd, directory, through):
    peer("sshd", "ssh", "-V", command="sshd -D -f sshd_config")
    peer("ssh-keyscan", "ssh", "-V", command="ssh-keyscan -p PORT 127.0.0.1")
    peer("ssh", "ssh", "-V", command="ssh -p PORT 127.0.0.1 sha256sum < 20 MiB")
    daemon = through(sshd.port)
    scanned = run("ssh-keyscan", "-t", "ed25519", "-p", daemon.port, "127.0.0.1")
    assert scanned.split()[1:3] == (directory / "host.pub").read_bytes().split()[:2]
    value = os.urandom(20 * MIB)
    output = run("ssh", "-F", "none", "-i", directory / "user", "-p", daemon.port, "-o", "StrictHostKeyChecking=no",
                 "-o", f"UserKnownHostsFile={directory}/known", "-o", "BatchMode=yes", "127.0.0.1", "sha256sum", data=value)
    assert output.split()[0].decode() == hashlib.sha256(value).hexdigest()


# --- PostgreSQL

@pytest.fixture
def postgres(directory):
    with postgres_server(directory) as server:
        yield server


@pytest.mark.slow
def test_postgresql(postgres, through):
    peer("postgres", "postgres", "--version", command="postgres -D cluster -p PORT")
    peer("psql", "psql", "--version", command="psql -h 127.0.0.1 -p PORT -c …")
    daemon = through(postgres.port)
    def psql(sql, **options):
        return run("psql", "-X", "-q", "-A", "-t", "-h", "127.0.0.1", "-p", daemon.port, "-U", "tester", "-d", "postgres",
                   "-v", "ON_ERROR_STOP=1", "-c", sql, **options)
    rows = "".join(f"{number}\t{hashlib.md5(str(number).encode()).hexdigest()}\n" for number in range(200_000)).encode()
    psql("create table pipes (number int primary key, word text)")
    psql("copy pipes from stdin", data=rows)
    assert psql("select count(*), bool_and(word = md5(number::text)) from pipes") == b"200000|t\n"
    assert psql("copy (select * from pipes order by number) to stdout") == rows


# --- socat

def socat_target(directory, *arguments):
    """A listening socat on a port of the kernel's choice."""
    server = Server(directory, "socat", "-d", "-d", *arguments)
    def port():
        found = re.search(rb"listening on AF=2 127\.0\.0\.1:(\d+)", server.log.read_bytes())
        return found and int(found[1])
    server.port = server.wait(port, "its port")
    return server


def test_socat_half_close(directory, through):
    """The whole answer comes after the client's end of stream."""
    peer("socat", "socat", "-V", command="socat -t 30 - TCP:127.0.0.1:PORT < 20 MiB, to EXEC:\"sort -z\"")
    with socat_target(directory, "TCP-LISTEN:0,bind=127.0.0.1,fork", "EXEC:sort -z") as server:
        daemon = through(server.port)
        value = os.urandom(20 * MIB).replace(b"\0", b"\1") + b"\0"  # one record: nothing comes out before all is in
        assert run("socat", "-t", 30, "-", f"TCP:127.0.0.1:{daemon.port}", data=value) == value
        assert daemon.ended("peer")["reason"] == "ok"


@pytest.mark.slow
def test_socat_upload(directory, memory_directory, through):
    peer("socat, one way", "socat", "-V", command="socat -u FILE:300MiB TCP:127.0.0.1:PORT, to CREATE:copy")
    make_file(memory_directory / "file", 300 * MIB)
    with socat_target(directory, "-u", "TCP-LISTEN:0,bind=127.0.0.1", f"CREATE:{memory_directory}/copy") as server:
        daemon = through(server.port)
        run("socat", "-u", f"FILE:{memory_directory}/file", f"TCP:127.0.0.1:{daemon.port}")
        server.process.wait(60)
    assert sha256(memory_directory / "copy") == sha256(memory_directory / "file")
    assert daemon.ended("peer")["reason"] == "ok"
