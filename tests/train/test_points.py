import torch

from lexiseg.train.points import sample_points, uncertain_points, uniform


def test_sampling_by_hand() -> None:
    maps = torch.tensor([[[[10.0, 20], [30, 40]]]])
    points = torch.tensor([[[0.25, 0.25], [0.75, 0.25], [0.5, 0.5], [0.0, 0.0]]])  # (x, y)
    assert sample_points(maps, points).tolist() == [[[10, 20, 25, 2.5]]]


def test_most_uncertain_candidates_come_first() -> None:
    logits = torch.tensor([[[-8.0, -1.0, 0.5, 6.0]]])  # one mask of 1 x 4
    columns = torch.tensor([0, 1, 2, 3, 0, 3, 1, 0, 0, 3, 3, 0])
    candidates = torch.stack(((columns + 0.5) / 4, torch.full((12,), 0.5)), dim=-1)[None]
    rest = torch.tensor([[[0.9, 0.1]]])
    draws = iter([candidates, rest])
    asked = []

    def draw(shape: tuple[int, ...]) -> torch.Tensor:
        asked.append(shape)
        return next(draws)

    points = uncertain_points(logits, 4, draw)
    assert asked == [(1, 12, 2), (1, 1, 2)]
    assert torch.equal(points[0, 0], candidates[0, 2])  # logit 0.5
    assert {float(x) for x in points[0, 1:3, 0]} == {1.5 / 4}  # logit -1, twice
    assert torch.equal(points[0, 3], rest[0, 0])


def test_draws_repeat_with_their_generator() -> None:
    device = torch.device("cpu")
    first, second = (uniform(device, torch.Generator().manual_seed(3))((2, 4)) for _ in range(2))
    assert torch.equal(first, second)
    assert float(first.min()) >= 0
    assert float(first.max()) < 1
