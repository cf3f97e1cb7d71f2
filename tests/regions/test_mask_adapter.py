"""Semantic activation maps: the cheap form against the plain one, and pooling by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.clip.projection import Projection
from lexiseg.layers.dense_projection import project_dense
from lexiseg.regions import mask_adapter
from lexiseg.regions.mask_adapter import MaskAdapter, MaskAdapterPool, activation_pool, activation_weights
from lexiseg.types import Features, Images

CHANNELS, WIDTH, MAPS = 8, 5, 3
GRID = (4, 6)


def adapter() -> MaskAdapter:
    torch.manual_seed(0)
    made = MaskAdapter(WIDTH, width=12, mask_width=8, num_maps=MAPS)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)  # the blocks start as the identity, which would hide them
    return made.eval()


def plainly(adapter: MaskAdapter, dense: Tensor, masks: Tensor) -> Tensor:
    """The formula as it is written: every mask with its own copy of the map."""
    h, w = dense.shape[-2:]
    found = []
    for own_map, own_masks in zip(dense, masks, strict=True):
        maps = []
        for mask in own_masks:
            small = functional.interpolate(mask.float()[None, None], size=(4 * h, 4 * w), mode="bilinear")
            x = adapter.fuse(own_map[None] + adapter.mask_downscaling(small))
            x = adapter.cnext3(adapter.cnext2(adapter.cnext1(x)))
            x = functional.layer_norm(x.permute(0, 2, 3, 1), (12,), adapter.norm.weight, adapter.norm.bias, 1e-5)
            maps.append(adapter.final(x.permute(0, 3, 1, 2))[0])
        found.append(torch.stack(maps))
    return torch.stack(found)


def example() -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(1)
    dense = torch.randn(2, WIDTH, *GRID, generator=chance)
    masks = functional.interpolate(torch.randn(2, 6, 3, 4, generator=chance), size=(32, 48), mode="bilinear") > 0
    masks[0, 1] = masks[1, 2] = False
    masks[0, 3] = masks[0, 0]
    masks[1, 5] = True
    return dense, masks


def test_the_savings_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    network = adapter()
    dense, masks = example()
    expected = plainly(network, dense, masks)
    assert expected.std() > 0.1
    torch.testing.assert_close(network(dense, masks), expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(mask_adapter, "HIDDEN_FLOATS", 1)  # one mask at a time
    with torch.no_grad():
        torch.testing.assert_close(network(dense, masks), expected, rtol=1e-4, atol=1e-5)
    soft = torch.rand(2, 2, 9, 13, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(network(dense, soft), plainly(network, dense, soft), rtol=1e-4, atol=1e-5)


def test_far_from_edges_nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks in a corner, across the border, in the middle, nowhere, everywhere: on a map much larger than the reach."""
    network = adapter()
    h, w = 32, 28
    dense = torch.randn(1, WIDTH, h, w, generator=torch.Generator().manual_seed(2))
    masks = torch.zeros(1, 6, 4 * h, 4 * w, dtype=torch.bool)
    masks[0, 0, :9, :10] = True
    masks[0, 1, 40:60, -17:] = True
    masks[0, 2, 62:66, 50:51] = True
    masks[0, 3, 16:, :] = True  # its edge lies between two positions
    masks[0, 5] = True
    expected = plainly(network, dense, masks)
    positions: list[int] = []
    whole = mask_adapter.ConvNeXtBlock.update

    def counted(block: mask_adapter.ConvNeXtBlock, y: Tensor) -> Tensor:
        positions.append(y[..., 0].numel())
        return whole(block, y)

    monkeypatch.setattr(mask_adapter.ConvNeXtBlock, "update", counted)
    with torch.no_grad():
        torch.testing.assert_close(network(dense, masks), expected, rtol=1e-4, atol=1e-5)
    plain, near = positions[:3], positions[3:]
    assert plain == [2 * h * w] * 3
    assert near == sorted(near) and near[0] < near[2] < 0.4 * 6 * h * w


def test_gradients_are_those_of_the_plain_form() -> None:
    network = adapter()
    dense, masks = example()
    pull = torch.randn(2, 6, MAPS, *GRID, generator=torch.Generator().manual_seed(3))
    gradients = []
    for form in (network, lambda *inputs: plainly(network, *inputs)):
        network.zero_grad()
        (form(dense, masks) * pull).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4)


def test_equal_masks_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = adapter()
    dense, masks = example()
    computed = []
    activate = MaskAdapter.activate
    monkeypatch.setattr(MaskAdapter, "activate", lambda self, x: computed.append(len(x)) or activate(self, x))
    maps = network(dense, masks)
    assert computed == [5, 6]
    assert torch.equal(maps[0, 0], maps[0, 3])


def test_few_numbers_of_masks_reach_the_convolutions() -> None:
    """Each is a shape for which oneDNN keeps memory."""
    network = adapter()
    dense = torch.randn(1, WIDTH, *GRID, generator=torch.Generator().manual_seed(4))
    numbers: set[int] = set()
    network.cnext1.dwconv.register_forward_pre_hook(lambda _, inputs: numbers.add(len(inputs[0])))
    for count in range(1, 20):
        masks = torch.rand(1, count, 16, 24, generator=torch.Generator().manual_seed(count)) > 0.5
        with torch.no_grad():
            assert network(dense, masks).shape == (1, count, MAPS, *GRID)
    assert numbers == {2, 8, 16, 24}  # of no pixel and of all; then the masks


def test_a_mask_reaches_no_farther_than_its_window() -> None:
    """Three 7 x 7 convolutions see nine cells, and the mask stem one more to the right and below."""
    network = adapter()
    dense = torch.randn(1, WIDTH, 30, 30, generator=torch.Generator().manual_seed(4))
    masks = torch.zeros(1, 2, 120, 120, dtype=torch.bool)
    masks[0, 1, 48:56, 48:56] = True  # cells 12 and 13
    with torch.no_grad():
        empty, own = network(dense, masks)[0]
    changed = (empty - own).abs().amax(0) > 0
    rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
    assert (rows.min(), rows.max()) == (columns.min(), columns.max()) == (3, 23)


def test_no_masks() -> None:
    dense, masks = example()
    assert adapter()(dense, masks[:, :0]).shape == (2, 0, MAPS, *GRID)


def test_pooling_by_hand() -> None:
    maps = torch.tensor([[[[[0.0, 0.0]], [[100.0, -100.0]], [[-200.0, -200.0 - torch.log(torch.tensor(3.0))]]]]])
    torch.testing.assert_close(activation_weights(maps)[0, 0], torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.75, 0.25]]))
    features = torch.tensor([[[[4.0, 8.0]], [[0.0, 1.0]]]])
    expected = torch.tensor([[[[6.0, 0.5], [4.0, 0.0], [5.0, 0.25]]]])
    torch.testing.assert_close(activation_pool(features, maps), expected)


def test_the_two_orders_of_the_dense_map() -> None:
    features = torch.arange(12.0).reshape(1, 2, 2, 3)
    by_position = project_dense(features, lambda x: x.sum(-1, keepdim=True), "position")
    assert by_position.tolist() == [[[[6, 8, 10], [12, 14, 16]]]]
    in_memory = project_dense(features, lambda x: x.sum(-1, keepdim=True), "memory")
    assert in_memory.tolist() == [[[[1, 5, 9], [13, 17, 21]]]]
    last = features.contiguous(memory_format=torch.channels_last)
    assert torch.equal(project_dense(last, lambda x: x, "memory"), project_dense(features, lambda x: x, "memory"))
    two = torch.cat((features, features + 100))
    assert torch.equal(project_dense(two, lambda x: x, "memory")[:1], project_dense(features, lambda x: x, "memory"))


def pool(**options: object) -> MaskAdapterPool:
    return MaskAdapterPool(adapter(), Projection(CHANNELS, WIDTH, norm_eps=1e-6, hidden=6), **options).eval()


def images() -> Images:
    return Images(torch.zeros(2, 3, 128, 192), ((128, 192),) * 2, ((128, 192),) * 2)


def logits() -> tuple[Features, Tensor]:
    chance = torch.Generator().manual_seed(5)
    dense = torch.randn(2, CHANNELS, *GRID, generator=chance)
    return Features(maps=(), dense=dense), torch.randn(2, 4, 32, 48, generator=chance) * 3


@pytest.mark.parametrize("order", ["position", "memory"])
def test_the_embedder_is_its_parts(order: str) -> None:
    embedder = pool(dense_order=order, mask_threshold=0.45)
    features, mask_logits = logits()
    regions = embedder(images(), features, mask_logits)
    dense = project_dense(features.dense, embedder.projection, order)
    maps = plainly(embedder.adapter, dense, mask_logits.sigmoid() > 0.45)
    weights = (maps.sigmoid() / maps.sigmoid().sum((-2, -1), keepdim=True)).flatten(3)
    pooled = torch.einsum("bqml,bcl->bqmc", weights, features.dense.flatten(2))
    expected = embedder.projection(pooled).mean(2)
    torch.testing.assert_close(regions.embeds, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(regions.dense_embeds, dense)


def test_the_threshold_is_strict() -> None:
    features, mask_logits = logits()
    assert not pool()(images(), features, torch.zeros_like(mask_logits)).valid.any()
    assert pool(mask_threshold=0.45)(images(), features, torch.zeros_like(mask_logits)).valid.all()


def test_an_empty_mask_is_scored_and_told() -> None:
    features, mask_logits = logits()
    mask_logits[0, 2] = -5
    regions = pool()(images(), features, mask_logits)
    assert regions.valid.tolist() == [[True, True, False, True], [True] * 4]
    assert torch.isfinite(regions.embeds).all() and regions.embeds[0, 2].abs().sum() > 0
