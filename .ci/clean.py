"""Clean notebooks as nbdev does, and leave out widgets, which are nothing without a kernel: `.ci/clean.py [PATH…]`."""

import sys
from pathlib import Path

from execnb.nbio import read_nb, write_nb
from nbdev.clean import _nbdev_clean

WIDGET = 'application/vnd.jupyter.widget-view+json'


def clean(notebook):
    "Clean a notebook, a dict, in place."
    _nbdev_clean(notebook)
    notebook['metadata'].pop('widgets', None)
    for cell in notebook['cells']:
        if 'outputs' in cell:
            cell['outputs'] = [o for o in cell['outputs'] if WIDGET not in o.get('data', {})]


if __name__ == '__main__':
    nbs = Path(__file__).parent.parent / 'nbs'
    for path in map(Path, sys.argv[1:] or [p for p in nbs.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts]):
        before = path.read_bytes()
        notebook = read_nb(path)
        for cell in notebook['cells']:
            cell.pop('idx_', None)
        clean(notebook)
        write_nb(notebook, path)
        if path.read_bytes() != before:
            print('cleaned', path)
