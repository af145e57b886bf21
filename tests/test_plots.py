"Plots: what is drawn is where the geometry says, and labels do not overlap."

import math

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from meru import plots
from meru.geometry import geometries, get_geometry, unit

one = torch.tensor(1.0, dtype=torch.float64)
poincare = get_geometry('poincare')


@pytest.fixture(autouse=True)
def fresh():
    with plt.rc_context():
        plots.style()
        yield
        plt.close('all')


def random_disk(n, most=0.95, seed=0):
    gen = torch.Generator().manual_seed(seed)
    return (
        unit(torch.randn(n, 2, generator=gen, dtype=torch.float64))
        * most
        * torch.rand(n, 1, generator=gen, dtype=torch.float64)
    )


def test_geodesics_are_straight_and_evenly_walked():
    p, q = random_disk(50), random_disk(50, seed=1)
    path = plots.geodesic(p, q, 17)
    steps = poincare.dist(path[:, 1:], path[:, :-1], one)
    torch.testing.assert_close(steps.sum(1), poincare.dist(p, q, one), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(steps, steps.mean(1, keepdim=True).expand(-1, 16), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(path[:, 0], p), torch.testing.assert_close(path[:, -1], q)


@pytest.mark.parametrize('n', [1, 2])
def test_geodesic_to_itself_and_through_the_root(n):
    p = random_disk(n)
    torch.testing.assert_close(plots.geodesic(p, p, 5), p[:, None].expand(-1, 5, -1))
    line = plots.geodesic(p, -p, 5)
    assert (line[:, 2].abs() < 1e-9).all()


@pytest.mark.parametrize('min_radius', [0.05, 0.1, 0.3])
def test_cone_edges_are_where_the_angle_is_the_aperture(min_radius):
    for apex in random_disk(20):
        edge, aperture = plots._cone_edge(apex, min_radius), poincare.half_aperture(apex, one, min_radius)
        for ray in (edge[1:40], edge[-40:-1]):
            torch.testing.assert_close(
                poincare.exterior_angle(apex, ray, one), aperture.expand(len(ray)), rtol=1e-6, atol=1e-6
            )
        assert edge.norm(dim=-1).max() <= 1 + 1e-12


@pytest.mark.parametrize('min_radius', [0.1, 0.3])
def test_cone_outline_holds_what_the_cone_holds(min_radius):
    from matplotlib.path import Path

    y = random_disk(4000, 0.999, seed=2)
    for apex in random_disk(10):
        slack = poincare.half_aperture(apex, one, min_radius) - poincare.exterior_angle(apex, y, one)
        inside = torch.from_numpy(Path(plots._cone_edge(apex, min_radius).numpy()).contains_points(y.numpy()))
        clear = slack.abs() > 0.02
        assert (inside == (slack > 0))[clear].all()


def test_the_root_has_no_cone_and_leaves_no_figure():
    with pytest.raises(ValueError, match='entails every point'):
        plots.cone(torch.zeros(2))
    assert not plt.get_fignums()


@pytest.mark.parametrize('c', [0.1, 1.0, 4.0])
@pytest.mark.parametrize('g', geometries.values(), ids=lambda g: g.name)
def test_to_disk_keeps_radii(g, c):
    curv = torch.tensor(c)
    x = g.exp_map0(torch.randn(60, 16, generator=torch.Generator().manual_seed(0)), curv)
    on = plots.to_disk(x, g, curv)
    scale = c**0.5 if g.has_curv else 1
    torch.testing.assert_close(
        2 * torch.atanh(on.xy.norm(dim=-1)), scale * g.radius(x, curv).double(), rtol=1e-5, atol=1e-5
    )
    assert 0 < on.kept < 1 and 0 < on.stretch < 1 and f'{on.kept:.0%}' in on.note
    torch.testing.assert_close(plots.to_disk(x[3:9], g, curv, on.axes).xy, on.xy[3:9])


def test_a_plane_is_placed_exactly():
    g, curv = get_geometry('lorentz'), torch.tensor(2.0)
    turned = torch.linalg.qr(torch.randn(10, 10, generator=torch.Generator().manual_seed(0)))[0][:2]
    x = g.exp_map0(torch.randn(40, 2, generator=torch.Generator().manual_seed(1)) @ turned, curv)
    on = plots.to_disk(x, g, curv)
    assert on.kept == pytest.approx(1) and on.stretch < 1e-5
    wanted = g.dist(x[:, None], x[None], curv).double() * 2**0.5
    torch.testing.assert_close(poincare.dist(on.xy[:, None], on.xy[None], one), wanted, rtol=1e-5, atol=1e-5)


def test_one_point_and_points_at_the_root():
    g = get_geometry('lorentz')
    assert plots.to_disk(torch.ones(1, 5), g, one).xy.isfinite().all()
    assert (plots.to_disk(torch.zeros(4, 5), g, one).xy == 0).all()


@pytest.mark.parametrize('g,kappa', [('poincare', -1), ('euclidean', 0), ('sphere', 1)])
def test_the_law_of_cosines_in_three_planes(g, kappa):
    gen = torch.Generator().manual_seed(3)
    r, s = torch.rand(2, 60, generator=gen, dtype=torch.float64) * 2.5
    a, b = torch.rand(2, 60, generator=gen, dtype=torch.float64) * 2 * math.pi

    def at(r, a):
        if kappa < 1:
            return get_geometry(g).exp_map0(torch.stack([r * a.cos(), r * a.sin()], 1), one)
        return torch.stack([r.sin() * a.cos(), r.sin() * a.sin(), r.cos()], 1)

    torch.testing.assert_close(
        plots.polar_dist(r, s, a - b, kappa), get_geometry(g).dist(at(r, a), at(s, b), one), rtol=1e-6, atol=1e-6
    )


def test_fitted_angles_recover_a_plane():
    "Shuffled a little, points of a plane find back to where their distances are right."
    gen = torch.Generator().manual_seed(4)
    r, a = (
        1 + torch.rand(80, generator=gen, dtype=torch.float64),
        torch.rand(80, generator=gen, dtype=torch.float64) * 2 * math.pi,
    )
    true = plots.polar_dist(r[:, None], r, a[:, None] - a, -1)

    def off(angle):
        return (plots.polar_dist(r[:, None], r, angle[:, None] - angle, -1) - true).abs().mean()

    start = a + 0.5 * torch.randn(80, generator=gen, dtype=torch.float64)
    fitted = plots.fit_angles(true, r, start, -1)
    assert off(fitted) < 0.1 * off(start)
    assert torch.equal(fitted, plots.fit_angles(true, r, start, -1))


def test_placing_by_distance_keeps_radii():
    g, curv = get_geometry('lorentz'), torch.tensor(0.5)
    x = g.exp_map0(torch.randn(60, 16, generator=torch.Generator().manual_seed(0)), curv)
    on = plots.to_disk_by_distance(x, g, curv, 1.5)
    torch.testing.assert_close(
        2 * torch.atanh(on.xy.norm(dim=1)), 1.5 * 0.5**0.5 * g.radius(x, curv).double(), rtol=1e-5, atol=1e-5
    )
    assert 0 < on.stretch < plots.to_disk(x, g, curv).stretch
    assert on.note.startswith('radial MDS, drawn 1.5 times') and plots.to_disk(x, g, curv).note.startswith(
        'tangent PCA: '
    )


def test_a_small_space_fills_the_disk():
    g, curv = get_geometry('lorentz'), torch.tensor(2.0)
    x = g.exp_map0(0.01 * torch.randn(30, 8, generator=torch.Generator().manual_seed(0)), curv)
    on = plots.to_disk_by_distance(x, g, curv)
    assert float(on.xy.norm(dim=1).max()) == pytest.approx(math.tanh(2.9 / 2), abs=1e-6) and on.scale > 10
    numbers = [t.get_text() for t in plots.disk(rings=3, scale=on.scale).texts]
    assert numbers == [f'{r / on.scale:.2g}' for r in (1, 2, 3)]


def test_tree_rows_do_not_cross():
    parents = torch.tensor([-1, 0, 0, 1, 1, 2, -1])
    y, depth = plots._tree_rows(parents)
    assert depth.tolist() == [0, 1, 1, 2, 2, 2, 0] and y.tolist() == [1.25, 0.5, 2, 0, 1, 2, 3]
    ax = plots.level_tree(parents, torch.arange(7.0), list('abcdefg'))
    assert ax.collections[1].get_array().tolist() == list(range(7)) and [t.get_text() for t in ax.texts] == list(
        'abcdefg'
    )


def test_walk_strip_places_captions_at_their_radii():
    ax = plots._walk_strip(torch.tensor([2.0, 1.0, 0.5]), ['x', 'y', 'z'], torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    assert [(t.get_text(), t.xy[0]) for t in ax.texts] == [('root', 0), ('x', 2.0), ('y', 1.0), ('z', 0.5)] and len(
        ax.artists
    ) == 1


@pytest.mark.parametrize('n', [1, 2, 7])
def test_neighbour_strip_shows_every_stop(n):
    ax = plots.neighbour_strip(
        torch.linspace(2, 1, n),
        [f'a rather long name {i}' for i in range(n)],
        torch.zeros(n, 2, 3, 8, 8, dtype=torch.uint8),
        3.0,
    )
    (line,) = ax.lines
    assert line.get_ydata().tolist() == torch.linspace(2, 1, n).tolist() and line.get_xdata()[-1] == (3 if n > 1 else 0)
    assert [t.get_text().replace('\n', ' ') for t in ax.texts] == [f'a rather long name {i}' for i in range(n)] and len(
        ax.artists
    ) == 2 * n


def label_boxes(ax):
    return np.array(
        [t.get_window_extent().extents for t in ax.texts if t.get_transform() != ax.transAxes and t.get_zorder() == 4]
    )


@pytest.mark.parametrize('n', [5, 300])
def test_labels_do_not_overlap(n):
    ax = plots.disk(size=5)
    hidden = plots.labels(random_disk(n), [f'a label {i}' for i in range(n)], ax)
    ax.figure.draw_without_rendering()
    boxes = label_boxes(ax)
    assert len(boxes) == n - hidden and (hidden > 0) == (n == 300)
    meet = (boxes[:, None, :2] < boxes[None, :, 2:] - 0.5).all(-1)
    assert (meet & meet.T).sum() == len(boxes)
    assert (f'{hidden} of {n} labels hidden' in {t.get_text() for t in ax.texts}) == (n == 300)


def test_the_first_label_wins_and_long_ones_are_cut():
    ax = plots.disk(size=2)
    plots.labels(torch.zeros(60, 2), ['first of all these many words here'] + ['later'] * 59, ax)
    written = [t.get_text() for t in ax.texts if t.get_zorder() == 4]
    assert written[0].startswith('first of all') and written[0].endswith('…') and len(written[0]) <= 26


def test_labels_leave_pictures_free():
    ax, xy = plots.disk(size=5), random_disk(12)
    plots.labels(xy, ['word'] * 12, ax, pictures=xy, edge=24)
    at, half = ax.transData.transform(xy.numpy()), 12 * ax.figure.dpi / 72
    for box in label_boxes(ax):
        assert not ((box[:2] < at + half - 0.5) & (at - half < box[2:] - 0.5)).all(1).any()


def test_thumbnails_make_white_clear():
    image = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    image[0, :, 2:4] = 10
    ax = plots._thumbnails(torch.zeros(1, 2), image)
    alpha = ax.artists[0].offsetbox.get_data()[..., 3]
    assert (alpha[2:4] == 255).all() and alpha.sum() == 255 * 16


@pytest.mark.parametrize('n', [1, 7, 16])
def test_contact_sheet_shows_every_picture(n):
    images = torch.arange(1, n + 1, dtype=torch.uint8)[:, None, None, None].expand(n, 3, 16, 16)
    ax = plots.contact_sheet(images, [f'picture {i}' for i in range(n)], cols=5)
    sheet = ax.images[0].get_array()
    assert [int((sheet[..., 0] == i + 1).sum()) for i in range(n)] == [256] * n and len(ax.texts) == n


def test_radius_histogram_places_medians():
    ax = plots.radius_histogram({'low': torch.tensor([1.0, 1.0, 2.0]), 'high': torch.tensor([3.0, 4.0, 5.0])})
    assert [t.get_text() for t in ax.texts] == ['1.00', '4.00']
    assert [t.get_text() for t in ax.get_yticklabels()] == ['low (3)', 'high (3)']


def test_similarity_matrix_shows_the_scores():
    scores = torch.arange(6.0).view(2, 3).requires_grad_()
    ax = plots.similarity_matrix(scores, ['a', 'b'], ['x', 'y', 'z'])
    assert np.array_equal(ax.images[0].get_array(), scores.detach()) and [
        t.get_text() for t in ax.get_xticklabels()
    ] == list('xyz')


def test_training_curves():
    rows = [dict(step=i, loss=1 / (i + 1), r=[0, i, 2 * i]) | (dict(val_loss=2.0) if i % 2 else {}) for i in range(6)]
    ax = plots.training_curves(rows, ('loss', 'val_loss', 'r', 'absent'))
    assert [line.get_label() for line in ax.lines] == ['loss', 'val_loss', 'r'] and len(ax.collections) == 1
    assert list(ax.lines[1].get_xdata()) == [1, 3, 5] and list(ax.lines[2].get_ydata()) == list(range(6))
    with pytest.raises(ValueError, match='None of accuracy is logged; there is loss, r, step'):
        plots.training_curves(rows, ('accuracy',))


def test_every_plot_draws_on_the_axes_it_is_given():
    p, image = random_disk(4), torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    for draw in (
        lambda ax: plots.disk(ax),
        lambda ax: plots.geodesics(p, p.flip(0), ax),
        lambda ax: plots.cone(p[0], ax),
        lambda ax: plots.dots(p, list('aabb'), ax),
        lambda ax: plots._thumbnails(p, image, ax),
        lambda ax: plots.contact_sheet(image, ax=ax),
        lambda ax: plots.radius_histogram({'a': p[:, 0]}, ax),
        lambda ax: plots.similarity_matrix(p, ax=ax),
        lambda ax: plots.training_curves([dict(step=0, loss=1)], ax=ax),
    ):
        ax = plt.subplots()[1]
        assert draw(ax) is ax
        ax.figure.draw_without_rendering()
    assert len(plt.get_fignums()) == 9


def test_colours_are_distinct_for_colour_blind_readers():
    "Machado et al. 2009, full deuteranopia and protanopia: no two colours of the palette come near one another."
    rgb = np.array([matplotlib.colors.to_rgb(c) for c in plots.palette.values()])
    rgb = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    for matrix in (
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    ):
        seen = np.clip(rgb @ np.array(matrix).T, 0, 1) ** (1 / 2.2)
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + np.eye(len(seen))
        assert apart.min() > 0.08


@pytest.mark.parametrize('text', ['costs $5, not $6', '$$', r'$\frac{$', '_', 'a_b^c'])
def test_captions_are_written_as_they_are(text):
    "A dollar sign begins a formula in matplotlib; in a caption it is a dollar sign."
    at, picture = torch.tensor([[0.1, 0.2], [0.5, -0.4]]), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    ax = plots.dots(at, [f'kind {text}', 'other'])
    plots.labels(at, [text, text], ax)
    drawn = [ax, plots.contact_sheet(picture, [text, text]), plots.radius_histogram({f'level {text}': torch.rand(9)})]
    drawn.append(plots.similarity_matrix(torch.eye(2), [text, text], [text, text]))
    drawn.append(plots.level_tree(torch.tensor([-1, 0]), torch.tensor([0.5, 1.0]), [text, text]))
    drawn.append(plots._walk_strip(torch.tensor([1.0, 0.5]), [text, text], picture))
    drawn.append(plots.neighbour_strip(torch.tensor([1.0, 0.5]), [text, text], picture[:, None], 1.0))
    for ax in drawn:
        ax.figure.draw_without_rendering()
