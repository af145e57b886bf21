"""Both towers leave for torch.export and ONNX with any number of rows, and say there what the model says."""

import numpy as np
import pytest
import torch
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


@pytest.mark.filterwarnings('ignore')  # of the exporter itself
@pytest.mark.parametrize('kind', ['image', 'text'])
def test_a_tower_in_onnx_says_what_the_model_says(kind, model, tmp_path):
    pytest.importorskip('onnxscript', reason='pip install onnx onnxscript onnxruntime')
    runtime = pytest.importorskip('onnxruntime', reason='pip install onnxruntime')
    encoder = Encoder(model, kind).eval()
    with torch.no_grad():
        program = torch.onnx.export(
            encoder, (inputs(kind, 2, model),), dynamo=True, dynamic_shapes=BATCH, verbose=False
        )
        program.save(tmp_path / 'tower.onnx')
        session = runtime.InferenceSession(tmp_path / 'tower.onnx')
        for n in (1, 5):
            rows = inputs(kind, n, model)
            points = session.run(None, {session.get_inputs()[0].name: rows.numpy()})[0]
            np.testing.assert_allclose(points, encoder(rows).numpy(), rtol=1e-4, atol=1e-5)
