import torch

from lexiseg.layers.mask_pooling import inside_masks, is_seen, mask_pool, soft_mean


def test_mean_inside_by_hand() -> None:
    features = torch.tensor([[[[1.0, 2], [3, 4]], [[10, 20], [30, 40]]]])  # two channels of 2 x 2
    logits = torch.tensor([[[[1.0, -1], [1, -1]], [[-1, -1], [-1, -1]], [[0, 0], [0, 5]]]])
    pooled = mask_pool(features, logits)
    # The second mask is empty; a logit of exactly zero is outside.
    assert pooled.tolist() == [[[2.0, 20.0], [0.0, 0.0], [4.0, 40.0]]]


def test_mask_is_resized_before_the_threshold() -> None:
    features = torch.tensor([[[[1.0, 2]]]])
    logits = torch.tensor([[[[9.0, -1, -9, 1], [9, -1, -9, 1]]]])  # 2 x 4: means 4 and -4
    assert mask_pool(features, logits).tolist() == [[[1.0]]]
    assert inside_masks(logits, (1, 2)).tolist() == [[[[True, False]]]]


def test_gradient_reaches_the_features_only() -> None:
    features, logits = torch.randn(1, 2, 4, 4, requires_grad=True), torch.randn(1, 3, 4, 4, requires_grad=True)
    mask_pool(features, logits).sum().backward()
    assert features.grad is not None
    assert logits.grad is None


def test_soft_mean_by_hand() -> None:
    features = torch.tensor([[[[1.0, 2], [3, 4]], [[10, 20], [30, 40]]]])
    weights = torch.tensor([[[[1.0, 0], [0.5, 0]], [[0, 0], [0, 0]], [[0, 0], [0, 1e-6]]]])
    mean = soft_mean(features, weights)
    torch.testing.assert_close(mean[0, 0], torch.tensor([2.5, 25]) / (1.5 + 1e-6))
    assert mean[0, 1].tolist() == [0.0, 0.0]
    torch.testing.assert_close(
        mean[0, 2], torch.tensor([2.0, 20.0])
    )  # half of it: the area is as small as what is added
    assert is_seen(weights).tolist() == [[True, False, False]]
