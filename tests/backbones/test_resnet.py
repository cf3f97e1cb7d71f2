"""ResNet-101c against torchvision's blocks, and its shape."""

import pytest
import torch
from torchvision.models import resnet
from torchvision.ops import FrozenBatchNorm2d

from lexiseg.backbones.resnet import Bottleneck, FrozenBatchNorm, FrozenConv, ResNet
from lexiseg.types import Images


def with_statistics(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, FrozenBatchNorm):
            for name, buffer in norm.named_buffers():
                buffer.copy_(torch.rand_like(buffer) + (0.5 if name in ("running_var", "weight") else -0.5))
    return module.eval()


@pytest.mark.parametrize(("stride", "dilation", "first"), [(2, 1, True), (1, 1, False), (1, 4, False)])
@torch.no_grad()
def test_block_equals_torchvision(stride: int, dilation: int, first: bool) -> None:
    block = with_statistics(Bottleneck(8 if first else 16, 4, stride, dilation, first))
    shortcut = None
    if first:
        shortcut = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 1, stride, bias=False), FrozenBatchNorm2d(16))
    other = resnet.Bottleneck(8 if first else 16, 4, stride, shortcut, 1, 64, dilation, FrozenBatchNorm2d).eval()
    state = {}
    for name, tensor in block.state_dict().items():
        part, _, rest = name.partition(".")
        norm = rest.startswith("norm.")
        target = f"downsample.{int(norm)}" if part == "shortcut" else f"{'bn' if norm else 'conv'}{part[-1]}"
        state[f"{target}.{rest.removeprefix('norm.')}"] = tensor
    other.load_state_dict(state)
    x = torch.randn(2, 8 if first else 16, 12, 10)
    torch.testing.assert_close(block(x), other(x))


def test_shape_of_the_released_backbone() -> None:
    with torch.device("meta"):
        net = ResNet()
        maps = net.maps(torch.empty(1, 3, 64, 96)).maps
    assert [tuple(x.shape[1:]) for x in maps] == [(256, 16, 24), (512, 8, 12), (1024, 4, 6), (2048, 2, 3)]
    assert net.channels == (256, 512, 1024, 2048)
    convs = [module for module in net.modules() if isinstance(module, FrozenConv)]
    assert len(convs) == 3 + 3 * 33 + 4
    last = net.get_submodule("res5")
    assert [block.conv2.dilation[0] for block in last] == [1, 2, 4]
    assert [block.conv2.stride[0] for block in last] == [2, 1, 1]
    assert {block.conv1.stride[0] for block in last} == {1}


def test_only_convolutions_have_parameters() -> None:
    net = ResNet((1, 1, 1, 1), width=4, last_dilations=(1,))
    assert all(name.endswith(".weight") and "norm" not in name for name, _ in net.named_parameters())
    net(Images(torch.rand(1, 3, 32, 32) * 255, ((32, 32),), ((32, 32),))).dense.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="a dilation for each block"):
        ResNet((1, 1, 1, 2), last_dilations=(1,))
