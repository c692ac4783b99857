from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from report.html import write_report
from report.images import Gallery, galleries, without_images
from report.loading import load_runs, read_tesserae
from report.methods import compare

MakeRun = Callable[..., Path]


def galleries_of(paths: list[Path], budget_bytes: int = 10_000_000) -> list[Gallery]:
    return galleries(compare(load_runs(paths)).methods, budget_bytes)


@pytest.mark.parametrize(("side", "scale"), [(8, 6), (32, 2), (64, 1)])
def test_sprites_hold_the_pixels_that_were_sent(make_run: MakeRun, side: int, scale: int) -> None:
    path = make_run("feddm", rounds=2, side=side, clients=4)
    (gallery,) = galleries_of([path])
    assert (gallery.tile_width, gallery.tile_height) == (scale * side, scale * side)
    checked = 0
    for shown in gallery.rounds:
        sent = read_tesserae(gallery.run, shown.round)
        assert sent.nearest_images is not None and sent.nearest_distances is not None
        for client in shown.clients:
            png = Image.open(io.BytesIO(base64.b64decode(client.png_base64)))
            pixels = np.asarray(png).reshape(2, side, -1, side, sent.images.shape[1])
            own = np.flatnonzero(sent.partition_ids == client.partition_id)
            assert client.num_sent == len(own)
            for group in client.classes:
                members = own[sent.labels[own] == int(group.class_name)]
                assert group.num_left_out == len(members) - len(group.pairs)
                for n, pair in zip(members, group.pairs, strict=True):
                    for row, images in enumerate((sent.images, sent.nearest_images)):
                        tile = pixels[row, :, pair.column].transpose(2, 0, 1)
                        np.testing.assert_array_equal(tile, images[n])
                    assert pair.distance == pytest.approx(float(sent.nearest_distances[n]))
                    checked += 1
    assert checked > 20


def test_first_middle_and_last_round_are_kept(make_run: MakeRun) -> None:
    (gallery,) = galleries_of([make_run("feddm", rounds=9, clients=3)])
    assert [shown.round for shown in gallery.rounds] == [1, 3, 5, 7, 9]
    assert gallery.left_out == ("Rounds: 5 of the 9 kept.",)


def test_few_rounds_are_all_shown(make_run: MakeRun) -> None:
    (gallery,) = galleries_of([make_run("feddm", rounds=3, clients=3)])
    assert [shown.round for shown in gallery.rounds] == [1, 2, 3]
    assert gallery.left_out == ()


def test_one_seed_of_each_method_that_sends_images(make_run: MakeRun) -> None:
    names = ("feddm", "fedavg", "real-images")
    paths = [make_run(name, seed, rounds=1, clients=3) for name in names for seed in (1, 0)]
    shown = galleries_of(paths)
    assert [(g.method.strategy, g.run.seed) for g in shown] == [("feddm", 0), ("real-images", 0)]
    assert shown[0].left_out == ("One of 2 seeds is shown.",)
    sprites = [client.sprite for g in shown for r in g.rounds for client in r.clients]
    assert len(sprites) == len(set(sprites)) == 6


def test_the_budget_is_kept_and_what_is_left_out_is_said(make_run: MakeRun) -> None:
    path = make_run("feddm", rounds=6, clients=25, images_per_class=8)
    (generous,) = galleries_of([path])
    budget = 150_000
    (frugal,) = galleries_of([path], budget)
    pairs = [
        len(group.pairs)
        for shown in frugal.rounds
        for client in shown.clients
        for group in client.classes
    ]
    assert 0 < sum(pairs) * 2 * 64 <= budget
    assert sum(pairs) < sum(
        len(group.pairs) for r in generous.rounds for c in r.clients for group in c.classes
    )
    assert frugal.rounds[-1].round == 6
    assert "Clients: the first 20 of 25." in frugal.left_out
    for shown in frugal.rounds:
        for client in shown.clients:
            told = sum(len(group.pairs) + group.num_left_out for group in client.classes)
            assert told == client.num_sent


def test_a_run_that_kept_no_images_has_no_gallery(make_run: MakeRun) -> None:
    assert galleries_of([make_run("fedavg", rounds=1)]) == []


def test_images_that_were_sent_and_are_gone_are_told_apart_from_none(make_run: MakeRun) -> None:
    paths = [make_run(name, seed, rounds=1) for name in ("feddm", "fedavg") for seed in (0, 1)]
    methods = compare(load_runs(paths)).methods
    assert without_images(methods) == []
    shutil.rmtree(paths[0] / "tesserae")
    assert without_images(methods) == []  # the other seed's are shown
    shutil.rmtree(paths[1] / "tesserae")
    assert without_images(methods) == [(methods[0], methods[0].runs)]


def test_a_run_that_has_not_sent_yet_misses_nothing(make_run: MakeRun) -> None:
    path = make_run("feddm", rounds=4, done=0, status="running")
    assert without_images(compare(load_runs([path])).methods) == []


def test_images_whose_clients_keep_theirs_stand_alone(make_run: MakeRun) -> None:
    path = make_run("feddm", rounds=2, clients=3)
    for file in (path / "tesserae").glob("*.safetensors"):
        kept = {n: t for n, t in load_file(file).items() if not n.startswith("nearest_")}
        save_file(kept, file)
    (gallery,) = galleries_of([path])
    pairs = [p for c in gallery.rounds[-1].clients for group in c.classes for p in group.pairs]
    assert pairs and all(pair.distance is None for pair in pairs)
    page = write_report([path], path / "report.html").read_text()
    assert "stands alone" in page and "Each pair is an image sent" not in page
    assert 'class="distance"' not in page and 'class="tile near' not in page
    assert page.count('class="tile ') >= len(pairs)
