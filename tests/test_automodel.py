"""transformers loads a saved folder offline and says what we say; `encode` is as sentence-transformers has it."""

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ROOT
from meru.hub import Pretrained, from_pretrained
from meru.models.model import build_model
from meru.training.config import make_config

transformers = pytest.importorskip('transformers', reason="pip install 'meru[transformers]'")
CATS = ROOT / 'data' / 'coco_ccby' / 'cats.jpg'
LABELS = ['two cats', 'a cat', 'a train']


@pytest.fixture(scope='module', autouse=True)
def modules(tmp_path_factory):
    "transformers keeps the code of a folder here, not in the home of whoever runs the tests."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('transformers.dynamic_module_utils.HF_MODULES_CACHE', str(tmp_path_factory.mktemp('modules')))
        patch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
        yield


@pytest.fixture(scope='module')
def ours():
    torch.manual_seed(0)
    sizes = dict(image_width=32, conv_width=4, text_width=64, text_heads=1, embed_dim=8, vocab_size=600)
    return Pretrained(build_model(make_config('smoke', temperature='curvature', curv_init=2.0, **sizes)))


@pytest.fixture(scope='module')
def folder(ours, tmp_path_factory):
    folder = tmp_path_factory.mktemp('saved') / 'tiny'
    ours.save_pretrained(folder)
    return str(folder)


def test_the_pipeline_gives_our_scores(ours, folder):
    classify = transformers.pipeline('zero-shot-image-classification', model=folder, trust_remote_code=True)
    found = classify([str(CATS), Image.open(CATS)], candidate_labels=LABELS, hypothesis_template='{}')
    with torch.no_grad():
        logits = ours.model.logits(ours.embed_images(CATS), ours.embed_texts(LABELS))
    wanted = dict(zip(LABELS, logits.softmax(1)[0].tolist()))
    for answers in found:
        assert {o['label']: o['score'] for o in answers} == pytest.approx(wanted, abs=1e-6)
    scale = ours.model.logit_scale * 2**0.5  # the temperature follows the curvature
    assert torch.allclose(logits, scale * ours.similarity(CATS, LABELS), atol=1e-5)


def test_a_model_is_trained_there_and_comes_back(ours, folder, tmp_path):
    model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert torch.equal(
        model.get_text_features(torch.tensor([[598, 9, 599]])), ours.model.encode_text(torch.tensor([[598, 9, 599]]))
    )
    with torch.no_grad():
        model.model.image_proj.weight.add_(1)
    model.save_pretrained(tmp_path / 'again')
    again = from_pretrained(tmp_path / 'again')
    assert torch.equal(again.model.image_proj.weight, ours.model.image_proj.weight + 1)
    assert again.model.cfg == ours.model.cfg
    half = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float64)
    assert half.model.image_proj.weight.dtype == torch.float64


def test_a_damaged_weight_is_noticed_there_too(ours, tmp_path):
    ours.save_pretrained(tmp_path / 'm')
    weights = tmp_path / 'm' / 'model.safetensors'
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match='model.safetensors is damaged'):
        transformers.AutoModel.from_pretrained(str(tmp_path / 'm'), trust_remote_code=True)


def test_encode_mixes_texts_and_pictures(ours):
    items = ['a cat', CATS, 'two cats', Image.open(CATS)]
    points = ours.encode(items, batch_size=1)
    assert isinstance(points, np.ndarray) and points.dtype == np.float32 and points.shape == (4, 8)
    np.testing.assert_allclose(points[[0, 2]], ours.embed_texts(['a cat', 'two cats']), atol=1e-6)
    np.testing.assert_array_equal(points[1], points[3])
    np.testing.assert_array_equal(ours.encode('a cat'), points[0])
    assert torch.is_tensor(ours.encode(items[:1], convert_to_tensor=True))
    query, gallery = (ours.encode(items, vectors=o) for o in ('query', 'gallery'))
    scores = ours.geometry.scores(torch.tensor(points), torch.tensor(points), ours.curv)
    assert (np.argsort(-(query[:3] @ gallery[:3].T), 1) == np.argsort(-scores[:3, :3].numpy(), 1)).all()
    lengths = np.linalg.norm(ours.encode(items, normalize_embeddings=True), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)
    with pytest.raises(ValueError, match='query vectors have the length that their inner product needs'):
        ours.encode(items, vectors='query', normalize_embeddings=True)
