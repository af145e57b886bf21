"""What `make lab` tells Jupyter: notebooks are cleaned as they are saved, so that reading one changes no file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / '.ci'))
from clean import clean


def clean_before_saving(path, model, **_):
    if model['type'] == 'notebook' and model['content']['nbformat'] == 4:
        clean(model['content'])


c.ContentsManager.pre_save_hook = clean_before_saving  # noqa: F821
c.LabApp.default_url = '/lab/tree/README.md'  # noqa: F821
