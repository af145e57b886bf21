"""Run notebooks in this process, without a kernel to wait for: a page as nbdev_test, a run notebook as papermill."""

import json
import math
import multiprocessing
import os
import re
import sys
import traceback
from pathlib import Path

NUMBER = re.compile(r'[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?')
TINY = 1e-4  # numbers below are rounding errors: another processor rounds otherwise


def texts(cell):
    "What a cell shows as text, but for stderr, widgets and figures; sorted, as shells order it otherwise."
    printed, parts, quiet = (
        '',
        [],
        ''.join(cell['source']).rstrip().endswith(';'),
    )  # execnb shows nothing that such a cell prints
    for out in cell.get('outputs', []):
        if out['output_type'] == 'stream' and out['name'] == 'stdout' and not quiet:
            printed += ''.join(out['text'])
        data = out.get('data', {})
        if 'application/vnd.jupyter.widget-view+json' not in data:
            kinds = ('text/html',) if 'text/html' in data else ('text/plain', 'text/markdown')  # plain tables wrap
            parts += [''.join(data[k]) for k in kinds if k in data]
    parts = [re.sub(r' at 0x[0-9a-f]+', '', p) for p in parts if not p.startswith('<Figure size')]
    return '\n'.join([printed, *sorted(parts)])


def _close(one, other):
    one, other = (float(o.replace(',', '')) for o in (one, other))
    return math.isclose(one, other, rel_tol=0.02, abs_tol=TINY)


def same_text(stored, now):
    "Equal words, and numbers that agree to two digits or are both rounding errors."
    words = [re.sub(r'\s+', ' ', NUMBER.sub('#', o)).strip() for o in (stored, now)]
    if words[0] != words[1]:
        return False
    return all(_close(a, b) for a, b in zip(NUMBER.findall(stored), NUMBER.findall(now), strict=True))


def _nbdev_skips(flags):
    "Cells that nbdev_test does not run: those flagged so in settings.ini, and `eval: false`."

    def skips(cell):
        if cell.cell_type != 'code' or 'nbdev_export' + '(' in cell.source:
            return True
        directives = getattr(cell, 'directives_', {}) or {}
        return bool(flags & directives.keys()) or directives.get('eval:', [''])[0].lower() == 'false'

    return skips


def run_page(path, pipe):
    "Run the cells of a page; send its error, if any, and the texts that differ from the stored ones."
    from execnb.shell import CaptureShell
    from nbdev.config import get_config
    from nbdev.process import NBProcessor

    os.environ['IN_TEST'] = '1'
    multiprocessing.set_start_method('fork', force=True)  # as in a kernel
    os.chdir(path.parent)
    stored = [texts(c) for c in json.loads(path.read_text(encoding='utf-8'))['cells']]
    notebook = NBProcessor(path, process=True).nb
    shell, error = CaptureShell(path), ''
    try:
        shell.run_all(notebook, exc_stop=True, preproc=_nbdev_skips(set(get_config().tst_flags.split())))
    except BaseException:
        error = shell.prettytb(fname=path)
    pairs = [(was, texts(cell)) for was, cell in zip(stored, notebook.cells, strict=True)]
    pipe.send((error, [] if error else [p for p in pairs if not same_text(*p)]))


def _engine():
    "A papermill engine that runs the cells here."
    import nbformat
    from execnb.shell import CaptureShell
    from papermill.engines import Engine, papermill_engines

    class Here(Engine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, **_):
            shell = CaptureShell()
            for index, cell in enumerate(nb_man.nb.cells):
                nb_man.cell_start(cell, index)
                if cell.cell_type == 'code':
                    cell.outputs = [nbformat.from_dict(o) for o in shell.run(cell.source)]
                if shell.exc:
                    nb_man.cell_exception(cell, cell_index=index, exception=shell.exc)
                nb_man.cell_complete(cell, cell_index=index)
                if shell.exc:
                    return

    papermill_engines.register('here', Here)


def run_papermill(args, cwd, env, folder, pipe):
    "The papermill command with these arguments; send its exit status. What it prints goes to files in `folder`."
    from papermill.cli import papermill

    os.chdir(cwd)
    os.environ.update(env)
    for fd, name in ((1, 'out'), (2, 'err')):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), fd)
    sys.stdout, sys.stderr = (os.fdopen(fd, 'w', buffering=1, closefd=False) for fd in (1, 2))
    _engine()
    try:
        papermill.main([*args, '--engine', 'here', '--no-progress-bar'], standalone_mode=False)
        status = 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    pipe.send((status, ''))


if __name__ == '__main__':  # python tests/pages.py nbs/00_geometry.ipynb

    class Printer:
        def send(self, told):
            error, changed = told
            print(error or 'ran')
            for was, now in changed:
                print('--- stored', was, '--- now', now, sep='\n')

    run_page(Path(sys.argv[1]).resolve(), Printer())
