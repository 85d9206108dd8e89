"""Every stage of the model against the released code, with the same random weights."""

from __future__ import annotations

import pytest

from tests.models.stages import KINDS

pytestmark = [pytest.mark.torch, pytest.mark.optimised]
TOLERANCE = 1e-4  # relative, float32
DEPTH = {"vit_l": 8, "vit_h": 8}
"""A third or a quarter of the blocks, a global one among them; all of them take minutes, by
`python -m tests.models.parity`."""
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in DEPTH]


@pytest.fixture(scope="module")
def pair(request):
    from tests.models.parity import make_pair

    return make_pair(request.param, DEPTH.get(request.param))


@pytest.mark.parametrize("pair", ["small", "vit_b", *SLOW], indirect=True)
def test_every_encoder_block(pair):
    from tests.models.parity import encoder_differences

    found = encoder_differences(pair)
    assert len(found) == pair.config.encoder_depth + 1
    assert {k: v for k, v in found.items() if not v < TOLERANCE} == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pair", ["small", "vit_b"], indirect=True)  # all three have one decoder
def test_every_decoder_stage(pair, kind):
    from tests.models.parity import decoder_differences

    found = decoder_differences(pair, kind)
    assert len(found) == 4 + (kind != "mask")
    assert {k: v for k, v in found.items() if not v < TOLERANCE} == {}
