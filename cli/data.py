"""``tessera data``: data that is made, to try things with."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import click
import typer

from cli.outcome import EPILOG, Json, Outcome
from cli.privacy import PlainHelp

app = typer.Typer(no_args_is_help=True, help="Make data sets.")


@app.command("make-shapestory", cls=PlainHelp, epilog=EPILOG)
def make_shapestory(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to; made if missing.")],
    size: Annotated[
        str,
        typer.Option(
            click_type=click.Choice(["smoke", "standard"]),
            help="40 videos, made in seconds, or 900, for results.",
        ),
    ] = "smoke",
    train: Annotated[
        int, typer.Option(help="Training videos; 0 takes the size's.", show_default=False)
    ] = 0,
    validation: Annotated[
        int, typer.Option(help="Validation videos; likewise.", show_default=False)
    ] = 0,
    test: Annotated[int, typer.Option(help="Test videos; likewise.", show_default=False)] = 0,
    seed: Annotated[int, typer.Option(help="Of everything.")] = 0,
    narration_noise: Annotated[
        str,
        typer.Option(
            metavar="SHARE,...",
            help="Shares of what is said that tell of something else; each video has one of them.",
        ),
    ] = "0,0.25,0.5",
    delay_mean: Annotated[
        float, typer.Option(help="Mean delay of what is said behind what happens, seconds.")
    ] = 0.5,
    delay_std: Annotated[float, typer.Option(help="Its standard deviation, seconds.")] = 1.0,
    drop: Annotated[float, typer.Option(help="Probability that an event is not told of.")] = 0.1,
    swapped_sound: Annotated[
        float, typer.Option(help="Probability that an event sounds like another.")
    ] = 0.0,
    snr: Annotated[float, typer.Option(help="Of sound above noise, decibels.")] = 20.0,
    odd_files: Annotated[
        bool,
        typer.Option(
            help="Let the last training videos be odd, as files in the wild are: without sound, "
            "of variable rate, rotated, truncated, corrupt."
        ),
    ] = True,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes; change no byte of what is made.")
    ] = 1,
    as_json: Json = False,
) -> Outcome:
    """Make ShapeStory: videos of moving coloured shapes, with sound, narration and questions.

    The same options give the same bytes. A corpus that was cut off is finished, with its files
    kept. Beside the manifest, annotations/ holds it in the formats of public data sets.
    """
    from data.video.formats.table import GENERATED, export_all
    from data.video.shapestory.make import SIZES, Recipe, make_corpus
    from data.video.shapestory.script import Narrating

    usual = SIZES[size]
    recipe = Recipe(
        seed=seed,
        train=train or usual[0],
        validation=validation or usual[1],
        test=test or usual[2],
        odd_files=odd_files,
        narrating=Narrating(
            noise=_shares(narration_noise),
            delay_mean_s=delay_mean,
            delay_std_s=delay_std,
            drop=drop,
            swapped_sound=swapped_sound,
            snr_db=snr,
        ),
    )
    root = folder.expanduser().resolve()
    with click.progressbar(
        length=len(recipe.videos), label="Videos", file=sys.stderr, hidden=as_json
    ) as bar:
        corpus = make_corpus(recipe, root, workers=workers, made=lambda: bar.update(1))
    exports = export_all(corpus, root / "annotations")
    counts = {split: len(corpus.of_split(split)) for split in ("train", "validation", "test")}
    clients = max(1, min(10, counts["train"] // 12))
    source = shlex.quote(f"video.source={GENERATED}:{folder}")
    text = (
        f"{root}: {len(corpus.videos)} videos ({counts['train']} train, {counts['validation']} "
        f"validation, {counts['test']} test)\n"
        f"  tessera run workload=vlm strategy=fedavg partition.clients={clients} "
        f"train.optimizer=adam train.learning-rate=0.001 {source}\n"
    )
    value = {"folder": str(root), **counts, "exports": [str(path) for path in exports]}
    return Outcome(text, value)


def _shares(text: str) -> tuple[float, ...]:
    from core.errors import DataError

    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise DataError(
            f"--narration-noise={text}: must be numbers separated by commas, such as 0,0.25,0.5"
        ) from error
