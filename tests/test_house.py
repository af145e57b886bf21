"""Rules of the house that a machine can check. `python tests/house.py RULE` lists every place that breaks one."""

import ast
import io

import pytest

import house
from conftest import ROOT
from house import cells, code, is_definition, library, module_of, modules, pages, public_names, readme, runs, unshown

name = lambda p: p.stem

# a ratchet: how many places may still break a rule; each number may only fall, and none is the goal
STILL = dict(
    wide_lines=6,
    dense_functions=12,
    nested_comprehensions=0,
    long_cells=6,
    long_prose=0,
)
MOST_PUBLIC = 300
LEAST_SHOWN = 0.8
README = [120, 900, 60, 6, 150]


@pytest.mark.parametrize('rule', house.RULES, ids=lambda r: r.__name__)
def test_rule(rule):
    broken = rule()
    most = STILL.get(rule.__name__, 0)
    assert len(broken) <= most, f'{rule.__name__}: {len(broken)}, at most {most}:\n  ' + '\n  '.join(map(str, broken))


def test_the_package_has_few_public_names():
    assert len(public_names()) <= MOST_PUBLIC


def test_public_definitions_are_shown():
    "By name, in one of the next three cells that are not exported."
    total = sum(is_definition(o) for p in pages() for s in code(p) if house.HEAD.search(s) for o in ast.parse(s).body)
    missing = unshown()
    assert len(missing) <= (1 - LEAST_SHOWN) * total, f'{len(missing)} of {total}: {missing}'


def test_readme_is_short():
    names = ['lines', 'words', 'words in a paragraph', 'numbers in a paragraph', 'words before Python']
    over = [f'{n}: {is_}, at most {most}' for n, is_, most in zip(names, readme(), README, strict=True) if is_ > most]
    assert not over, over


def test_there_are_notebooks():
    assert len(library()) >= 12 and {'train', 'evaluate'} <= {p.stem for p in runs()}


@pytest.mark.parametrize('p', library(), ids=name)
def test_library_notebook_is_small_and_has_its_outputs(p):
    assert p.stat().st_size < 300 * 1024
    assert any(c['outputs'] for c, _ in cells(p) if c['cell_type'] == 'code')


@pytest.mark.parametrize('p', runs(), ids=name)
def test_run_notebook_defines_nothing(p):
    kinds = (ast.FunctionDef, ast.ClassDef, ast.For, ast.While)
    assert not [n for s in code(p) for n in ast.walk(ast.parse(s)) if isinstance(n, kinds)]
    assert len(code(p)) <= 12
    assert sum('parameters' in c['metadata'].get('tags', []) for c, _ in cells(p)) == 1
    assert not any('.savefig(' in source for _, source in cells(p)), 'write_file names the file of a full disk'
    assert not any(c.get('outputs') for c, _ in cells(p)), 'outputs of run notebooks are stripped in nbs/'


@pytest.mark.parametrize('p', modules(), ids=name)
def test_module_comes_from_a_notebook(p):
    dotted = '.'.join(p.relative_to(ROOT / 'meru').with_suffix('').parts)
    assert p.name == '__init__.py' or dotted in {module_of(page) for page in pages()}


def test_docstrings_and_types():
    "Every public function says what it is, and types its parameters."
    bare = []
    for p in modules():
        for f in (o for o in ast.parse(p.read_text()).body if isinstance(o, ast.FunctionDef) and is_definition(o)):
            untyped = [a.arg for a in f.args.args + f.args.kwonlyargs if a.annotation is None]
            if not ast.get_docstring(f) or len(untyped) > 1:
                bare.append(f'{p.stem}.{f.name}')
    assert not bare, bare


# notebooks stay as they are


@pytest.mark.parametrize('p', pages(), ids=name)
def test_notebook_is_written_as_jupyter_writes_it(p):
    import nbformat

    text = p.read_text(encoding='utf-8')
    again = io.StringIO()
    nbformat.write(nbformat.reads(text, as_version=4), again)
    assert again.getvalue() == text


@pytest.fixture(scope='session')
def jupyter(tmp_path_factory):
    "Jupyter's file manager, with the hook that `make lab` gives it."
    from jupyter_server.services.contents.filemanager import FileContentsManager
    from traitlets.config import Config, PyFileConfigLoader

    folder = tmp_path_factory.mktemp('lab')
    settings = PyFileConfigLoader('jupyter_server_config.py', str(ROOT / '.jupyter')).load_config()
    return folder, FileContentsManager(root_dir=str(folder), config=Config(settings))


@pytest.mark.filterwarnings('ignore:Overriding existing pre_save_hook')
def test_saving_in_jupyterlab_changes_no_file(jupyter, in_root):
    "JupyterLab notes its kernel in a notebook and counts the cells that it runs; saved, the file is as before."
    folder, manager = jupyter
    kernel = dict(display_name='Python 3 (ipykernel)', language='python', name='python3')
    for page in pages():
        (folder / page.name).write_bytes(page.read_bytes())
        model = manager.get(page.name)
        model['content']['metadata'] |= dict(kernelspec=kernel, language_info=dict(name='python', version='3.11.9'))
        for k, cell in enumerate(c for c in model['content']['cells'] if c['cell_type'] == 'code'):
            cell['execution_count'] = k
            cell['metadata']['execution'] = {'iopub.status.busy': '2026-01-01T00:00:00Z'}
        manager.save(model, page.name)
        assert (folder / page.name).read_bytes() == page.read_bytes(), page.name


def test_a_worker_of_the_tests_can_take_a_whole_file(request):
    "pytest-xdist 3.8 writes a group into an item's id; pytest 9.2 ignores that, and every fixture is made twice."
    item, before = request.node, request.node._nodeid
    item._nodeid = f'{before}@group'
    try:
        assert item.nodeid == f'{before}@group', 'install pytest below 9.2 or a pytest-xdist that knows it'
    finally:
        item._nodeid = before
