import pytest
@pytest.mark.torch
def test_a():
    pass
