"""A federation in containers: that it trains, and that its walls hold, seen from inside."""

import json
import re
import subprocess
import time
import zipfile
from pathlib import Path

import pytest

from report.loading import load_run
from tests.docker.conftest import Federation, output

SERVICES = ("superlink", "gateway", "client-0", "client-1", "client-2")
CLIENTS = SERVICES[2:]
IMAGES = ("tessera-server", "tessera-client")


@pytest.fixture(scope="module")
def run(federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    runs = tmp_path_factory.mktemp("runs")
    done = federation.tessera("run", "strategy=fedavg", "rounds=3", "seed=1", f"runs={runs}")
    return done.value


def test_it_comes_up_and_all_clients_are_online(federation: Federation) -> None:
    print(f"up after {federation.up_s:.0f} s")
    deadline = time.monotonic() + 120  # a health check comes some seconds after its container
    while True:
        told = federation.tessera("status").value
        healthy = all("(healthy)" in one["status"] for one in told["services"])
        if healthy or time.monotonic() > deadline:
            break
        time.sleep(3)
    assert healthy, told["services"]
    assert [one["status"] for one in told["clients"]] == ["online"] * 3
    assert {one["name"] for one in told["services"]} == set(SERVICES)


def test_fedavg_learns_on_data_that_clients_alone_hold(run: dict[str, object]) -> None:
    folder = Path(str(run["folder"]))
    loaded = load_run(folder)
    assert loaded.finished and loaded.rounds_done == 3
    assert loaded.config["partition.scheme"] == "own"
    assert loaded.final is not None and loaded.final.test is not None
    assert loaded.final.test.primary > 0.6
    assert all(c.outcome == "counted" for r in loaded.rounds for c in r.clients)
    assert (folder / "report.html").stat().st_size > 100_000


def test_the_network_counts_what_we_count_and_its_framing(run: dict[str, object]) -> None:
    loaded = load_run(Path(str(run["folder"])))
    assert loaded.network is not None
    ours = sum(record.bytes_up for record in loaded.rounds)
    assert ours < loaded.network.bytes_up < 1.5 * ours


@pytest.mark.parametrize("service", SERVICES)
def test_the_engine_holds_it_to_the_compose_file(federation: Federation, service: str) -> None:
    told = federation.inspect(service)
    host = told["HostConfig"]
    uid = told["Config"]["User"].partition(":")[0]
    assert uid.isdecimal() and int(uid) > 0
    assert host["ReadonlyRootfs"] and host["Init"] and not host["Privileged"]
    assert host["CapDrop"] == ["ALL"] and not host["CapAdd"]
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert host["LogConfig"]["Config"].keys() >= {"max-size", "max-file"}
    assert host["Memory"] > 0 and host["PidsLimit"] > 0
    assert not any("docker.sock" in mount["Source"] for mount in told["Mounts"])


@pytest.mark.parametrize("service", SERVICES)
def test_seen_from_inside_it_can_do_little(federation: Federation, service: str) -> None:
    code = """
import json, os
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
def writes(path):
    try:
        with open(path, "w"):
            pass
        os.remove(path)
        return True
    except OSError:
        return False
print(json.dumps({
    "uid": os.getuid(), "capabilities": int(status["CapEff"], 16) | int(status["CapPrm"], 16),
    "no_new_privileges": status["NoNewPrivs"].strip(), "init": open("/proc/1/comm").read().strip(),
    "writes": [p for p in ("/x", "/opt/code/x", "/opt/tessera/x", "/credentials/x", "/etc/x")
               if writes(p)],
    "temporary": writes("/tmp/x"),
}))
"""
    done = federation.python(service, code)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["uid"] > 0 and told["capabilities"] == 0
    assert told["no_new_privileges"] == "1"
    assert told["init"] in ("docker-init", "tini")
    assert told["writes"] == [] and told["temporary"]


@pytest.mark.parametrize("number", range(3))
def test_a_client_sees_its_own_data_and_key_alone(federation: Federation, number: int) -> None:
    mounts = federation.inspect(f"client-{number}")["Mounts"]
    folder = federation.deployment.folder
    assert {(m["Source"], m["Destination"], m["RW"]) for m in mounts if m["Type"] == "bind"} == {
        (str(folder / f"clients/client-{number}"), "/credentials", False),
        (str(folder / f"data/client-{number}"), "/data", False),
        (str(folder / f"state/client-{number}"), "/state", True),
    }
    done = federation.python(f"client-{number}", "open('/data/x', 'w')")
    assert "Read-only file system" in done.stderr


def test_only_the_two_ports_are_published(federation: Federation) -> None:
    published = {
        service: {
            (one["HostIp"], int(one["HostPort"]))
            for ports in federation.inspect(service)["NetworkSettings"]["Ports"].values()
            for one in ports or ()
        }
        for service in SERVICES
    }
    deployment = federation.deployment
    assert published["superlink"] == {("127.0.0.1", deployment.control_port)}
    assert published["gateway"] == {("127.0.0.1", deployment.port)}
    assert not any(published[name] for name in CLIENTS)


def _asked(federation: Federation, path: str) -> str:
    """What a client's container is answered on a path of the only server it knows."""
    code = f"""
import ssl, urllib.error, urllib.request
context = ssl.create_default_context(cafile="/credentials/ca.crt")
request = urllib.request.Request("https://gateway:8443{path}", data=b"", method="POST",
                                 headers={{"content-type": "application/protobuf"}})
try:
    print(urllib.request.urlopen(request, context=context, timeout=20).status)
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
"""
    done = federation.python("client-0", code)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("call", ["start-run", "list-nodes", "register-node", "stop-run"])
def test_a_client_cannot_reach_the_control_api(federation: Federation, call: str) -> None:
    assert _asked(federation, f"/v1/control/{call}") == "404 not a call of nodes"
    assert (
        f"refused POST '/v1/control/{call}'" in federation.tessera("logs", "gateway").value["logs"]
    )


def test_a_client_is_let_through_to_the_fleet_api_and_refused_without_its_signature(
    federation: Federation,
) -> None:
    assert _asked(federation, "/v1/fleet/pull-messages").startswith("401")


def test_flower_s_own_command_gets_nowhere_from_a_client(federation: Federation) -> None:
    code = """
import os, pathlib, subprocess
home = pathlib.Path("/tmp/intruder"); home.mkdir(exist_ok=True)
(home / "config.toml").write_text('[superlink]\\ndefault = "x"\\n[superlink.x]\\n'
    'address = "gateway:8443"\\nroot-certificates = "/credentials/ca.crt"\\n')
os.environ["FLWR_HOME"] = str(home)
done = subprocess.run(["flwr", "supernode", "list", "x"], capture_output=True, text=True)
print(done.returncode, done.stdout, done.stderr)
"""
    done = federation.python("client-0", code)
    assert done.stdout.split()[0] != "0", done.stdout
    assert "online" not in done.stdout


def test_no_way_leads_from_a_client_to_the_superlink_or_out(federation: Federation) -> None:
    networks = federation.inspect("superlink")["NetworkSettings"]["Networks"].values()
    address = next(iter(networks))["IPAddress"]
    code = f"""
import socket
for host, port in (("{address}", 9000), ("superlink", 9000)):
    try:
        socket.create_connection((host, port), 5)
        print("reached", host)
    except OSError as error:
        print("no", error)
"""
    done = federation.python("client-1", code)
    assert [line[:3] for line in done.stdout.splitlines()] == ["no ", "no "], done.stdout
    (network,) = federation.inspect("client-1")["NetworkSettings"]["Networks"].values()
    (told,) = json.loads(output("docker", "network", "inspect", network["NetworkID"]))
    assert told["Internal"]


def _secrets(federation: Federation) -> list[bytes]:
    """The planted token, and a line from the middle of every private key."""
    folder = federation.deployment.folder
    keys = [folder / "ca/ca.key", folder / "server/server.key", *folder.glob("clients/*/key")]
    lines = [path.read_bytes().splitlines()[2] for path in keys]
    assert len(lines) == 5 and all(len(line) > 40 for line in lines)
    return [federation.token.encode(), *lines]


def test_no_secret_is_in_logs_or_in_what_the_engine_tells(federation: Federation) -> None:
    told = federation.tessera("logs", "--tail=100000").value["logs"]
    told += "".join(output("docker", "inspect", federation.container(s)) for s in SERVICES)
    told += "".join(output("docker", "history", "--no-trunc", image) for image in IMAGES)
    told += "".join(output("docker", "inspect", image) for image in IMAGES)
    assert len(told) > 10_000
    assert [secret for secret in _secrets(federation) if secret.decode() in told] == []


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_holds_no_secret_no_compiler_and_no_extra_certificate(
    federation: Federation, image: str
) -> None:
    code = """
import pathlib, shutil, sys
own = [p for top in ("/opt/code", "/opt/server", "/tmp", "/root", "/home", "/build", "/usr/local")
       for p in pathlib.Path(top).rglob("*") if p.is_file()]
named = [str(p) for p in own if p.suffix in (".pem", ".key", ".crt", ".env")
         and "certifi" not in p.parts]
wanted = sys.argv[1].encode()
print(len(own), named, [str(p) for p in own if wanted in p.read_bytes()],
      [c for c in ("cc", "gcc", "g++", "clang", "ld", "make") if shutil.which(c)])
"""
    words = ["docker", "run", "--rm", "--network=none", "--user=0", image, "python", "-c", code]
    told = output(*words, federation.token).strip()
    assert re.fullmatch(r"[1-9]\d+ \[\] \[\] \[\]", told), told


def test_the_bundle_holds_source_alone(federation: Federation, tmp_path: Path) -> None:
    from flwr.cli.build import build_fab_from_disk

    from engine.edge.compose import checkout

    bundle = tmp_path / "bundle.zip"
    bundle.write_bytes(build_fab_from_disk(checkout()))
    with zipfile.ZipFile(bundle) as opened:
        names = opened.namelist()
        content = b"".join(opened.read(name) for name in names)
    assert "server/app.py" in names
    suffixes = {Path(name).suffix for name in names if name != ".info/CONTENT"}
    assert suffixes == {".py", ".toml", ".md"}
    assert [secret for secret in _secrets(federation) if secret in content] == []


def test_no_secret_is_in_the_run_folder_or_its_report(
    federation: Federation, run: dict[str, object]
) -> None:
    folder = Path(str(run["folder"]))
    content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert [secret for secret in _secrets(federation) if secret in content] == []


def test_up_again_changes_nothing(federation: Federation) -> None:
    before = {name: federation.container(name) for name in SERVICES}
    federation.tessera("up", "--no-build")
    assert {name: federation.container(name) for name in SERVICES} == before


def test_a_client_with_a_fifth_of_a_core_takes_part(
    federation: Federation, run: dict[str, object], tmp_path: Path
) -> None:
    container = federation.container("client-2")
    output("docker", "update", "--cpu-period=100000", "--cpu-quota=20000", container)
    try:
        output("docker", "restart", container)
        deadline = time.monotonic() + 600
        while True:
            told = federation.tessera("status").value["clients"][2]
            since = str(federation.inspect("client-2")["State"]["StartedAt"])
            if told["status"] == "online" and _activated(federation, told["node_id"]) > since:
                break
            assert time.monotonic() < deadline, federation.tessera("logs", "client-2").value["logs"]
            time.sleep(5)
        words = ["strategy=fedavg", "rounds=1", "engine.join-timeout-s=600", f"runs={tmp_path}"]
        done = federation.tessera("run", *words)
        (record,) = load_run(Path(done.value["folder"])).rounds[1:]
        assert [client.outcome for client in record.clients] == ["counted"] * 3
    finally:
        output("docker", "update", "--cpu-quota=-1", container)


def _activated(federation: Federation, node_id: str) -> str:
    """When a node last came online, as a time that sorts with the engine's."""
    from engine.edge.control import Control

    found = next(n for n in Control(federation.deployment).nodes() if n.node_id == node_id)
    return found.since.replace(" ", "T")


def test_clients_did_all_this_within_a_gigabyte(federation: Federation) -> None:
    """Prints what the documentation tells: memory that cannot be taken back, all processes."""
    code = """
import pathlib
stat = next(p for p in map(pathlib.Path, ("/sys/fs/cgroup/memory/memory.stat",
                                          "/sys/fs/cgroup/memory.stat")) if p.exists())
told = dict(line.split() for line in stat.read_text().splitlines())
peak = 0
for status in pathlib.Path("/proc").glob("[0-9]*/status"):
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    peak += int(fields.get("VmHWM", "0 kB").split()[0])
print(int(told.get("total_rss", told.get("anon", 0))) // 2**20, peak // 2**10)
"""
    for name in CLIENTS:
        now, peak = federation.python(name, code).stdout.split()
        told = federation.inspect(name)
        print(f"{name} anonymous {now} MiB, sum of processes' peaks {peak} MiB")
        assert told["HostConfig"]["Memory"] == 2**30
        assert not told["State"]["OOMKilled"] and told["RestartCount"] == 0


def test_down_leaves_keys_and_state(federation: Federation) -> None:
    folder = federation.deployment.folder
    federation.tessera("down")
    assert (
        subprocess.run(
            ["docker", "ps", "-aq", "--filter", f"name={federation.deployment.project}"],
            capture_output=True,
            text=True,
        ).stdout
        == ""
    )
    assert (folder / "state/server/superlink.db").stat().st_size > 0
    assert (folder / "clients/client-0/key").exists()
