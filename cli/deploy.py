"""``tessera deploy``: a federation of real machines, its server here and its clients anywhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from cli.deploy_client import client as take_part
from cli.keys import KeyCommand, Settings
from cli.outcome import EPILOG, Json, Outcome, WithReport
from cli.privacy import PlainHelp
from core.errors import INTERRUPTED

if TYPE_CHECKING:
    from core.config import RunConfig
    from engine.edge.bring_up import ClientStatus
    from engine.edge.compose import Service
    from engine.edge.control import Control, NetworkRun
    from engine.edge.deployment import Deployment

app = typer.Typer(
    help="Run a federation of real machines: a server, and clients that hold their own data.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
)

Folder = Annotated[
    Path,
    typer.Option(
        "--dir",
        metavar="DIR",
        help="The deployment's folder; .deploy.",
        show_default=False,
    ),
]
_FOLDER = Path(".deploy")
_RUNS_SHOWN = 5


@app.command(cls=PlainHelp, epilog=EPILOG)
def init(
    folder: Folder = _FOLDER,
    host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Name or address that other machines know this one by; may be given again. "
            "Without one, only this machine's own clients can reach the server.",
            show_default=False,
        ),
    ] = None,
    clients: Annotated[
        int | None,
        typer.Option(metavar="N", help="Clients in all, at least; 3.", show_default=False),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(metavar="P", help="Where clients reach the server; 8443.", show_default=False),
    ] = None,
    control_port: Annotated[
        int | None,
        typer.Option(
            metavar="P",
            help="Where this machine asks it, on loopback alone; the next.",
            show_default=False,
        ),
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Compose project; tessera.", show_default=False),
    ] = None,
    torch_index: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Index of wheels that images take torch from, such as one of CPU builds; the "
            "package registry where left out.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> Outcome:
    """Make certificates, keys and settings of a deployment, or add to them.

    Safe to run again: it adds hosts and clients, renews the server's certificate before it ends,
    and never replaces a key.
    """
    from engine.edge.deployment import initialise

    made = initialise(
        folder,
        hosts=host or [],
        clients=clients,
        port=port,
        control_port=control_port,
        project=project,
        torch_index=torch_index,
    )
    deployment = made.deployment
    lines = [f"deployment {deployment.folder}"]
    lines += [f"server      port {deployment.port}, {_hosts(deployment)}"]
    lines += [
        "            its certificate is new; a server that runs reads it at its next start"
    ] * (made.new_certificate)
    for client in deployment.clients:
        new = "  new" if client.name in made.new_clients else ""
        lines.append(f"{client.name:<11} {client.fingerprint}{new}")
    lines += [
        f"next        tessera deploy up{_dir_option(deployment)}",
        f"            copy {deployment.folder / 'clients'}/NAME to a client's machine, by a way "
        "that nobody else can read",
    ]
    return Outcome(
        "\n".join(lines) + "\n",
        {
            "folder": str(deployment.folder),
            **deployment.to_json(),
            "new_clients": list(made.new_clients),
            "new_certificate": made.new_certificate,
        },
    )


@app.command(cls=PlainHelp, epilog=EPILOG)
def up(
    folder: Folder = _FOLDER,
    local_clients: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="How many clients to run on this machine, in containers; 3, or all there are.",
            show_default=False,
        ),
    ] = None,
    build: Annotated[
        bool, typer.Option(help="Build the images first, the default.", show_default=False)
    ] = True,
    as_json: Json = False,
) -> Outcome:
    """Start the server and this machine's clients in containers.

    It ends when all of them are online. Safe to run again: what runs and is unchanged stays.
    """
    from engine.edge.bring_up import bring_up
    from engine.edge.deployment import open_deployment

    deployment = open_deployment(folder)
    local = deployment.local_clients
    if local_clients is not None and local_clients > len(local):
        raise click.UsageError(
            f"--local-clients {local_clients}: docker-compose.yml and the deployment have "
            f"{len(local)}; others run on machines of their own, with tessera deploy client"
        )
    clients = bring_up(
        deployment,
        local if local_clients is None else local[:local_clients],
        build=build,
        say=_say,
    )
    return Outcome(
        _clients_text(clients) + "the federation is up; run on it: tessera deploy run "
        "strategy=fedavg rounds=5\n",
        {"clients": _clients_json(clients)},
    )


@app.command(cls=PlainHelp, epilog=EPILOG)
def status(folder: Folder = _FOLDER, as_json: Json = False) -> Outcome:
    """Tell which clients are online, which containers run, and how runs went."""
    from engine.edge.bring_up import statuses
    from engine.edge.control import Control
    from engine.edge.deployment import open_deployment

    deployment = open_deployment(folder)
    control = Control(deployment)
    services = _services(deployment)
    clients, runs = statuses(control), control.runs()
    text = _clients_text(clients)
    if services:
        text += "\n" + "".join(f"{one.name:<11} {one.status}\n" for one in services)
    if runs:
        text += "\n" + "".join(_run_line(one) for one in runs[:_RUNS_SHOWN])
        if more := len(runs) - _RUNS_SHOWN:
            text += f"and {more} earlier\n" * (more > 0)
    return Outcome(
        text,
        {
            "clients": _clients_json(clients),
            "services": [{"name": s.name, "state": s.state, "status": s.status} for s in services],
            "runs": [_network_json(one) for one in runs],
        },
    )


@app.command(cls=KeyCommand, epilog=EPILOG)
def run(
    settings: Settings = None,
    folder: Folder = _FOLDER,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Go on with the run of this name from its last checkpoint.",
            show_default=False,
        ),
    ] = None,
    attach: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Follow the run of this name, which was started before, and fetch it.",
            show_default=False,
        ),
    ] = None,
    report: WithReport = True,
    as_json: Json = False,
) -> Outcome:
    """Run on the deployment's clients, follow it, and fetch the run folder.

    Keys are those of tessera run, such as: tessera deploy run strategy=fedavg rounds=5

    Where they do not say otherwise, clients bring their own data (partition.scheme=own) and all of
    the deployment's take part (partition.clients). Control-C leaves the run going on.
    """
    from engine.edge.control import Control
    from engine.edge.deployment import open_deployment
    from engine.edge.remote_run import recall, refuse_no_nodes, start

    if resume is not None and attach is not None:
        raise click.UsageError("--resume and --attach do not go together")
    if attach is not None and settings:
        raise click.UsageError("--attach takes no keys: the run has begun")
    control = Control(open_deployment(folder))
    if attach is not None:
        return _followed(control, recall(control.deployment, attach), report)
    if resume is None:
        config = _config(control.deployment, settings or [])
        runs = Path(config.runs)
    else:
        config = _resumed(control.deployment, resume, settings or [])
        runs = _home(control.deployment, resume)
    online = refuse_no_nodes(control)
    begun = start(control, config, runs, resumes=resume is not None)
    _say(f"run {begun.name} on {online} clients, which Flower calls {begun.run_id}")
    return _followed(control, begun, report)


app.command(name="client", cls=PlainHelp, epilog=EPILOG)(take_part)


@app.command(cls=KeyCommand, epilog=EPILOG)
def deal(
    settings: Settings = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where to; each client of the deployment gets its own data, the usual place.",
            show_default=False,
        ),
    ] = None,
    folder: Folder = _FOLDER,
    as_json: Json = False,
) -> Outcome:
    """Deal a data set into files for each client, to try a deployment with.

    Keys are those of tessera run that say what is dealt and how, such as: tessera deploy
    deal data.source=digits partition.alpha=0.1

    Writes DIR/client-0/train.parquet and so on, or where a workload deals other data than images a
    folder DIR/client-0. Each of them a client can be given as its --data.
    """
    import torch

    from core.workload import OwnData
    from data.partitioners import load_or_make_partition
    from engine.edge.deployment import open_deployment
    from workloads.table import open_dealt

    settings = settings or []
    given = {word.partition("=")[0] for word in settings}
    if out is None:
        deployment = open_deployment(folder)
        out = deployment.folder / "data"
        if "partition.clients" not in given:
            settings = [f"partition.clients={len(deployment.clients)}", *settings]
    if "workload" in given and "strategy" not in given:
        settings = ["strategy=fedavg", *settings]  # which any workload fits; nothing is trained
    config = _parsed_to_deal(settings)
    workload = open_dealt(config, torch.device("cpu"))
    assert isinstance(workload, OwnData), "as was checked"
    partition = load_or_make_partition(workload.dataset, config.partition, config.seed)
    files = workload.write_shares(partition.clients, out)
    counts = [len(indices) for indices in partition.clients]
    text = "".join(f"{path}  {n} {workload.noun}\n" for path, n in zip(files, counts, strict=True))
    told = [{"file": str(p), "num_examples": n} for p, n in zip(files, counts, strict=True)]
    return Outcome(text, {"files": told})


def _parsed_to_deal(settings: list[str]) -> RunConfig:
    from cli.main import parse
    from core.errors import ConfigError, Problem
    from pairing.fit import lacking
    from workloads.table import workload_class

    config = parse(settings)
    if why := lacking(workload_class(config.workload), config).get("own-data"):
        rule = f"cannot be dealt to clients as their own, because {why}; take another"
        raise ConfigError([Problem("workload", config.workload, rule)])
    if config.partition.scheme == "own":
        rule = "deals nothing; take iid, dirichlet, pathological or quantity"
        raise ConfigError([Problem("partition.scheme", "own", rule)])
    return config


@app.command(cls=PlainHelp, epilog=EPILOG)
def logs(
    services: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SERVICE]...", help="superlink, gateway, client-0 ...; all."),
    ] = None,
    folder: Folder = _FOLDER,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they come.")] = False,
    tail: Annotated[
        int, typer.Option(metavar="N", min=1, help="Lines of each.", show_default=True)
    ] = 100,
    as_json: Json = False,
) -> Outcome:
    """Print what this machine's containers wrote."""
    from engine.edge.compose import Compose
    from engine.edge.deployment import open_deployment

    compose = Compose(open_deployment(folder))
    if follow:
        if as_json:
            raise click.UsageError("--follow and --json do not go together")
        compose.follow_logs(services or [], tail)
        return Outcome("", {})
    text = compose.logs(services or [], tail)
    return Outcome(text, {"logs": text})


@app.command(cls=PlainHelp, epilog=EPILOG)
def down(folder: Folder = _FOLDER, as_json: Json = False) -> Outcome:
    """Stop and remove this machine's containers; keys, state and run folders stay."""
    from engine.edge.compose import Compose
    from engine.edge.deployment import open_deployment

    deployment = open_deployment(folder)
    Compose(deployment).down()
    return Outcome(
        f"down; keys and state are in {deployment.folder}\n", {"folder": str(deployment.folder)}
    )


def _followed(control: Control, begun: Any, report: bool) -> Outcome:
    """Follow a run to its end, fetch it and say what it came to."""
    from cli.main import ran
    from cli.progress import shown_progress
    from core.errors import RecordError
    from engine.edge.remote_run import fetch, follow

    deployment = control.deployment
    option = _dir_option(deployment)
    try:
        with shown_progress(sys.stdout) as progress:
            ended = follow(control, begun, progress, say=_say)
    except KeyboardInterrupt:
        told = (
            f"\nrun {begun.name} goes on\n"
            f"follow it  tessera deploy run --attach {begun.name}{option}\n"
            f"stop it    {control.command('stop', begun.run_id)}\n"
        )
        value = {"name": begun.name, "run_id": begun.run_id, "status": "running"}
        return Outcome(told, value, INTERRUPTED)
    network = _network_json(ended.network)
    try:
        folder = fetch(deployment, begun, ended.network)
    except RecordError as error:
        if not ended.exit_code:
            raise
        why = f"run failed: {ended.failure}"
        value = {"name": begun.name, "status": "failed", "failure": ended.failure}
        return Outcome(
            f"{why}\nthere is no run folder ({error})\n",
            {**value, "network": network},
            ended.exit_code,
        )
    if ended.exit_code:
        text = (
            f"run failed: {ended.failure}\nrun folder {folder}\n"
            f"once its reason is mended, go on with: tessera deploy run --resume "
            f"{begun.name}{option}\n"
        )
        value = {"folder": str(folder), "name": begun.name, "status": "failed"}
        value["failure"] = ended.failure
        return Outcome(text, {**value, "network": network}, ended.exit_code)
    outcome = ran(folder, report)
    return Outcome(outcome.text, {**outcome.value, "network": network})


def _config(deployment: Deployment, settings: list[str]) -> RunConfig:
    """Keys as ``tessera run`` takes them, and refuses them; clients bring their own data."""
    from cli.main import parse
    from core.config import RunConfig
    from core.plugins import is_plugin
    from experiments.run import with_name
    from workloads.table import WORKLOADS, workload_class

    given = {word.partition("=")[0] for word in settings}
    named = [word.partition("=")[2] for word in settings if word.startswith("workload=")]
    workload = named[0] if named else RunConfig().workload
    known = workload in WORKLOADS or is_plugin(workload)  # what is neither is refused below
    reads = workload_class(workload).reads if known else ()
    if not given & {"partition.scheme", "partition.file"}:
        settings = ["partition.scheme=own", *settings]
    if not given & {"partition.clients", "partition.file"}:
        settings = [f"partition.clients={len(deployment.clients)}", *settings]
    if "data" in reads and "data.root" not in given:
        settings = [f"data.root={deployment.server_data}", *settings]
    return with_name(parse(settings))


def _resumed(deployment: Deployment, name: str, settings: list[str]) -> RunConfig:
    from core.config import parse_assignments
    from core.records import RunFolder
    from experiments.run import config_to_resume

    folder = RunFolder.open(deployment.server_runs / name)
    return config_to_resume(folder, parse_assignments(settings))


def _home(deployment: Deployment, name: str) -> Path:
    """Where a run was to be brought home to; the usual place where that is not known."""
    from core.config import RunConfig
    from core.errors import RecordError
    from engine.edge.remote_run import recall

    try:
        return recall(deployment, name).runs
    except RecordError:
        return Path(RunConfig().runs)


def _services(deployment: Deployment) -> list[Service]:
    """Containers of this machine; none where there is no engine."""
    from core.errors import RunError
    from engine.edge.compose import Compose, engine_answers

    if engine_answers():
        return []
    try:
        return Compose(deployment).services()
    except RunError:
        return []


def _say(line: str) -> None:
    print(line, flush=True)


def _hosts(deployment: Deployment) -> str:
    return f"as {', '.join(deployment.hosts)}" if deployment.hosts else "for this machine alone"


def _dir_option(deployment: Deployment) -> str:
    usual = _FOLDER.resolve() == deployment.folder
    return "" if usual else f" --dir {deployment.folder}"


def _clients_text(clients: list[ClientStatus]) -> str:
    lines = []
    for one in clients:
        since = (
            f"  since {one.node.since}" if one.node and one.node.since not in ("", "N/A") else ""
        )
        lines.append(f"{one.client.name:<11} {one.word}{since}\n")
    online = sum(one.word == "online" for one in clients)
    return "".join(lines) + f"{online} of {len(clients)} clients online\n"


def _clients_json(clients: list[ClientStatus]) -> list[dict[str, Any]]:
    return [
        {
            "name": one.client.name,
            "partition_id": one.client.partition_id,
            "fingerprint": one.client.fingerprint,
            "status": one.word,
            "node_id": one.node.node_id if one.node else None,
        }
        for one in clients
    ]


def _run_line(one: NetworkRun) -> str:
    return (
        f"run {one.run_id}  {one.status}  up {one.bytes_up:,} B  down {one.bytes_down:,} B  "
        f"clients {one.client_s:.1f} s\n"
    )


def _network_json(one: NetworkRun) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(one)
