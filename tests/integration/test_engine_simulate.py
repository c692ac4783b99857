"""`simulate` with Ray, from start to end, twice in one process."""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from core.config import EngineConfig
from core.errors import RunError
from engine.simulation import simulate

CLIENT_MODULE = """
from flwr.app import Message
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def echo(message, context):
    return Message(message.content, reply_to=message)
"""


def descendants(pid: int | str = "self") -> set[int]:
    """Ids of all processes that come from this one."""
    found: set[int] = set()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            own = {int(child) for child in children.read_text().split()}
        except FileNotFoundError:
            continue
        found |= own.union(*map(descendants, own))
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def temp_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files with a path that is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ray_runs_again_and_leaves_nothing_behind(
    tmp_path: Path, temp_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "echo_client_of_test.py").write_text(CLIENT_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    before = descendants()
    started: set[int] = set()
    replies: list[Message] = []
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        content = RecordDict({"arrays": ArrayRecord({"w": Array(np.zeros(10))})})
        messages = [Message(content, node_id, "train") for node_id in grid.get_node_ids()]
        try:
            replies.extend(grid.send_and_receive(messages))
        finally:
            started.update(descendants() - before)
            assert [path.name[:8] for path in temp_root.iterdir()] == ["tessera-"]
        raise KeyboardInterrupt

    def run(client_app: str) -> None:
        simulate(
            server_app,
            client_app,
            run_config={},
            num_partitions=3,
            config=EngineConfig(kind="ray", workers=1),
        )

    with pytest.raises(RunError, match=r"no_such_module.*engine\.kind=in-process"):
        run("no_such_module_of_test:app")
    assert len(started) > 2 and replies == []
    with pytest.raises(KeyboardInterrupt):
        run("echo_client_of_test:app")
    assert [reply.has_content() for reply in replies] == [True] * 3
    # Ray's workers end by themselves once they see that it has.
    deadline = time.monotonic() + 30
    while left := [pid for pid in started if is_alive(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert list(temp_root.iterdir()) == []
    assert not sys.modules["ray"].is_initialized()
