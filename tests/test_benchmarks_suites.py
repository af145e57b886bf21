"Every suite runs from one command in its short form, and says what it did."

import json
import pytest
from meru.benchmarks.suites import _Suite, _ratios, record_suite, suites


def sized(
    n: int = 4,  # how many
    wide: bool = False,  # or narrow
):
    return dict(n=n, wide=wide, rows=[dict(case='a', ratio=dict(plain=dict(median=2.0, low=1.0, high=3.0)))])


@pytest.fixture(autouse=True)
def made_up(monkeypatch):
    monkeypatch.setitem(suites, 'made_up', _Suite(sized, dict(n=1)))


def test_a_suite_writes_its_result(tmp_path):
    found = record_suite('made_up', tmp_path / 'b', wide=True)
    assert (found['n'], found['wide'], found['quick']) == (4, True, False)
    assert json.loads((tmp_path / 'b/made_up.json').read_text()) == found and found['machine']['cores'] >= 1


def test_the_short_form_yields_to_what_is_asked(tmp_path):
    assert record_suite('made_up', tmp_path, quick=True)['n'] == 1
    assert record_suite('made_up', tmp_path, quick=True, n=2)['n'] == 2


@pytest.mark.parametrize(
    'given, says',
    [(dict(m=3), "unknown parameter 'm'; known are: suite, out, quick, n, wide"), (dict(n='many'), 'not of type int')],
)
def test_refuses_unknown_names_and_wrong_types(given, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        record_suite('made_up', tmp_path, **given)
    with pytest.raises(ValueError, match='known are: loader, '):
        record_suite('sorting', tmp_path)
    assert not list(tmp_path.iterdir())


def test_finds_every_ratio():
    one = dict(median=1.0, low=1.0, high=1.0)
    assert list(_ratios(dict(ratio=one))) == [('', one)]
    assert [k for k, _ in _ratios(sized() | dict(tiled=dict(ratio=dict(obvious=one)), machine=dict(cores=2)))] == [
        'a, plain',
        'tiled, obvious',
    ]


def test_from_the_command_line(papermill, tmp_path):
    done = papermill(
        'benchmark', tmp_path / 'out.ipynb', '-p', 'suite', 'head', '-p', 'quick', 'true', '-p', 'out', tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / 'head.json').read_text())['quick'] and (tmp_path / 'head.png').stat().st_size > 3000
