"""OVSeg's region classifier: CLIP on masked crops, fine-tuned on mined pairs, with prompts for what is blank.

Open-Vocabulary Semantic Segmentation with Mask-adapted CLIP (CVPR 2023, arXiv 2210.04150), sections 3.2 and 3.3.

Data:      pairs that `lexiseg data mine` makes of COCO Captions: 442 117 of 12 thousand words, one caption per photo
Time:      5 epochs of batch 128 (ViT-L/14) or 512 (ViT-B/16) on four GPUs for each of the two parts
Expect:    A-847 / A-150 / PC-59 mIoU of the large model: 8.8 / 28.8 / 55.7 fine-tuned, 8.4 / 26.5 / 55.4 with prompts
           alone, 9.0 / 29.6 / 55.7 with prompts after fine-tuning; 7.3 / 21.8 / 51.4 untouched

Command:   lexiseg train ovseg --pairs PAIRS --start MODEL --out RUN, which leaves the classifier in RUN/model

--order says what is trained and in which order: full (the tower), prompts, full-prompts (the paper's best),
prompts-full, or together. Words are frozen throughout. Of one of OpenAI's transformers RUN also has the parts under
OpenAI's names: RUN/full.safetensors and RUN/prompts.safetensors, which `lexiseg convert CHECKPOINT --clip RUN/...` puts
into the file of a segmenter. A ConvNet has prompts of another kind, see `clip.convnet`. The official run used float16
with loss scaling; here it is bfloat16 on a GPU and float32 on a CPU.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.clip.text import TextEncoder
from lexiseg.clip.vit import MaskPromptedTransformer
from lexiseg.data.pairs import MaskWordPairs, shown_part
from lexiseg.layers.normalise import CLIP_MEAN, CLIP_STD
from lexiseg.regions.crops import MaskedCrops
from lexiseg.system import System
from lexiseg.text_bank import encode_vocabulary
from lexiseg.train.clip_adaptation import contrastive_loss, of_all_processes, random_view
from lexiseg.train.loop import RunState, cosine, run, share_of
from lexiseg.train.recipes.fcclip import photo_numbers
from lexiseg.vocabulary import Vocabulary
from lexiseg.weights.files import save_safetensors
from lexiseg.zoo.cropped import crop_reader
from lexiseg.zoo.loading import load, settings_of
from lexiseg.zoo.model_folder import Model, save_model_folder
from lexiseg.zoo.ovseg import ovseg_given

LEARNING_RATE, PROMPT_LEARNING_RATE = 5e-6, 0.05
WEIGHT_DECAY = 0.2
NOT_DECAYED = ("bn", "ln", "bias", "logit_scale")
"""Parts of names of tensors that do not decay, as no tensor of one dimension does."""
BETAS, EPS = (0.9, 0.98), 1e-6
WARMUP = 100
EPOCHS = 5
BATCH = 128
PROMPT_DEPTH = 3
"""Of a transformer. A ConvNet has one place for prompts."""
SCALE = 100.0
"""The largest factor of similarities, which is that of OpenAI's weights and of inference."""

Order = Literal["full", "prompts", "full-prompts", "prompts-full", "together"]
Draw = Literal["pairs", "distinct"]
"""How batches are drawn: "pairs", each once per epoch, so that one word may stand several times in a batch and is then
its own negative, as in the original; or "distinct", at random and every word at most once in a batch."""


@dataclass(frozen=True)
class Stage:
    """One training: what learns."""

    name: str
    tower: bool
    prompts: bool
    shows_prompts: bool = True
    """Whether prompts are in their places, learning or not."""


FULL = Stage("full", tower=True, prompts=False, shows_prompts=False)
FULL_AFTER = Stage("full", tower=True, prompts=False)
PROMPTS = Stage("prompts", tower=False, prompts=True)
TOGETHER = Stage("together", tower=True, prompts=True)

STAGES: dict[Order, tuple[Stage, ...]] = {
    "full": (FULL,),
    "prompts": (PROMPTS,),
    "full-prompts": (FULL, PROMPTS),
    "prompts-full": (PROMPTS, FULL_AFTER),
    "together": (TOGETHER,),
}


class Adapted(nn.Module):
    """A tower in training, with the scale of its similarities."""

    def __init__(self, tower: nn.Module, scale: float = SCALE) -> None:
        """scale: the factor of similarities that training begins with."""
        super().__init__()
        self.tower: Any = tower
        self.logit_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def factor(self) -> Tensor:
        """Of the similarities, 1 to 100: what a step took beyond is given back before the next."""
        with torch.no_grad():
            self.logit_scale.clamp_(0, math.log(SCALE))
        return self.logit_scale.exp()


@dataclass(frozen=True)
class Plan:
    """How long, how fast."""

    steps: int
    batch: int = BATCH
    learning_rate: float = LEARNING_RATE
    warmup: int = WARMUP


def prepare(adapted: Adapted, stage: Stage) -> None:
    """Trainable is what the stage trains, and the scale. Everything is in evaluation mode: batch norms stay."""
    adapted.eval().requires_grad_(False)
    adapted.logit_scale.requires_grad_(True)
    prompts = adapted.tower.mask_embedding
    for p in adapted.tower.parameters():
        p.requires_grad_(stage.prompts if p is prompts else stage.tower)
    if stage.prompts and prompts is None:
        raise ValueError("the tower has no place for prompts; build it with a prompt depth")


def parameter_groups(adapted: Adapted, stage: Stage, prompt_scale: float) -> list[dict[str, Any]]:
    """One group per trainable tensor. prompt_scale: how much faster prompts learn than what is trained with them."""
    groups = []
    for name, p in adapted.named_parameters():
        if p.requires_grad:
            own = name.rpartition("mask_embedding")[1] != ""
            decays = p.ndim >= 2 and not own and not any(part in name for part in NOT_DECAYED)
            scale = prompt_scale if own and stage.tower else 1.0
            groups.append({"params": [p], "weight_decay": WEIGHT_DECAY if decays else 0.0, "lr_scale": scale})
    return groups


def distinct_numbers(rng: random.Random, words: Sequence[str], batch: int) -> list[int]:
    """Pairs at random, no word twice; fewer than `batch` only where many draws bring no further word."""
    found: dict[str, int] = {}
    for _ in range(50 * batch):
        number = rng.randrange(len(words))
        found.setdefault(words[number], number)
        if len(found) == batch:
            break
    return list(found.values())


def batch_of(
    rng: random.Random, regions: Sequence[NDArray[np.uint8]], side: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Stored regions -> pixels [N, 3, S, S], normalised, and their masks [N, S, S]."""
    views = np.stack([random_view(rng, region, side) for region in regions])
    masks = torch.from_numpy(np.stack([shown_part(view) for view in views]))
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    pixels = (torch.from_numpy(views).permute(0, 3, 1, 2).float() - mean) / std
    return pixels.to(device), masks.to(device)


def train_stage(
    adapted: Adapted,
    stage: Stage,
    pairs: MaskWordPairs,
    rows: Mapping[str, Tensor],
    out: Path,
    plan: Plan,
    *,
    draw: Draw = "pairs",
    prompt_scale: float = PROMPT_LEARNING_RATE / LEARNING_RATE,
    autocast: torch.dtype | None = None,
    seed: int = 0,
    **loop: Any,
) -> bool:
    """Trains what the stage trains, resuming from `out` where it has begun there; whether it is complete.

    rows: word -> unit row [D]. Further keywords go to `loop.run`.
    """
    prepare(adapted, stage)
    device = adapted.logit_scale.device
    rank, processes = share_of(plan.batch)
    words = [pair.word for _, pair in pairs.entries]

    def loss_of(step: int, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        if draw == "pairs":
            numbers = list(photo_numbers(seed, step, len(pairs), plan.batch))
        else:
            numbers = distinct_numbers(random.Random(f"{seed} {step}"), words, plan.batch)
            numbers = numbers[: len(numbers) // processes * processes]
        numbers = numbers[rank::processes]
        pixels, masks = batch_of(rng, [pairs[number][0] for number in numbers], adapted.tower.image_size, device)
        keep = adapted.tower.keep(masks) if stage.shows_prompts else None
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            embeds = adapted.tower(pixels, keep)
        images = of_all_processes(functional.normalize(embeds.float(), dim=-1))
        text = of_all_processes(torch.stack([rows[words[number]] for number in numbers]).to(device))
        loss = contrastive_loss(images, text, adapted.factor())
        return loss, {"loss": float(loss.detach()), "scale": float(adapted.logit_scale.detach().exp())}

    schedule: Callable[[int, int, int], float] = cosine
    groups = parameter_groups(adapted, stage, prompt_scale)
    return run(
        loss_of,
        RunState(adapted, torch.optim.AdamW(groups, lr=plan.learning_rate, betas=BETAS, eps=EPS)),
        plan.steps,
        out,
        learning_rate=plan.learning_rate,
        warmup=min(plan.warmup, plan.steps),
        schedule=schedule,
        clip=math.inf,  # gradients are not clipped
        average_decay=0.0,  # the official training keeps no running average unless asked
        seed=seed,
        **loop,
    )


def start_system(
    model: str | Path, order: Order, crop_side: int | None, device: torch.device
) -> tuple[Model, System, dict[str, Any]]:
    """A model on this machine, its CLIP as a region classifier on masked crops, and what builds one.

    Where prompts will be trained there is a place for them, fresh unless the model has some.
    """
    settings = settings_of(model)
    found = load(model, device)
    reader = crop_reader(found, crop_side)
    state = reader.tower.state_dict()
    blocks = isinstance(reader.tower, MaskPromptedTransformer)
    depth = 0
    if "mask_embedding" in state:
        depth = len(state["mask_embedding"]) if blocks else 1
    elif any(stage.prompts for stage in STAGES[order]):
        depth = PROMPT_DEPTH if blocks else 1
    arguments: dict[str, Any] = {
        "tower": settings.arguments["tower"],
        "threshold": reader.threshold,
        "prompt_depth": depth,
        "fill": reader.fill,
        "matting": reader.matting,
        "expansion": reader.expansion,
    }
    if not blocks:
        arguments["crop_side"] = reader.tower.image_size
    system = ovseg_given(**arguments, device=device)
    crops = cast(MaskedCrops, system.embedder)
    fresh = {name: x for name, x in crops.tower.state_dict().items() if name == "mask_embedding"}
    crops.tower.load_state_dict(fresh | state)
    return found, system.eval(), arguments


def word_rows(model: Model, words: Sequence[str], template: str) -> dict[str, Tensor]:
    """word -> unit row [D]. template: one with a {}, or "own" for those of the model."""
    templates = model.templates if template == "own" else [template]
    rows = encode_vocabulary(Vocabulary.parse(list(words)), templates, model.text_encoder)[:, 0]
    return dict(zip(words, rows, strict=True))


def train_pairs(
    pairs: Path,
    out: Path,
    start: str = "street-tiny",
    order: str = "full-prompts",
    epochs: float = EPOCHS,
    prompt_epochs: float = EPOCHS,
    batch: int = BATCH,
    learning_rate: float = LEARNING_RATE,
    prompt_learning_rate: float = PROMPT_LEARNING_RATE,
    warmup: int = WARMUP,
    crop_side: int | None = None,
    draw: str = "pairs",
    template: str = "{}",
    device: str = "cpu",
    seed: int = 0,
    save_every: int = 200,
    log_every: int = 20,
    deadline: float | None = None,
) -> bool:
    """Adapt the CLIP of `start`, a name of the zoo or a folder, to the pairs of a folder; whether it is complete.

    crop_side: of a ConvNet, pixels of the crops. draw: pairs or distinct (no word twice in a batch). template: of the
    words; {} is the bare word, own stands for those of the model. The same command goes on where a run was stopped.
    When it is complete, the classifier is in out/model.
    """
    for word, known in ((order, Order), (draw, Draw)):
        if word not in get_args(known):
            raise ValueError(f"{word!r}: choose one of {', '.join(get_args(known))}")
    found = MaskWordPairs(pairs)
    torch.manual_seed(seed)
    where = torch.device(device)
    chosen = cast(Order, order)
    model, system, arguments = start_system(start, chosen, crop_side, where)
    tower = cast(MaskedCrops, system.embedder).tower
    rows = word_rows(model, found.words, template)
    own = getattr(model.system.scorer, "logit_scale", None)
    scale = float(torch.as_tensor(math.log(SCALE) if own is None else own).exp())
    train = partial(
        train_stage,
        draw=cast(Draw, draw),
        prompt_scale=prompt_learning_rate / learning_rate,
        autocast=torch.bfloat16 if where.type == "cuda" else None,
        seed=seed,
        save_every=save_every,
        log_every=log_every,
        deadline=deadline,
    )
    for stage in STAGES[chosen]:
        length, rate = (epochs, learning_rate) if stage.tower else (prompt_epochs, prompt_learning_rate)
        plan = Plan(max(1, int(length * len(found) // batch)), batch, rate, warmup)
        if not train(Adapted(tower, scale).to(where), stage, found, rows, out / stage.name, plan):
            return False
        if isinstance(tower, MaskPromptedTransformer):
            _save_part(tower, stage, model.text_encoder(), out / f"{stage.name}.safetensors")
    save_model_folder(
        out / "model",
        system,
        model.text_encoder(),
        builder="ovseg_given",
        arguments=arguments,
        templates=list(model.templates),
        canvas=model.canvas,
        outputs=model.outputs,
        training_phrases=found.words,
        card={
            "title": f"CLIP on masked crops, adapted to {found.folder.name}",
            "started_from": model.name,
            "order": order,
            "pairs": len(found),
        },
    )
    return True


def _save_part(tower: nn.Module, stage: Stage, text: TextEncoder, path: Path) -> None:
    """What a stage trained, under OpenAI's names: a whole CLIP, or the prompts alone."""
    visual = {f"visual.{name}": value for name, value in tower.state_dict().items()}
    if not stage.tower:
        visual = {"visual.mask_embedding": visual["visual.mask_embedding"]}
        save_safetensors(visual, path)
        return
    if not stage.shows_prompts:
        visual.pop("visual.mask_embedding", None)
    save_safetensors(visual | dict(text.state_dict()) | {"logit_scale": torch.tensor(math.log(SCALE))}, path)
