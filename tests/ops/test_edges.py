"""Edges of masks, by hand."""

import numpy as np

from sam_jax.ops.edges import edge_nms, mask_edges, outer_boundary, sobel_magnitude


def test_sobel_of_a_ramp():
    ramp = np.tile(np.arange(9.0), (7, 1))
    np.testing.assert_allclose(sobel_magnitude(ramp)[:, 1:-1], 8)  # 1 + 2 + 1, two pixels apart
    np.testing.assert_allclose(sobel_magnitude(np.ones((4, 5))), 0)


def test_the_outer_boundary_is_a_ring():
    mask = np.zeros((8, 10), bool)
    mask[3:5, 4:7] = True
    ring = np.zeros_like(mask)
    ring[2:6, 3:8] = True
    np.testing.assert_array_equal(outer_boundary(mask), ring & ~mask)
    mask[:] = True
    assert not outer_boundary(mask).any()


def test_edges_of_a_mask_lie_on_its_outer_boundary():
    logits = np.full((12, 15), -8.0)
    logits[:, 7:] = 8
    edges = mask_edges(logits)
    assert np.flatnonzero(edges.any(0)).tolist() == [6]
    step = 1 / (1 + np.exp(-8)) - 1 / (1 + np.exp(8))
    np.testing.assert_allclose(edges[:, 6], 4 * step, rtol=1e-5)
    assert np.isfinite(mask_edges(np.full((3, 4), -2e3))).all()


def test_a_wide_line_becomes_thin_and_stays_whole():
    for angle in (0, 30, 45, 77, 90, 135):
        y, x = np.mgrid[:61, :81]
        normal = np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))
        away = (y - 30) * normal[0] + (x - 40) * normal[1]
        line = np.where(np.abs(away) <= 1.01, 0.5, 0)  # two or three pixels wide
        thinned = edge_nms(line)
        inner = thinned[8:-8, 8:-8]
        on = inner > 0.4
        distance = np.abs(away)[8:-8, 8:-8]
        assert distance[on].max() <= 0.8, angle
        # Every place along the line has a pixel left nearby.
        along = ((x - 40) * normal[0] - (y - 30) * normal[1])[8:-8, 8:-8]
        places = np.unique(np.round(along[on]))
        assert np.diff(places).max() <= 2, angle
        assert on.sum() < 1.6 * (places[-1] - places[0] + 1), angle


def test_an_empty_map_stays_empty():
    assert not edge_nms(np.zeros((5, 6))).any()
    assert edge_nms(np.eye(20)).max() == 1.0
