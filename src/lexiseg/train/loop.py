"""A short training loop that survives being killed.

One process per core, gradients averaged over gloo. Everything random in a step comes from `seed_step`, so the step
number is the whole random state: a run that was killed and resumed draws the same crops as one that was not.
A checkpoint is written beside the old one and renamed over it; a kill at any moment leaves a whole file.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from tqdm import tqdm

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"
SAVE_EVERY, LOG_EVERY = 200, 20
"""Steps."""


@dataclass
class RunState:
    """What a checkpoint holds: the model, its running average, the optimiser and the number of steps done."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    averaged: dict[str, Tensor] = field(default_factory=dict)
    """Exponential moving average of the whole state dict, batch-norm buffers included: the weights to use."""
    step: int = 0
    scaler: torch.amp.GradScaler | None = None
    """For losses in float16, whose gradients would vanish; None needs no scaling."""

    def update_average(self, decay: float) -> None:
        """`decay` is reached gradually, so that the random start is forgotten early."""
        decay = min(decay, (1 + self.step) / (10 + self.step))
        current = self.model.state_dict()
        if not self.averaged:
            self.averaged = {name: value.detach().clone() for name, value in current.items()}
        for name, value in current.items():
            if value.is_floating_point():
                self.averaged[name].lerp_(value, 1 - decay)
            else:
                self.averaged[name].copy_(value)

    def save(self, path: Path) -> None:
        content = {
            "model": self.model.state_dict(),
            "averaged": self.averaged,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }
        partial = path.with_suffix(".partial")
        torch.save(content, partial)
        os.replace(partial, path)

    def load(self, path: Path) -> None:
        content = torch.load(path, weights_only=True, map_location="cpu")
        self.model.load_state_dict(content["model"])
        self.averaged = content["averaged"]
        self.optimizer.load_state_dict(content["optimizer"])
        self.step = content["step"]
        if self.scaler is not None and content.get("scaler"):
            self.scaler.load_state_dict(content["scaler"])

    def backward(self, loss: Tensor) -> None:
        """The gradients of a loss, times the scale where there is one."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def advance(self, parameters: list[nn.Parameter], clip: float) -> Tensor:
        """One step of the optimiser with gradients of length `clip` at most; none where they are not finite.

        Returns their length before.
        """
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, clip)
        if self.scaler is not None:  # looks for itself whether they are finite
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif torch.isfinite(norm):  # the same on every process: the gradients are averaged by now
            self.optimizer.step()
        self.step += 1
        return norm


def seed_step(seed: int, step: int, rank: int) -> random.Random:
    """Seed torch for one step of one process, and return a generator for plain Python draws."""
    mixed = hash((seed, step, rank)) & 0x7FFFFFFF
    torch.manual_seed(mixed)
    return random.Random(mixed)


def cosine(step: int, total_steps: int, warmup: int) -> float:
    """Factor on the learning rate: linear rise over `warmup` steps, then half a cosine down to zero."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return 0.5 * (1 + math.cos(math.pi * progress))


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Mean of the gradients over the processes, in one message."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view_as(p)


def share_of(batch: int) -> tuple[int, int]:
    """(rank, processes): this one takes every `processes`-th item of a batch, from `rank` on."""
    together = dist.is_available() and dist.is_initialized()
    rank, processes = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    if batch % processes:
        raise ValueError(f"a batch of {batch} cannot be divided among {processes} processes")
    return rank, processes


def run(
    loss_of: Callable[[int, random.Random], tuple[Tensor, dict[str, float]]],
    state: RunState,
    total_steps: int,
    out: Path,
    *,
    learning_rate: float,
    warmup: int = 200,
    schedule: Callable[[int, int, int], float] = cosine,
    clip: float = 3.0,
    average_decay: float = 0.999,
    seed: int = 0,
    save_every: int = SAVE_EVERY,
    log_every: int = LOG_EVERY,
    deadline: float | None = None,
) -> bool:
    """Train until `total_steps`, resuming from `out/checkpoint.pt` where there is one.

    loss_of(step, rng) -> (loss, what to log). `schedule(step, total_steps, warmup)` is the factor on the learning rate.
    `deadline` (time.time() seconds) ends the session early with a
    checkpoint. The last step may be changed between sessions: the learning rate follows the new schedule.
    Returns whether the training is complete.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / CHECKPOINT
    if checkpoint.exists():
        state.load(checkpoint)
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    parent = os.getppid()
    sums: dict[str, float] = {}
    begun = time.time()
    bar = tqdm(total=total_steps, initial=state.step, disable=rank != 0, mininterval=5, desc=out.name)
    while state.step < total_steps:
        factor = schedule(state.step, total_steps, warmup)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate * factor * group.get("lr_scale", 1.0)
        loss, numbers = loss_of(state.step, seed_step(seed, state.step, rank))
        state.optimizer.zero_grad(set_to_none=True)
        state.backward(loss)
        average_gradients(parameters)
        norm = state.advance(parameters, clip)
        if rank == 0:
            state.update_average(average_decay)
        for name, value in {**numbers, "norm": float(norm)}.items():
            sums[name] = sums.get(name, 0.0) + value
        bar.update()
        if rank == 0 and state.step % log_every == 0:
            line: dict[str, Any] = {name: round(value / log_every, 4) for name, value in sums.items()}
            line |= {"step": state.step, "lr": learning_rate * factor, "seconds": round(time.time() - begun, 1)}
            with (out / LOG).open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            bar.set_postfix({"loss": line.get("loss", 0.0)})
            sums.clear()
        out_of_time = stop_together(deadline is not None and time.time() > deadline)
        if rank == 0 and (state.step % save_every == 0 or state.step == total_steps or out_of_time):
            state.save(checkpoint)
        if out_of_time:
            break
        if os.getppid() != parent:
            raise SystemExit("the starting process is gone; the last checkpoint can be resumed")
    bar.close()
    return state.step >= total_steps


def stop_together(wish: bool) -> bool:
    """The first process decides for all: clocks differ, and one that leaves alone would block the others."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return wish
    verdict = torch.tensor([float(wish)])
    dist.broadcast(verdict, 0)
    return bool(verdict.item())


def _enter(rank: int, worker: Callable[..., None], processes: int, meeting: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=processes)
    try:
        worker(*arguments)
    finally:
        if processes > 1:
            dist.destroy_process_group()


def launch(worker: Callable[..., None], processes: int, out: Path, *arguments: Any) -> None:
    """Run worker(*arguments) in `processes` processes of one thread each that can average their gradients."""
    out.mkdir(parents=True, exist_ok=True)
    meeting = (out / f".meeting-{os.getpid()}").resolve()
    meeting.unlink(missing_ok=True)
    try:
        torch.multiprocessing.spawn(_enter, (worker, processes, str(meeting), arguments), nprocs=processes)
    finally:
        meeting.unlink(missing_ok=True)


def is_complete(out: Path, total_steps: int) -> bool:
    checkpoint = out / CHECKPOINT
    return checkpoint.exists() and torch.load(checkpoint, weights_only=True, mmap=True)["step"] >= total_steps
