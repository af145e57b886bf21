"The check beside the field: every value that a config accepts works, every other is refused in one sentence."

import json
import math
from dataclasses import asdict, fields
from typing import Annotated, Literal, get_args, get_origin, get_type_hints
import pytest
from hypothesis import given, settings, strategies as st
from meru.image_index import SearchConfig
from meru.core import checked, field_docs
from meru.data.download import FetchConfig
from meru.data.images import ImageAugment
from meru.evaluation.ablation import AblateConfig
from meru.evaluation.comparison import CompareConfig
from meru.evaluation.suites import EvalConfig
from meru.evaluation.traversal import TraverseConfig
from meru.hub import PublishConfig
from meru.models.embedding import EmbedConfig
from meru.models.model import ModelConfig
from meru.training.config import TrainConfig, controls, make_config, presets

needed = {
    SearchConfig: dict(images='.', query='a dog'),
    FetchConfig: dict(pairs='photos'),
    PublishConfig: dict(run='outputs/demo', out='outputs/saved'),
    EmbedConfig: dict(data='photos', out='features'),
}
configs = (
    TrainConfig, ModelConfig, ImageAugment, EmbedConfig, FetchConfig, SearchConfig,
    EvalConfig, TraverseConfig, CompareConfig, AblateConfig, PublishConfig,
)  # fmt: skip
every_field = [(cls, name) for cls in configs for name in cls.__annotations__]
by_name = dict(ids=lambda o: o if isinstance(o, str) else o.__name__)


def allows(value, kind):
    "Whether an annotation takes a value, written without the code under test."
    args = get_args(kind)
    if get_origin(kind) is Annotated:
        return allows(value, args[0]) and all(rule.holds(value) for rule in args[1:])
    if get_origin(kind) is Literal:
        return value in args
    if get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            return False
        kinds = args[:1] * len(value) if args[-1] is ... else args
        return len(value) == len(kinds) and all(map(allows, value, kinds))
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind


numbers = st.integers(-3, 3) | st.integers() | st.floats() | st.sampled_from([0, 1, 0.5, 2**32, 2**63])
anything = numbers | st.booleans() | st.text(max_size=5) | st.none() | st.lists(numbers, max_size=3)


@pytest.mark.parametrize('cls, name', every_field, **by_name)
@settings(max_examples=25)
@given(value=anything)
def test_a_value_is_taken_as_the_annotation_has_it_or_refused_by_name(cls, name, value):
    kind = get_type_hints(cls, include_extras=True)[name]
    try:
        config = cls(**needed.get(cls, {}) | {name: value})
    except (ValueError, OSError) as error:
        if not allows(value, kind):
            assert str(error).startswith(f'{name} = {value!r} is not ') and field_docs(cls)[name] in str(error)
    else:
        assert allows(value, kind)
        kept = getattr(config, name)
        assert kept == (tuple(value) if isinstance(value, list) else value)
        assert json.loads(json.dumps(asdict(config))) is not None


@pytest.mark.parametrize('cls', configs, **by_name)
def test_every_field_has_its_comment_and_its_default_is_allowed(cls):
    assert set(field_docs(cls)) == {f.name for f in fields(cls)}
    config = cls(**needed.get(cls, {}))
    assert checked(cls, asdict(config)) == asdict(config)


@pytest.mark.parametrize(
    'bad, says',
    [
        (dict(embed_dim=0), 'embed_dim = 0 is not at least 1'),
        (dict(min_radius=-1), 'min_radius = -1 is not above 0'),
        (dict(entail_weight=-1), 'entail_weight = -1 is not at least 0'),
        (dict(device='gpu'), "device = 'gpu' is not auto, cpu, cuda, cuda:1 or mps"),
        (dict(seed=2**63), f'seed = {2**63} is not at least 0, at most {2**32 - 1}'),
        (dict(val_pairs=0), 'val_pairs = 0 is not at least 1'),
        (dict(batch_size=1), 'batch_size = 1 is not at least 2'),
        (dict(image_size=-32), 'image_size = -32 is not at least 1'),
        (dict(image_width=-1), 'image_width = -1 is not at least 1'),
        (dict(text_depth=-1), 'text_depth = -1 is not at least 1'),
        (dict(context_length=-1), 'context_length = -1 is not at least 3'),
        (dict(workers=-2), 'workers = -2 is not at least -1'),
        (dict(grad_clip=-0.5), 'grad_clip = -0.5 is not at least 0'),
        (dict(lr=0.0), 'lr = 0.0 is not above 0'),
        (dict(lr=math.nan), 'lr = nan is not of type float'),
        (dict(betas=[0.9, 1.0]), 'is not at least 0, below 1: decay of AdamW'),
        (dict(level_probs=[2.0, -1.0]), 'level_probs'),
        (dict(geometry='torus'), "geometry = 'torus' is not one of lorentz, poincare"),
        (dict(micro_batch=5), 'micro_batch = 5 does not divide batch_size = 32'),
        (dict(warmup=12), 'warmup = 12 is not below steps = 12'),
    ],
)
def test_what_would_fail_later_is_refused_at_once_with_its_range(bad, says):
    with pytest.raises(ValueError) as error:
        make_config('smoke', **bad)
    assert says in str(error.value)


@pytest.mark.parametrize('device', ['auto', 'cpu', 'mps', 'cuda', 'cuda:1'])
def test_devices_are_names(device):
    assert make_config('smoke', device=device).device == device


def test_every_preset_survives_json():
    for name, cfg in presets.items():
        assert TrainConfig(**checked(TrainConfig, json.loads(json.dumps(asdict(cfg))))) == cfg, name


def test_controls_differ_only_in_geometry_and_cones():
    for name in ('smoke', 'pairs', 'vit_s', 'vit_b', 'vit_l'):
        for control in controls(name, presets[name]):
            a, b = asdict(presets[name]), asdict(presets[control])
            assert {k for k in a if a[k] != b[k]} <= {'geometry', 'entail_weight'}


@pytest.mark.parametrize('given, meant', [(dict(preset='demmo'), 'demo'), (dict(preset='demo', stepps=3), 'steps')])
def test_a_slip_of_the_pen_is_answered(given, meant):
    with pytest.raises(ValueError, match=f'; near it: .*{meant}'):
        make_config(**given)
