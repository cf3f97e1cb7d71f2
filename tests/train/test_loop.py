"""The training loop: resuming, averaging, schedules."""

import json
import random
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lexiseg.train.loop import RunState, average_gradients, cosine, is_complete, launch, run


def start() -> RunState:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    return RunState(model, torch.optim.AdamW(model.parameters()))


def train(state: RunState, out: Path, steps: int, killed_at: int | None = None) -> bool:
    def loss_of(step: int, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        if step == killed_at:
            raise KeyboardInterrupt
        x = torch.randn(16, 4) * rng.uniform(0.5, 1.5)
        loss = (state.model(x)[:, 0] - x.sum(1)).square().mean()
        return loss, {"loss": float(loss.detach())}

    return run(loss_of, state, steps, out, learning_rate=1e-2, warmup=5, save_every=4, log_every=2)


def test_a_killed_run_ends_where_the_whole_one_ends(tmp_path: Path) -> None:
    whole, first, second = start(), start(), start()
    assert train(whole, tmp_path / "whole", 20)
    with pytest.raises(KeyboardInterrupt):
        train(first, tmp_path / "torn", 20, killed_at=14)  # two steps after the last checkpoint
    assert not is_complete(tmp_path / "torn", 20)
    assert train(second, tmp_path / "torn", 20)
    assert is_complete(tmp_path / "torn", 20)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
        assert torch.equal(whole.averaged[name], second.averaged[name]), name
    assert not list((tmp_path / "torn").glob("*.partial"))


def test_scaled_losses_give_the_same_steps_and_overflowing_ones_none(tmp_path: Path) -> None:
    """Without float16 the scale goes in and out again; a loss that overflows halves it and moves nothing."""
    plain, scaled = start(), start()
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
    train(plain, tmp_path / "plain", 6)
    train(scaled, tmp_path / "scaled", 6)
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(value, scaled.model.state_dict()[name])
    assert scaled.scaler.get_scale() == 16.0
    again = start()
    again.scaler = torch.amp.GradScaler("cpu")
    again.load(tmp_path / "scaled" / "checkpoint.pt")
    assert again.scaler.get_scale() == 16.0
    before = {name: value.clone() for name, value in again.model.named_parameters()}
    again.backward(again.model(torch.full((4, 4), 1.0)).sum() * float("inf"))
    again.advance(list(again.model.parameters()), 1.0)
    assert again.scaler.get_scale() == 8.0 and again.step == 7
    assert all(torch.equal(before[name], value) for name, value in again.model.named_parameters())


def test_log_has_a_line_per_interval(tmp_path: Path) -> None:
    train(start(), tmp_path, 8)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_deadline_stops_with_a_checkpoint(tmp_path: Path) -> None:
    state = start()
    loss = state.model(torch.randn(4, 4)).mean
    complete = run(lambda step, rng: (loss(), {}), state, 50, tmp_path, learning_rate=0.0, deadline=0.0)
    assert not complete
    assert state.step == 1
    assert (tmp_path / "checkpoint.pt").exists()


def test_schedule() -> None:
    assert cosine(0, 100, 10) == pytest.approx(0.1)
    assert cosine(10, 100, 10) == pytest.approx(1.0)
    assert cosine(55, 100, 10) == pytest.approx(0.5)
    assert cosine(100, 100, 10) == pytest.approx(0.0)


def _average_two(out: Path) -> None:
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    x = torch.tensor([[2.0, 0.0]]) if dist.get_rank() == 0 else torch.tensor([[0.0, 4.0]])
    model(x).sum().backward()
    average_gradients(list(model.parameters()))
    torch.save(model.weight.grad, out / f"{dist.get_rank()}.pt")


def test_processes_share_their_gradients(tmp_path: Path) -> None:
    launch(_average_two, 2, tmp_path, tmp_path)
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=True).tolist() == [[1.0, 2.0]]
