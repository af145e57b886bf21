"""Rules of the house that a machine can check."""

import ast, json, re
import pytest
from conftest import ROOT

NBS = sorted((o for o in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts), key=lambda o: o.name)
CELLS = {p: [(c, ''.join(c['source'])) for c in json.loads(p.read_text())['cells']] for p in NBS}
LIBRARY = [p for p in NBS if p.name[0].isdigit()]
RUNS = [p for p in NBS if not p.name[0].isdigit()]
name = lambda p: p.stem
EXPORTS = {
    re.search(r'default_exp ([\w.]+)', ' '.join(s for _, s in CELLS[p])).group(1): i for i, p in enumerate(LIBRARY)
}


def code(p):
    return [(c, s) for c, s in CELLS[p] if c['cell_type'] == 'code']


def test_there_are_notebooks():
    assert len(LIBRARY) >= 12 and {'train', 'evaluate'} <= {p.stem for p in RUNS}


@pytest.mark.parametrize('p', LIBRARY, ids=name)
def test_imports_only_lower_numbers(p):
    used = {m for _, s in code(p) for m in re.findall(r'^\s*(?:from|import)\s+meru\.([\w.]+)', s, re.M)} & set(EXPORTS)
    assert all(EXPORTS[m] < LIBRARY.index(p) for m in used), used


@pytest.mark.parametrize('p', LIBRARY, ids=name)
def test_library_notebook_is_small_and_has_its_outputs(p):
    assert p.stat().st_size < 300_000
    assert any(c['outputs'] for c, _ in code(p))


@pytest.mark.parametrize('p', LIBRARY, ids=name)
def test_exported_cells_and_functions_are_short(p):
    for _, s in code(p):
        if not re.search(r'^#\|\s*export', s, re.M):
            continue
        assert len([l for l in s.splitlines() if l.strip()]) <= 45, s[:200]
        for f in ast.walk(ast.parse(s)):
            if isinstance(f, ast.FunctionDef):
                assert f.end_lineno - f.lineno <= 40, f.name
                kernel = any('jit' in ast.dump(d) for d in f.decorator_list)  # pointers and sizes
                assert kernel or len(f.args.args) + len(f.args.kwonlyargs) <= 9, f.name


@pytest.mark.parametrize('p', LIBRARY, ids=name)
def test_prose_is_short(p):
    long = [
        s
        for c, s in CELLS[p]
        if c['cell_type'] == 'markdown' and len(re.sub(r'\$[^$]*\$|[#>*|-]', ' ', s).split()) > 66
    ]
    assert not long, long


@pytest.mark.parametrize('p', RUNS, ids=name)
def test_run_notebook_defines_nothing(p):
    trees = [ast.parse(s) for _, s in code(p)]
    assert not [
        n for t in trees for n in ast.walk(t) if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.For, ast.While))
    ]
    assert len(code(p)) <= 12
    assert sum('parameters' in c['metadata'].get('tags', []) for c, _ in code(p)) == 1
    assert not any(c['outputs'] for c, _ in code(p)), 'outputs of run notebooks are stripped in nbs/'


@pytest.mark.parametrize('p', sorted((ROOT / 'meru').rglob('*.py')), ids=name)
def test_module_comes_from_a_notebook(p):
    assert (
        p.name == '_modidx.py'
        or '.'.join(p.relative_to(ROOT / 'meru').with_suffix('').parts) in EXPORTS
        or p.name == '__init__.py'
    )


def test_docstrings_and_types():
    "Every public function says what it is, and types its parameters."
    bare = []
    for p in (ROOT / 'meru').rglob('[!_]*.py'):
        for f in ast.parse(p.read_text()).body:
            if not isinstance(f, ast.FunctionDef) or f.name.startswith('_'):
                continue
            untyped = [a.arg for a in f.args.args + f.args.kwonlyargs if a.annotation is None]
            if not ast.get_docstring(f) or len(untyped) > 1:
                bare.append(f'{p.stem}.{f.name}')
    assert not bare, bare
