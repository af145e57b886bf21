"A fifth geometry, written as a user would: one class. The Klein model, whose geodesics are straight lines."

from contextlib import contextmanager

import torch
from torch.linalg import vector_norm
from meru.geometry import Geometry, _at_least, geometries, register, _wide_squares


class Klein(Geometry):
    "The ball of curvature −c in which k = x/(√c x_t) for a point x of the hyperboloid."

    name, factor = 'klein', -1.0
    has_cones = False

    @_at_least(torch.float64)
    def exp_map0(self, v, curv):
        s = curv.sqrt() * vector_norm(v, dim=-1, keepdim=True).clamp_min(1e-30)
        return v * torch.tanh(s) / s

    @_at_least(torch.float64)
    def log_map0(self, x, curv):
        s = curv.sqrt() * vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-30)
        return x * torch.atanh(s) / s

    def _stretch(self, k, curv):
        "cosh of the radius."
        return (1 - curv.double() * _wide_squares(k)).rsqrt()

    def _rows(self, k, curv):
        "z = γγ'(1 − c k·k') − 1 = −c (γk·γ'k' − (γ − 1)(γ' − 1)/c − (γ − 1)/c − (γ' − 1)/c)."
        g = self._stretch(k, curv)
        return k * g[:, None].to(k), (g - 1) / curv.double().sqrt(), (g - 1) / curv.double(), torch.ones_like(g)

    def left_rows(self, x, curv, centre=None):
        point, rise, height, one = self._rows(x, curv)
        return torch.cat([point, torch.stack([rise, height, one], 1).to(point)], 1)

    def right_rows(self, y, curv, centre=None):
        point, rise, height, one = self._rows(y, curv)
        return torch.cat([point, torch.stack([-rise, -one, -height], 1).to(point)], 1)

    def pair_gap(self, x, y, curv):
        "(c|x−y|² − c²(|x|²|y|² − (x·y)²))/..., from differences."
        c, g, h = curv.double(), self._stretch(x, curv), self._stretch(y, curv)
        across = _wide_squares(x) * _wide_squares(x, y) - (x * (x - y)).sum(-1, dtype=torch.float64).square()
        top = c * _wide_squares(x, y) - c * c * across  # (1 − c x·y)² − (1 − c|x|²)(1 − c|y|²)
        return (g * h).square() * top / (g * h * (1 - c * (x * y).sum(-1, dtype=torch.float64)) + 1)


@contextmanager
def klein():
    "Known inside, and forgotten afterwards."
    register(Klein)
    try:
        yield geometries['klein']
    finally:
        del geometries['klein']
