"""Both towers leave for torch.export, a whole model for ONNX, and say there what the model says."""

import json

import numpy as np
import pytest
import torch
from meru.hub import Pretrained
from meru.models.model import build_model
from meru.training.config import make_config

SIZES = dict(image_depth=1, image_heads=2, patch_size=8, text_width=64, text_heads=1, embed_dim=8, vocab_size=600)


class Encoder(torch.nn.Module):
    "One of the two ways into the space."

    def __init__(self, model, kind):
        super().__init__()
        self.model, self.kind = model, kind

    def forward(self, rows):
        return getattr(self.model, f'encode_{self.kind}')(rows)


def inputs(kind, n, model):
    generator, size = torch.Generator().manual_seed(n), model.cfg.image_size
    if kind == 'image':
        return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)
    return torch.randint(1, model.cfg.vocab_size, (n, 16), generator=generator)


@pytest.fixture(params=['vit', 'conv'])
def model(request):
    torch.manual_seed(0)
    return build_model(make_config('smoke', image_tower=request.param, **SIZES)).eval()


BATCH = ({0: torch.export.Dim('batch', min=1)},)


@pytest.mark.parametrize('kind', ['image', 'text'])
def test_a_tower_exports_with_a_dynamic_batch(kind, model):
    encoder = Encoder(model, kind).eval()
    with torch.no_grad():
        exported = torch.export.export(encoder, (inputs(kind, 2, model),), dynamic_shapes=BATCH).module()
        for n in (1, 5):
            rows = inputs(kind, n, model)
            torch.testing.assert_close(exported(rows), encoder(rows))


def test_a_whole_model_in_onnx_says_what_the_model_says(tmp_path):
    "Points, and rows whose inner products order as the distances do; any number of rows, texts of any length."
    pytest.importorskip('onnxscript', reason="pip install 'meru[onnx]'")
    runtime = pytest.importorskip('onnxruntime', reason="pip install 'meru[onnx]'")
    torch.manual_seed(0)
    pretrained = Pretrained(build_model(make_config('smoke', image_tower='vit', **SIZES)))
    model, found, wanted = pretrained.model, {}, {}
    pretrained.export_onnx(tmp_path)
    for kind in ('image', 'text'):
        session = runtime.InferenceSession(tmp_path / f'{kind}.onnx')
        assert [o.name for o in session.get_outputs()] == ['points', 'query', 'gallery']
        for n in (1, 5):
            rows = inputs(kind, n, model)[:, : None if kind == 'image' else 4 + n]
            found[kind] = session.run(None, {session.get_inputs()[0].name: rows.numpy()})
            with torch.no_grad():
                wanted[kind] = getattr(model, f'encode_{kind}')(rows)
            np.testing.assert_allclose(found[kind][0], wanted[kind].numpy(), rtol=1e-4, atol=1e-5)
    products = torch.tensor(found['text'][1] @ found['image'][2].T)
    scores = model.geometry.scores(wanted['text'], wanted['image'], model.curv.detach())
    assert torch.equal(products.argsort(1), scores.argsort(1))
    about = json.loads((tmp_path / 'vectors.json').read_text())
    assert about['geometry'] == 'lorentz' and about['curv'] == pytest.approx(model.curv.item())
