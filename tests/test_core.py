"Whole files, one owner a folder, and the same paths from everywhere."

import errno
import json
import os
import platform
import resource
import shlex
import signal
import subprocess
import sys
import pytest
from pathlib import Path
from matplotlib.figure import Figure
from PIL import Image
from conftest import ROOT
from meru.core import (
    _bar,
    closing,
    locked,
    project_path,
    read_json,
    root,
    RunFolder,
    session_fields,
    write_file,
    write_json,
)
from meru.training.config import TrainConfig, make_config
from meru.training.run import Run

HOLD = """
import os, sys
from pathlib import Path
from meru.core import locked
with locked(Path(sys.argv[1])):
    print('in', flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    "Another process that holds the lock of `tmp_path`."
    command = [sys.executable, '-c', HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'in\n'
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_a_second_process_is_refused_in_one_sentence_and_a_dead_one_is_no_owner(tmp_path, holder):
    with pytest.raises(BlockingIOError, match=f'{tmp_path} is in use by process {holder.pid} on {platform.node()}'):
        with locked(tmp_path):
            raise AssertionError('two owners')
    holder.kill()
    holder.wait()
    assert (tmp_path / '.lock').exists()
    with locked(tmp_path):
        assert read_json(tmp_path / '.lock')['pid'] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_lock_of_another_machine_is_kept(tmp_path):
    owner = dict(pid=1, host='elsewhere', birth='1')
    (tmp_path / '.lock').write_text(json.dumps(owner))
    with pytest.raises(BlockingIOError, match='by process 1 on elsewhere.*remove .*lock'), locked(tmp_path):
        pass
    assert read_json(tmp_path / '.lock') == owner


def test_a_number_that_another_process_was_given_since_is_no_owner(tmp_path):
    (tmp_path / '.lock').write_text(json.dumps(dict(pid=os.getpid(), host=platform.node(), birth='long ago')))
    with locked(tmp_path):
        pass


@pytest.mark.parametrize(
    'text', ['', '{', '[]', '{"pid": 3}', '{"host": "a", "birth": "1"}', '[' * 100_000, '\ufeff'], ids=range(7)
)
def test_a_lock_that_is_none_stops_nobody(tmp_path, text):
    (tmp_path / '.lock').write_text(text)
    with locked(tmp_path):
        assert read_json(tmp_path / '.lock')['pid'] == os.getpid()


def test_a_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        1 / 0
    assert not (tmp_path / '.lock').exists()


def test_what_a_kill_inside_safetensors_left_is_swept(tmp_path):
    "safetensors writes to a name of chance beside the file; a kill leaves it there."
    (tmp_path / 'index').mkdir()
    for name in ('.tmpAb3dE9', 'index/.tmpzzzzzz', '.tmp', 'photo.tmp', '.tmpfolder.txt'):
        (tmp_path / name).write_text('half')
    with locked(tmp_path):
        pass
    left = {o.relative_to(tmp_path).as_posix() for o in tmp_path.rglob('*')}
    assert left == {'index', '.tmp', 'photo.tmp', '.tmpfolder.txt'}


@pytest.mark.parametrize('content', ['text', b'bytes', lambda part: part.write_text('by itself')])
def test_three_kinds_of_content(tmp_path, content):
    write_file(tmp_path / 'a', content)
    assert (tmp_path / 'a').read_text() in ('text', 'bytes', 'by itself') and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_names_the_path_and_leaves_the_old_file(tmp_path):
    def full(part):
        part.write_text('half')
        raise OSError(errno.ENOSPC, 'No space left on device')

    write_json(tmp_path / 'a.json', dict(x=1))
    with pytest.raises(OSError, match='a.json could not be written: .*No space left on device'):
        write_file(tmp_path / 'a.json', full)
    assert read_json(tmp_path / 'a.json') == dict(x=1) and len(list(tmp_path.iterdir())) == 1


def test_a_figure_is_written_as_its_suffix_says_and_a_full_disk_names_it(tmp_path):
    figure = Figure(figsize=(1, 1))
    figure.add_subplot().plot([0, 1])
    write_file(tmp_path / 'a.png', figure)
    whole = (tmp_path / 'a.png').read_bytes()
    with Image.open(tmp_path / 'a.png') as image:
        assert image.format == 'PNG'
    limit, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))  # bytes: what a disk with no more room does
    try:
        with pytest.raises(OSError, match='a.png could not be written'):
            write_file(tmp_path / 'a.png', figure)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert (tmp_path / 'a.png').read_bytes() == whole and len(list(tmp_path.iterdir())) == 1


def test_whatever_goes_wrong_leaves_no_half_file(tmp_path):
    def interrupted(part):
        part.write_text('half')
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / 'a', interrupted)
    assert not list(tmp_path.iterdir())


def test_half_a_surrogate_pair_is_written_as_json_has_it(tmp_path):
    write_json(tmp_path / 'a.json', dict(text='red \ud83d, été'))
    assert read_json(tmp_path / 'a.json') == dict(text='red \ud83d, été')


def test_a_lock_on_a_full_disk_is_named(tmp_path):
    (tmp_path / f'.lock.{os.getpid()}').symlink_to('/dev/full')
    with pytest.raises(OSError, match='.lock.* could not be written: .*No space left on device'), locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('text', ['[1]', '"a"', 'null', '3', '{', '', '[' * 100_000], ids=range(7))
def test_a_file_that_is_no_object_is_named(tmp_path, text):
    (tmp_path / 'config.json').write_text(text)
    with pytest.raises(ValueError, match='config.json (is not JSON|holds no JSON object)'):
        read_json(tmp_path / 'config.json')


def test_paths_mean_the_same_everywhere(tmp_path, monkeypatch):
    for place in (ROOT, ROOT / 'nbs', ROOT / 'nbs' / 'training', tmp_path):
        monkeypatch.chdir(place)
        assert root() == ROOT and project_path('outputs/demo') == ROOT / 'outputs' / 'demo'
    monkeypatch.setenv('HOME', str(tmp_path))
    assert project_path('~/runs') == tmp_path / 'runs' and project_path(tmp_path) == tmp_path
    assert RunFolder('~/runs/a', make_config('smoke')).folder == tmp_path / 'runs' / 'a'


def test_a_folder_beside_a_person_is_found_where_the_project_has_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('my photos', 'data'):
        (tmp_path / name).mkdir()
    assert project_path('my photos') == tmp_path / 'my photos'
    assert project_path('data') == ROOT / 'data' and project_path('my other photos') == ROOT / 'my other photos'


def test_last_words_lead_on_from_wherever_a_person_stands(tmp_path, monkeypatch, capsys):
    command, out = 'papermill nbs/search.ipynb OUT.ipynb -p out {folder}', ROOT / 'outputs/my run'
    for place in (ROOT, ROOT / 'nbs'):
        monkeypatch.chdir(place)
        closing('found', out, command)
        assert capsys.readouterr().out.endswith("Next: papermill nbs/search.ipynb OUT.ipynb -p out 'outputs/my run'\n")
    monkeypatch.chdir(tmp_path)
    closing('found', out, command)
    _, folder, words = capsys.readouterr().out.splitlines()
    _, _, notebook, *_, named = shlex.split(words)
    assert folder == f'Folder: {out}' and named == str(out) and Path(notebook) == ROOT / 'nbs/search.ipynb'


def test_a_bar_shows_on_the_terminal_of_papermill(monkeypatch):
    reader, writer = os.pipe()
    monkeypatch.setattr('meru.core._terminal', lambda: writer)
    with _bar(3, 'picture', 'encode') as advance:
        advance(3)
    os.close(writer)
    with open(reader) as shown:
        assert 'encode: 100%' in shown.read()


def test_what_decides_nothing_may_differ(tmp_path):
    assert session_fields(TrainConfig) >= {'workers', 'log_every', 'device'}
    Run(tmp_path, make_config('smoke')).log(dict(step=1))
    Run(tmp_path, make_config('smoke', workers=2, log_every=5, device='cpu'))
    assert read_json(tmp_path / 'config.json')['workers'] == 2
    with pytest.raises(ValueError, match='seed .there 0, asked 1.'):
        Run(tmp_path, make_config('smoke', seed=1, workers=3))
    assert read_json(tmp_path / 'config.json')['workers'] == 2
