"""Checks before a long run, on a little of the embedded data."""

import json
from dataclasses import replace
import pytest
from meru.models.model import build_model
from meru.training.checks import check_overfit, find_lr, held_out_gap
from meru.training.config import make_config
from meru.training.trainer import open_data


def test_the_notebook_answers_three_questions(run_cells, tmp_path):
    little = dict(batch_size=32, sweep_steps=30, few=4, few_steps=40, steps=10)
    error, printed = run_cells('check', preset='smoke', out=tmp_path / 'check', **little)
    assert not error, error
    assert 'all 4 pairs learned' in printed and 'right at first (chance 0.3%)' in printed
    assert '7,050 training pairs, 294 held out' in printed
    lr = float(printed.split('Learning rate ')[1].split('. A few')[0])
    assert f'-p preset smoke -p data emoji -p lr {lr:.1e}' in printed and 1e-4 < lr < 3e-2
    assert json.loads((tmp_path / 'check/run/config.json').read_text())['lr'] == pytest.approx(lr, rel=0.05)
    pictures = {p.name: p.stat().st_size for p in (tmp_path / 'check/figures').iterdir()}
    assert sorted(pictures) == ['held_out.png', 'learning_rate.png', 'overfit.png'] and min(pictures.values()) > 3000


@pytest.fixture(scope='module')
def features(made_up):
    "A head on cached features, at once."
    config = make_config('head_lorentz', data=str(made_up), batch_size=32, steps=60, val_pairs=40)
    return config, open_data(config)


def test_a_head_on_features(features):
    config, (pairs, held_out) = features
    sweep = find_lr(config, pairs, steps=60)
    drill = check_overfit(replace(config, lr=sweep.lr), pairs)
    assert 1e-2 < sweep.lr <= 1 and drill.right == 1 and not drill.likely
    gap = held_out_gap(build_model(config), config, (pairs, held_out))
    assert gap.pairs == 40 and {'val_loss', 'val_top1'} <= gap.seen.keys() and 0 <= gap.seen['val_top1'] <= 1


def test_the_sweep_begins_at_the_presets_weights_and_leaves_them_alone(features):
    config, (pairs, _) = features
    first, second = (find_lr(config, pairs, steps=30) for _ in range(2))
    assert first == second and first.rates[0] == 1e-6 and len(first.smooth) == len(first.losses)


def test_a_rate_that_is_too_high_is_named(features):
    config, (pairs, _) = features
    drill = check_overfit(replace(config, lr=1e4), pairs, steps=40)
    assert drill.right < 1 and 'settled on guessing: give a smaller lr than 1.0e+04' in drill.verdict


def test_texts_that_are_cut_are_named():
    config = make_config('smoke', image_width=64, context_length=3, lr=1e-3)
    drill = check_overfit(config, open_data(config)[0], few=48, steps=4)
    assert any('differ only after their first 3 tokens: raise context_length' in o for o in drill.likely)
