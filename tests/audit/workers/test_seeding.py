import torch

from volgrowth.audit.workers.seeding import seeded


def test_seeds_differ_by_purpose_and_agree_with_themselves():
    def draw(*key):
        return torch.randn(4, generator=seeded(*key)).tolist()

    keys = [(0, "tangent", 1), (0, "tangent", 2), (0, "noise", 1), (1, "tangent", 1)]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)
    assert draw(*keys[0]) == draw(*keys[0])
