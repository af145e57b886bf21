"""A short form of `tests/kills.py`."""

import pytest
import kills

pytestmark = pytest.mark.usefixtures('in_root')
SHORT = dict(train=8, embed=4, fetch=4, search=4)  # twenty


@pytest.fixture(scope='module')
def launcher():
    one = kills.Launcher()
    yield one
    one.close()


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp('kills')
    kills.prepare(folder)
    return folder


@pytest.mark.parametrize('job', SHORT)
def test_killed_and_started_again_ends_with_the_same_bits(job, launcher, home):
    "Half of the kills come at a random moment, half while a file is being written."
    result = kills.kill_job(launcher, job, SHORT[job], home, home / 'pictures')
    assert result.kills == SHORT[job] and result.inside_a_save and not result.different, result


def test_another_bit_would_be_found(tmp_path):
    "The harness can say no."
    (tmp_path / 'last.safetensors').write_bytes(b'one')
    before = kills.digest(tmp_path)
    (tmp_path / 'last.safetensors').write_bytes(b'two')
    assert before != kills.digest(tmp_path)
