"""Every library page runs from top to bottom, and prints what is stored in it."""

import pytest
from house import library
from pages import same_text

# pages that tell the speed of the machine or the order of finished downloads
VARYING = {
    '45_trainer',  # a run's last digits depend on the number of threads
}


@pytest.mark.parametrize('path', library(), ids=lambda p: p.stem)
def test_page_runs_and_prints_what_is_stored(path, page):
    error, changed = page(path)
    assert not error, error
    if path.stem not in VARYING:
        differences = [f'--- stored\n{was}\n--- now\n{now}' for was, now in changed]
        assert not differences, 'run the page again and commit its outputs:\n' + '\n'.join(differences)


@pytest.mark.parametrize(
    'stored, now, same',
    [
        ('loss 0.534', 'loss 0.531', True),
        ('loss 0.534', 'loss 0.634', False),
        ('error 3e-08', 'error 9e-09', True),
        ('error 3e-08', 'error 9e-03', False),
        ('1,919 names', '1,919  names\n', True),
        ('1,919 names', '1,920 texts', False),
        ('one', 'one 2', False),
    ],
)
def test_same_text(stored, now, same):
    assert same_text(stored, now) == same
