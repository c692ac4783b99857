import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import RecordError
from report.html import write_report
from report.loading import load_run, load_runs
from report.methods import compare
from report.tables import columns_of, result_rows, to_csv, to_text

MakeRun = Callable[..., Path]


def _counted(path: Path, up: object, down: object) -> Path:
    (path / "network.json").write_text(
        json.dumps({"schema": 1, "bytes_up": up, "bytes_down": down})
    )
    return path


def test_a_network_s_bytes_stand_beside_ours(make_run: MakeRun) -> None:
    path = _counted(make_run("fedavg"), 1_234_567, 7_654_321)
    rows = result_rows(compare(load_runs([path])).methods)
    titles = [column.title for column in columns_of(rows)]
    at = titles.index("Downloaded")
    assert titles[at + 1 : at + 3] == ["Uploaded, network", "Downloaded, network"]
    cells = [column.cell(rows[0]) for column in columns_of(rows)]
    assert cells[at + 1 : at + 3] == ["1.23 MB", "7.65 MB"]
    assert "1.23 MB" in to_text(rows)


def test_without_a_network_there_is_no_such_column(make_run: MakeRun) -> None:
    rows = result_rows(compare(load_runs([make_run("fedavg")])).methods)
    assert not any("network" in column.title for column in columns_of(rows))


def test_a_method_that_ran_on_none_leaves_its_cells_empty(make_run: MakeRun) -> None:
    paths = [_counted(make_run("fedavg"), 1000, 2000), make_run("feddm")]
    rows = result_rows(compare(load_runs(paths)).methods)
    (told, untold) = sorted(csv.DictReader(io.StringIO(to_csv(rows))), key=lambda r: r["method"])
    assert (told["network_bytes_up_mean"], told["network_bytes_down_mean"]) == ("1000.0", "2000.0")
    assert (untold["network_bytes_up_mean"], untold["network_bytes_down_mean"]) == ("", "")


def test_the_page_says_whose_count_it_is(make_run: MakeRun, tmp_path: Path) -> None:
    on_one = write_report([_counted(make_run("fedavg"), 1000, 2000)], tmp_path / "a.html")
    on_none = write_report([make_run("feddm")], tmp_path / "b.html")
    assert "network counted: it adds" in on_one.read_text()
    assert "network counted: it adds" not in on_none.read_text()


@pytest.mark.parametrize("bad", [-1, 1.5, "1", None, True])
def test_a_damaged_count_is_refused_by_name(make_run: MakeRun, bad: object) -> None:
    path = _counted(make_run("fedavg"), bad, 1)
    with pytest.raises(RecordError, match=r"network\.json"):
        load_run(path)
