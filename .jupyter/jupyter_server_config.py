"""What `make lab` tells Jupyter: notebooks are cleaned as they are saved, so that reading one changes no file."""

from nbdev.clean import _nbdev_clean


def clean(path, model, **_):
    if model['type'] == 'notebook' and model['content']['nbformat'] == 4:
        _nbdev_clean(model['content'])


c.ContentsManager.pre_save_hook = clean  # noqa: F821
