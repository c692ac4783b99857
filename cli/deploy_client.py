"""``tessera deploy client``: this machine takes part in a federation."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.outcome import Json, Outcome
from core.errors import ConfigError, DataError, Problem

if TYPE_CHECKING:
    from engine.edge.credentials import Credentials

Server = Annotated[
    str, typer.Option(metavar="HOST[:PORT]", help="The federation's server; the port is 8443.")
]
Data = Annotated[
    str,
    typer.Option(
        metavar="DIR|FORMAT:DIR",
        help="This client's own data, whose format comes first where it is not Tessera's own; they "
        "stay on this machine.",
    ),
]
Key = Annotated[
    Path,
    typer.Option(metavar="FILE|FOLDER", help="Its private key, or the folder made for it."),
]
Authority = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        metavar="FILE",
        help="Certificate of the server's authority; by default ca.crt beside the key.",
        show_default=False,
    ),
]
PartitionId = Annotated[
    int | None,
    typer.Option(
        "--partition",
        metavar="N",
        min=0,
        help="Which partition it holds; by default as client.json beside the key says.",
        show_default=False,
    ),
]
State = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder of what it keeps between runs; by default state beside the key.",
        show_default=False,
    ),
]
MaxEpsilon = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Take part in private runs alone, up to this budget in all.",
        show_default=False,
    ),
]
MaxDelta = Annotated[
    float | None,
    typer.Option(
        metavar="D",
        help="Delta of --max-epsilon; 1e-5 where left out, and never more than a run's own.",
        show_default=False,
    ),
]
Health = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT", help="Serve gRPC health checks at this address.", show_default=False
    ),
]
MaxRetries = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=0,
        help="Give up after so many failed attempts in a row; by default never.",
        show_default=False,
    ),
]


def client(
    server: Server,
    data: Data,
    key: Key,
    ca: Authority = None,
    partition: PartitionId = None,
    state: State = None,
    max_epsilon: MaxEpsilon = None,
    max_delta: MaxDelta = None,
    health: Health = None,
    max_retries: MaxRetries = None,
    as_json: Json = False,
) -> Outcome:
    """Take part in a federation with this machine's own data.

    Stays until it is ended with Ctrl-C or SIGTERM, and comes back by itself when the server or the
    network was away. Messages are answered by the Tessera that is installed here, whatever code
    the server sends.
    """
    from engine.edge.credentials import STATE_FOLDER, read_credentials
    from engine.edge.server import ServerAddress

    address = ServerAddress.parse(server)
    credentials = read_credentials(key, ca)
    partition_id = _partition_id(partition, credentials)
    own_state = credentials.path.with_name(STATE_FOLDER) if state is None else state
    budget = _max_epsilon(max_epsilon)
    own = _checked_data(data)

    from engine.edge.client_node import EdgeClient, run_client

    run_client(
        EdgeClient(
            server=address,
            credentials=credentials,
            partition_id=partition_id,
            data=own,
            state=own_state.expanduser().resolve(),
            max_epsilon=budget,
            max_delta=_max_delta(max_delta, budget),
            health=health,
            max_retries=max_retries,
        ),
        _say,
    )
    return Outcome("", {"server": str(address), "partition": partition_id})


def _say(line: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", file=sys.stderr, flush=True)


def _partition_id(given: int | None, credentials: Credentials) -> int:
    told = credentials.partition_id
    if given is None and told is None:
        rule = "is needed, since there is no client.json beside the key; give --partition N"
        raise ConfigError([Problem("--partition", "", rule)])
    if given is not None and told is not None and given != told:
        rule = (
            f"must be {told}, as client.json beside {credentials.path} says; leave it out, or use "
            f"the key of the client with partition {given}"
        )
        raise ConfigError([Problem("--partition", str(given), rule)])
    return told if given is None else given  # type: ignore[return-value]


def _max_epsilon(given: float | None) -> float | None:
    if given is None or 0.0 < given < float("inf"):
        return given
    rule = "must be more than 0 and finite; leave it out to set no budget of this client's own"
    raise ConfigError([Problem("--max-epsilon", f"{given:g}", rule)])


def _max_delta(given: float | None, budget: float | None) -> float | None:
    if given is None or (budget is not None and 0.0 < given < 1.0):
        return given
    rule = "must be above 0 and below 1, and goes with --max-epsilon"
    raise ConfigError([Problem("--max-delta", f"{given:g}", rule)])


_FORMAT = re.compile(r"([a-z0-9-]+):(.+)", re.DOTALL)


def _checked_data(data: str) -> str:
    """The client's own data, looked at before anything else happens.

    What is known here is only that there is something: what it has to be, a run says.

    Returns:
        The same, with its path whole.

    Raises:
        DataError: It is not there or cannot be read.
    """
    named = None if Path(data).expanduser().exists() else _FORMAT.fullmatch(data)
    path = Path(named[2] if named else data).expanduser().resolve()
    if any(not character.isprintable() for character in str(path)):
        raise DataError(f"--data={data!r}: must not hold control characters; name another")
    try:
        if path.is_dir():
            next(path.iterdir(), None)
        else:
            with path.open("rb"):
                pass
    except OSError as error:
        raise DataError(
            f"--data={data}: cannot be read: {error.strerror}; name the folder or file of this "
            "client's own data"
        ) from error
    return f"{named[1]}:{path}" if named else str(path)
