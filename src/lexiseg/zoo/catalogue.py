"""ZOO: every model by name, written out. Numbers are as published; measured ones are in the cards of the models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

BENCHMARKS = {
    "ade20k-150": "ADE20K-150",
    "cityscapes": "Cityscapes",
    "mapillary": "Mapillary Vistas",
    "ade20k-847": "ADE20K-847",
    "context-59": "PASCAL Context-59",
    "context-459": "PASCAL Context-459",
    "voc-21": "PASCAL VOC-21",
    "voc-20": "PASCAL VOC-20",
    "coco": "COCO panoptic",
    "coco-stuff": "COCO-Stuff",
}
"""Benchmark -> its written name."""

Numbers = Mapping[str, Mapping[str, float]]
"""Benchmark -> metric ("pq", "ap", "miou"; "sq", "rq"; "mask_acc", of given true masks) -> percent."""


@dataclass(frozen=True)
class Embedded:
    """The weights are part of the installed package: nothing to fetch."""

    folder: str
    """Name of the folder beside this file, under embedded/."""


@dataclass(frozen=True)
class HubRepository:
    """The weights are a model folder in a hub repository."""

    repository: str
    revision: str


@dataclass(frozen=True)
class OfficialFile:
    """The authors' checkpoint, which the user fetches from its page and converts once."""

    file: str
    """What the file is, and its name where it is known."""
    page: str
    gigabytes: float
    """Size of the weights in it, float32."""
    tower: str
    """The open_clip name of its CLIP: by it a file is recognised."""
    beside: str = ""
    """Other official files it is put together with, as the options of `lexiseg convert` that name them."""

    @property
    def command(self) -> str:
        """What makes a model of it."""
        return " ".join(filter(None, ("lexiseg convert FILE", self.beside)))


@dataclass(frozen=True)
class HubPart:
    """Part of a composed model, in a repository of its makers. Nothing is pinned: it is fetched as it is at the time,
    and each file is checked against the hash that the hub gives for it."""

    kind: Literal["transformers", "open_clip"]
    repository: str
    revision: str = "main"


@dataclass(frozen=True)
class Composed:
    """The mask generator of one source before the region classifier of another."""

    proposals: HubPart
    regions: HubPart | str
    """A CLIP, or a model of the zoo by its name."""


@dataclass(frozen=True)
class Entry:
    """One model of the zoo."""

    name: str
    title: str
    paper: str
    builder: str
    """"composed" for models that no builder makes."""
    arguments: Mapping[str, Any]
    source: Embedded | HubRepository | OfficialFile | Composed
    code_licence: str
    weights_licence: str
    trained_on: str
    needs: str
    state: Literal["ready", "convert", "fetch"]
    published: Numbers
    miou_rule: Literal["gt", "gt_or_pred"] | None = None
    """Over which classes the published mIoU is the mean; None where nothing is published."""


FCCLIP_PAPER = "arXiv 2308.02487"
FCCLIP_PAGE = "https://github.com/bytedance/fc-clip (table of models in its README)"
FCCLIP_CODE_LICENCE = "Apache-2.0"
FCCLIP_WEIGHTS_LICENCE = "see the page of the file; CLIP tower MIT"
FCCLIP_TRAINED_ON = "COCO 2017 panoptic (133 classes)"


def _fcclip(name: str, tower: str, file: str, gigabytes: float, published: Numbers) -> Entry:
    return Entry(
        name=name,
        title=f"FC-CLIP, {tower}",
        paper=FCCLIP_PAPER,
        builder="fcclip",
        arguments={"tower": tower},
        source=OfficialFile(file, FCCLIP_PAGE, gigabytes, tower),
        code_licence=FCCLIP_CODE_LICENCE,
        weights_licence=FCCLIP_WEIGHTS_LICENCE,
        trained_on=FCCLIP_TRAINED_ON,
        needs=f"the official file ({gigabytes:.1f} GB), converted once",
        state="convert",
        published=published,
        miou_rule="gt",
    )


MAFTPLUS_PAPER = "arXiv 2408.00744"
MAFTPLUS_PAGE = "https://github.com/jiaosiyu1999/MAFT-Plus (table of models in its README)"


def _maftplus(
    name: str, title: str, tower: str, file: str, gigabytes: float, norm_order: str, trained_on: str, published: Numbers
) -> Entry:
    return Entry(
        name=name,
        title=title,
        paper=MAFTPLUS_PAPER,
        builder="maftplus",
        arguments={"tower": tower, "norm_order": norm_order},
        source=OfficialFile(file, MAFTPLUS_PAGE, gigabytes, tower),
        code_licence="MIT",
        weights_licence="see the page of the file; CLIP tower MIT",
        trained_on=trained_on,
        needs=f"the official file ({gigabytes:.1f} GB), converted once",
        state="convert",
        published=published,
        # The project's own evaluator; on Context-459 and ADE20K-847 it gives less than FC-CLIP's would.
        miou_rule="gt_or_pred" if any("miou" in numbers for numbers in published.values()) else None,
    )


MASK_ADAPTER_PAPER = "arXiv 2412.04533"
MASK_ADAPTER_PAGE = "https://github.com/hustvl/MaskAdapter (table of models in its README)"


def _mask_adapter(
    name: str, title: str, builder: str, arguments: Mapping[str, Any], file: str, gigabytes: float, published: Numbers
) -> Entry:
    on_fcclip = builder == "mask_adapter_fcclip"
    return Entry(
        name=name,
        title=title,
        paper=MASK_ADAPTER_PAPER,
        builder=builder,
        arguments=arguments,
        source=OfficialFile(file, MASK_ADAPTER_PAGE, gigabytes, arguments["tower"]),
        code_licence="Apache-2.0",
        weights_licence="see the page of the file; CLIP tower MIT",
        trained_on=FCCLIP_TRAINED_ON if on_fcclip else "COCO-Stuff-164k, train2017 (171 classes)",
        needs=f"the official file ({gigabytes:.1f} GB), converted once",
        state="convert",
        published=published,
        miou_rule="gt",  # by the stock evaluator, on MAFT+ too
    )


MASKCLIP_PP_PAPER = "arXiv 2412.11464"
MASKCLIP_PP_PAGE = "https://github.com/HVision-NKU/MaskCLIPpp (table of models in its README)"
COCO_PANOPTIC, COCO_STUFF = "COCO 2017 panoptic (133 classes)", "COCO-Stuff-164k, train2017 (171 classes)"


def _maskclip_pp(
    name: str,
    title: str,
    arguments: Mapping[str, Any],
    gigabytes: float,
    beside: str,
    published: Numbers,
    trained_on: str = COCO_PANOPTIC,
    builder: str = "maskclip_pp",
) -> Entry:
    return Entry(
        name=name,
        title=f"MaskCLIP++, {title}",
        paper=MASKCLIP_PP_PAPER,
        builder=builder,
        arguments=arguments,
        source=OfficialFile(
            f"the checkpoint for {title.partition(' behind ')[0]}",
            MASKCLIP_PP_PAGE,
            gigabytes,
            arguments["tower"],
            beside,
        ),
        code_licence="Apache-2.0",
        weights_licence="see the pages of the files; CLIP towers MIT",
        trained_on=trained_on,
        needs=f"the official file ({gigabytes:.1f} GB) and that of the mask generator, converted together once",
        state="convert",
        published=published,
        miou_rule="gt" if any("miou" in numbers for numbers in published.values()) else None,
    )


def _ade(miou: float, pq: float, ap: float) -> Numbers:
    """The column of MaskCLIP++'s table of models without ensemble."""
    return {"ade20k-150": {"pq": pq, "ap": ap, "miou": miou}}


def _wordy(miou: tuple[float, float, float, float, float], **ade: float) -> Numbers:
    """The rows of its table of the model that tuned its words. miou: A-847, PC-459, A-150, PC-59, PAS-20; ade: more."""
    first, second, third, *rest = miou
    numbers = dict(_miou_numbers(first, third, second, *rest))
    return {**numbers, "ade20k-150": {**numbers["ade20k-150"], **ade}}


def _with_mask_accuracy(numbers: Numbers) -> Numbers:
    """The same with how that model names true masks, which has nothing to do with its generator."""
    names = ("ade20k-847", "context-459", "ade20k-150", "context-59", "coco-stuff", "cityscapes")
    accuracy = dict(zip(names, (38.4, 56.4, 67.0, 85.2, 67.8, 71.0), strict=True))
    found = {name: {**numbers.get(name, {}), "mask_acc": value} for name, value in accuracy.items()}
    return {**numbers, **found}


OVSEG_PAPER = "arXiv 2210.04150"
OVSEG_PAGE = "https://github.com/facebookresearch/ov-seg (GETTING_STARTED.md)"


def _ovseg(
    name: str, title: str, arguments: Mapping[str, Any], file: str, gigabytes: float, beside: str, published: Numbers
) -> Entry:
    return Entry(
        name=name,
        title=f"OVSeg, {title}",
        paper=OVSEG_PAPER,
        builder="ovseg",
        arguments=arguments,
        source=OfficialFile(file, OVSEG_PAGE, gigabytes, arguments["tower"], beside),
        code_licence="CC BY-NC 4.0 (of the original; here it is written anew)",
        weights_licence="CC BY-NC 4.0: non-commercial use only",
        trained_on=COCO_STUFF,
        needs=f"the official file ({gigabytes:.1f} GB), converted once",
        state="convert",
        published=published,
        miou_rule="gt_or_pred" if published else None,
    )


MAFT_PAPER = "arXiv 2310.00240"
MAFT_PAGE = "https://github.com/jiaosiyu1999/MAFT (README)"


def _maft(name: str, title: str, builder: str, tower: str, file: str, gigabytes: float, published: Numbers) -> Entry:
    return Entry(
        name=name,
        title=title,
        paper=MAFT_PAPER,
        builder=builder,
        arguments={"tower": tower},
        source=OfficialFile(file, MAFT_PAGE, gigabytes, tower),
        code_licence="see its page (of the original; here it is written anew)",
        weights_licence="see the page of the file; CLIP tower MIT",
        trained_on=COCO_STUFF,
        needs=f"the official file ({gigabytes:.1f} GB), converted once",
        state="convert",
        published=published,
        # By the evaluator of its time; on Context-459 today's gives 15.57 for the same predictions of maft-base.
        miou_rule="gt_or_pred",
    )


def _miou_numbers(*miou: float) -> Numbers:
    """The columns of the tables of MAFT+ and Mask-Adapter: A-847, A-150, PC-459, PC-59, PAS-20."""
    names = ("ade20k-847", "ade20k-150", "context-459", "context-59", "voc-20")
    return {name: {"miou": value} for name, value in zip(names, miou, strict=True)}


def _fcclip_numbers(
    ade: tuple[float, float, float],
    cityscapes: tuple[float, float, float],
    mapillary: tuple[float, float],
    semantic: tuple[float, float, float, float, float],
    coco: tuple[float, float, float],
) -> Numbers:
    """The columns of the paper's table. semantic: A-847, PC-59, PC-459, PAS-21, PAS-20."""
    panoptic = ("pq", "ap", "miou")
    names = ("ade20k-847", "context-59", "context-459", "voc-21", "voc-20")
    return {
        "ade20k-150": dict(zip(panoptic, ade, strict=True)),
        "cityscapes": dict(zip(panoptic, cityscapes, strict=True)),
        "mapillary": dict(zip(("pq", "miou"), mapillary, strict=True)),
        **{name: {"miou": value} for name, value in zip(names, semantic, strict=True)},
        "coco": dict(zip(panoptic, coco, strict=True)),
    }


ENTRIES = (
    Entry(
        name="street-tiny",
        title="Street and outdoor scenes in miniature (the default)",
        paper="this package",
        builder="fcclip",
        arguments={},
        source=Embedded("street-tiny"),
        code_licence="Apache-2.0",
        weights_licence="non-commercial use only (follows from CamVid and MSRC)",
        trained_on="CamVid, MSRC and photos with COCO masks",
        needs="nothing: it is in the package",
        state="ready",
        published={},
    ),
    Entry(
        name="outdoor-tiny",
        title="Its permissive twin, from the COCO photos alone; weaker, masks by clustering",
        paper="this package",
        builder="clustered",
        arguments={},
        source=Embedded("outdoor-tiny"),
        code_licence="Apache-2.0",
        weights_licence="Apache-2.0, as is usual for weights trained on COCO; the photos carry their own licences",
        trained_on="photos with COCO masks",
        needs="nothing in a checkout; the wheel leaves it out",
        state="ready",
        published={},
    ),
    _fcclip(
        "fcclip-rn50",
        "RN50",
        "the RN50 checkpoint",
        0.5,
        _fcclip_numbers(
            (17.9, 9.5, 23.3), (40.3, 21.6, 53.2), (15.9, 24.4), (7.1, 50.5, 12.9, 75.9, 89.5), (50.7, 40.7, 58.8)
        ),
    ),
    _fcclip(
        "fcclip-rn101",
        "RN101",
        "the RN101 checkpoint",
        0.6,
        _fcclip_numbers(
            (19.1, 10.2, 24.0), (40.9, 24.1, 53.9), (16.7, 23.2), (7.7, 48.9, 12.3, 77.6, 91.3), (51.4, 41.6, 58.9)
        ),
    ),
    _fcclip(
        "fcclip-rn50x4",
        "RN50x4",
        "the RN50x4 checkpoint",
        0.8,
        _fcclip_numbers(
            (21.8, 11.7, 26.8), (42.2, 23.8, 54.6), (17.4, 24.6), (8.7, 54.0, 13.1, 79.0, 92.9), (52.1, 42.8, 60.4)
        ),
    ),
    _fcclip(
        "fcclip-rn50x16",
        "RN50x16",
        "the RN50x16 checkpoint",
        1.2,
        _fcclip_numbers(
            (22.5, 13.6, 29.4), (42.0, 25.6, 56.0), (17.8, 26.1), (10.3, 56.4, 15.7, 80.7, 94.5), (54.4, 45.0, 63.3)
        ),
    ),
    _fcclip(
        "fcclip-rn50x64",
        "RN50x64",
        "the RN50x64 checkpoint",
        2.6,
        _fcclip_numbers(
            (22.8, 13.6, 28.4), (42.7, 27.4, 55.1), (18.2, 27.3), (10.8, 55.7, 16.2, 80.3, 95.1), (55.6, 46.4, 65.3)
        ),
    ),
    _fcclip(
        "fcclip-convnext-large",
        "convnext_large_d_320",
        "fcclip_cocopan.pth",
        1.5,
        _fcclip_numbers(
            (26.8, 16.8, 34.1), (44.0, 26.8, 56.2), (18.3, 27.8), (14.8, 58.4, 18.2, 81.8, 95.4), (54.4, 44.6, 63.7)
        ),
    ),
    _maftplus(
        "maftplus-base",
        "MAFT+, convnext_base_w_320",
        "convnext_base_w_320",
        "maftp_b.pth",
        1.5,
        "after_sum",
        "COCO-Stuff-164k, train2017 (171 classes)",
        _miou_numbers(13.8, 34.6, 16.2, 57.5, 95.4),
    ),
    _maftplus(
        "maftplus-large",
        "MAFT+, convnext_large_d_320",
        "convnext_large_d_320",
        "maftp_l.pth",
        2.9,
        "after_sum",
        "COCO-Stuff-164k, train2017 (171 classes)",
        _miou_numbers(15.1, 36.1, 21.6, 59.4, 96.5),
    ),
    _maftplus(
        "maftplus-large-panoptic",
        "MAFT+, convnext_large_d_320, panoptic",
        "convnext_large_d_320",
        "maftp_l_pano.pth",
        2.9,
        "before_sum",
        "COCO 2017 panoptic (133 classes)",
        {"ade20k-150": {"pq": 27.1, "sq": 73.5, "rq": 32.9}},
    ),
    _mask_adapter(
        "mask-adapter-fcclip-large",
        "Mask-Adapter on FC-CLIP, convnext_large_d_320",
        "mask_adapter_fcclip",
        {"tower": "convnext_large_d_320"},
        "fcclip_convnext_large_maskadapter.pth",
        1.6,
        _miou_numbers(14.1, 36.6, 19.3, 59.7, 95.5),
    ),
    _mask_adapter(
        "mask-adapter-maftplus-base",
        "Mask-Adapter on MAFT+, convnext_base_w_320",
        "mask_adapter_maftplus",
        {"tower": "convnext_base_w_320"},
        "the checkpoint for MAFT+ base",
        0.9,
        _miou_numbers(14.2, 35.6, 17.9, 58.4, 95.1),
    ),
    _mask_adapter(
        "mask-adapter-maftplus-large",
        "Mask-Adapter on MAFT+, convnext_large_d_320",
        "mask_adapter_maftplus",
        {"tower": "convnext_large_d_320", "alpha": 0.8, "mask_threshold": 0.4, "norm_order": "before_sum"},
        "maftp_convnext_large_maskadapter.pth",
        1.6,
        _miou_numbers(16.2, 38.2, 22.7, 60.4, 95.8),
    ),
    _maskclip_pp(
        "maskclip-pp-rn50x16",
        "RN50x16 behind FC-CLIP base",
        {"tower": "RN50x16", "generator_tower": "convnext_base_w_320", "short_edge": 512},
        0.7,
        "--generator FCCLIP_B --clip RN50X16",
        _ade(29.3, 21.8, 11.1),
    ),
    _maskclip_pp(
        "maskclip-pp-convnext-base",
        "convnext_base_w_320 behind FC-CLIP base",
        {"tower": "convnext_base_w_320", "generator_tower": "convnext_base_w_320", "short_edge": 512},
        0.4,
        "--generator FCCLIP_B",
        _ade(35.1, 24.5, 13.6),
    ),
    _maskclip_pp(
        "maskclip-pp-convnext-large",
        "convnext_large_d_320 behind FC-CLIP large",
        {"tower": "convnext_large_d_320", "generator_tower": "convnext_large_d_320", "short_edge": 640},
        0.8,
        "--generator fcclip_cocopan.pth",
        _ade(35.6, 26.5, 16.7),
    ),
    _maskclip_pp(
        "maskclip-pp-convnext-xxlarge",
        "convnext_xxlarge behind FC-CLIP large",
        {"tower": "convnext_xxlarge", "generator_tower": "convnext_large_d_320", "short_edge": 640},
        3.4,
        "--generator fcclip_cocopan.pth --clip CONVNEXT_XXLARGE",
        _ade(36.4, 27.1, 16.6),
    ),
    _maskclip_pp(
        "maskclip-pp-eva-base",
        "EVA02-B-16 behind FC-CLIP base",
        {"tower": "EVA02-B-16", "generator_tower": "convnext_base_w_320", "short_edge": 384},
        0.4,
        "--generator FCCLIP_B --clip EVA02_CLIP_B_psz16_s8B.pt",
        _ade(33.8, 24.4, 13.2),
    ),
    _maskclip_pp(
        "maskclip-pp-eva-large",
        "EVA02-L-14-336 behind FC-CLIP large",
        {"tower": "EVA02-L-14-336", "generator_tower": "convnext_large_d_320", "short_edge": 392},
        1.2,
        "--generator fcclip_cocopan.pth --clip EVA02_CLIP_L_336_psz14_s6B.pt",
        _ade(36.6, 27.3, 17.0),
    ),
    _maskclip_pp(
        "maskclip-pp-eva-giant",
        "EVA01-g-14-plus behind FC-CLIP large",
        {"tower": "EVA01-g-14-plus", "generator_tower": "convnext_large_d_320", "short_edge": 336},
        4.0,
        "--generator fcclip_cocopan.pth --clip EVA01_CLIP_g_14_plus_psz14_s11B.pt",
        _ade(36.8, 27.7, 17.1),
    ),
    _maskclip_pp(
        "maskclip-pp-convnext-base-swin-tiny",
        "convnext_base_w_320 behind Mask2Former Swin-T",
        {"tower": "convnext_base_w_320", "swin": "swin_tiny", "short_edge": 512},
        0.4,
        "--generator model_final_9fd0ae.pkl --clip CONVNEXT_BASE",
        {},
        builder="maskclip_pp_mask2former",
    ),
    _maskclip_pp(
        "maskclip-pp-convnext-base-swin-large",
        "convnext_base_w_320 behind Mask2Former Swin-L",
        {"tower": "convnext_base_w_320", "swin": "swin_large", "num_queries": 200, "short_edge": 512},
        0.4,
        "--generator model_final_f07440.pkl --clip CONVNEXT_BASE",
        {},
        builder="maskclip_pp_mask2former",
    ),
    _maskclip_pp(
        "maskclip-pp-convnext-base-maftplus",
        "convnext_base_w_320 (COCO-Stuff) behind MAFT+ base",
        {
            "tower": "convnext_base_w_320",
            "generator_tower": "convnext_base_w_320",
            "num_queries": 100,
            "short_edge": 512,
            "alpha": 0.6,
        },
        0.4,
        "--generator maftp_b.pth --clip CONVNEXT_BASE",
        _wordy((14.5, 18.7, 35.4, 59.1, 95.8)),
        COCO_STUFF,
    ),
    _maskclip_pp(
        "maskclip-pp-eva-large-words-fcclip",
        "EVA02-L-14-336 with its words (COCO-Stuff) behind FC-CLIP large",
        {
            "tower": "EVA02-L-14-336",
            "generator_tower": "convnext_large_d_320",
            "short_edge": 392,
            "num_templates": 1,
            "alpha": 0.9,
        },
        1.7,
        "--generator fcclip_cocopan.pth",
        _wordy((15.4, 21.3, 37.1, 62.6, 96.4), pq=27.7, sq=72.0, rq=33.6, ap=17.3),
        COCO_STUFF,
    ),
    _maskclip_pp(
        "maskclip-pp-eva-large-words-maftplus",
        "EVA02-L-14-336 with its words (COCO-Stuff) behind MAFT+ large",
        {
            "tower": "EVA02-L-14-336",
            "generator_tower": "convnext_large_d_320",
            "num_queries": 100,
            "short_edge": 392,
            "num_templates": 1,
            "alpha": 0.9,
        },
        1.7,
        "--generator maftp_l.pth",
        _with_mask_accuracy(_wordy((16.8, 23.9, 38.2, 62.5, 96.8))),
        COCO_STUFF,
    ),
    _maskclip_pp(
        "maskclip-pp-eva-large-words-maftplus-panoptic",
        "EVA02-L-14-336 with its words (COCO-Stuff) behind MAFT+ large, panoptic",
        {
            "tower": "EVA02-L-14-336",
            "generator_tower": "convnext_large_d_320",
            "num_queries": 100,
            "short_edge": 392,
            "num_templates": 1,
            "alpha": 0.9,
        },
        1.7,
        "--generator maftp_l_pano.pth",
        {"ade20k-150": {"pq": 28.1, "sq": 74.0, "rq": 34.7}},
        COCO_STUFF,
    ),
    _ovseg(
        "ovseg-small",
        "ResNet-101c and ViT-B/16",
        {"tower": "ViT-B-16-quickgelu", "backbone": "resnet101c", "threshold": 0.5},
        "ovseg_R101c_vitB16_ft_mpt.pth",
        0.8,
        "",
        _miou_numbers(7.1, 24.8, 11.0, 53.3, 92.6),
    ),
    _ovseg(
        "ovseg-large",
        "Swin-B and ViT-L/14",
        {"tower": "ViT-L-14-quickgelu", "backbone": "swin_base"},
        "ovseg_swinbase_vitL14_ft_mpt.pth",
        2.1,
        "",
        _miou_numbers(9.0, 29.6, 12.4, 55.7, 94.5),
    ),
    _ovseg(
        "ovseg-large-words",
        "Swin-B and ViT-L/14, for a user's own words: CLIP decides alone, every word takes its best mask",
        {"tower": "ViT-L-14-quickgelu", "backbone": "swin_base", "verdict": "clip", "threshold": 0.35},
        "ovseg_swinbase_vitL14_ft_mpt.pth",
        2.1,
        "--layout ovseg-large-words",
        {},
    ),
    _maft(
        "freeseg-base",
        "FreeSeg before MAFT: ResNet-101c and ViT-B/16 as CLIP published it",
        "freeseg",
        "ViT-B-16-quickgelu",
        "freeseg_model.pt",
        0.9,
        _miou_numbers(7.1, 17.9, 6.4, 34.4, 85.6),
    ),
    _maft(
        "maft-base",
        "MAFT, FreeSeg's masks and a tuned ViT-B/16",
        "maft",
        "ViT-B-16-quickgelu",
        "MAFT_Vitb.pt",
        1.6,
        _miou_numbers(10.25, 29.14, 12.85, 53.33, 90.44),
    ),
    _maft(
        "maft-large",
        "MAFT, FreeSeg's masks and a tuned ViT-L/14",
        "maft",
        "ViT-L-14-quickgelu",
        "MAFT_Vitl.pt",
        4.4,
        _miou_numbers(12.12, 32.05, 15.68, 58.01, 92.14),
    ),
)

CONVNEXT_LARGE = HubPart("open_clip", "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup")
"""The CLIP of FC-CLIP's largest published model, before anything was trained on it."""


@dataclass(frozen=True)
class ForeignGenerator:
    """A mask generator of other people, as they publish it for transformers."""

    title: str
    part: HubPart
    gigabytes: float
    trained_on: str
    code_licence: str
    weights_licence: str


MASK2FORMER = ForeignGenerator(
    "Mask2Former (Swin-L)",
    HubPart("transformers", "facebook/mask2former-swin-large-coco-panoptic"),
    0.9,
    "COCO 2017 panoptic (133 classes)",
    "MIT",
    "see its page",
)
EOMT = ForeignGenerator(
    "EoMT (ViT-L)",
    HubPart("transformers", "tue-mps/coco_panoptic_eomt_large_640"),
    1.3,
    "COCO 2017 panoptic (133 classes)",
    "MIT",
    "see its page",
)
SAM = ForeignGenerator(
    "SAM (ViT-H)", HubPart("transformers", "facebook/sam-vit-huge"), 2.6, "SA-1B", "Apache-2.0", "Apache-2.0"
)
SAM2 = ForeignGenerator(
    "SAM 2.1 (Hiera-L)",
    HubPart("transformers", "facebook/sam2.1-hiera-large"),
    0.9,
    "SA-1B and SA-V",
    "Apache-2.0",
    "Apache-2.0",
)


def _ready(name: str, generator: ForeignGenerator) -> Entry:
    """Everything comes from the hub when it is first asked for."""
    return Entry(
        name=name,
        title=f"masks of {generator.title}, named by CLIP convnext_large_d_320 with mask pooling",
        paper="this package",
        builder="composed",
        arguments={},
        source=Composed(generator.part, CONVNEXT_LARGE),
        code_licence="Apache-2.0",
        weights_licence=f"masks: {generator.weights_licence}; CLIP MIT",
        trained_on=f"masks: {generator.trained_on}; CLIP: LAION-2B",
        needs=f"a network when first used: {generator.gigabytes + 1.4:.1f} GB from the Hugging Face hub",
        state="fetch",
        published={},
    )


def _mask_adapter_behind(name: str, generator: ForeignGenerator) -> Entry:
    """As in the paper: the released adapter, unchanged, on masks that know no classes."""
    return Entry(
        name=name,
        title=f"Mask-Adapter on FC-CLIP, convnext_large_d_320, naming the masks of {generator.title}",
        paper=MASK_ADAPTER_PAPER,
        builder="composed",
        arguments={},
        source=Composed(generator.part, "mask-adapter-fcclip-large"),
        code_licence="Apache-2.0",
        weights_licence=f"masks: {generator.weights_licence}; the rest as mask-adapter-fcclip-large",
        trained_on=f"masks: {generator.trained_on}; the rest as mask-adapter-fcclip-large",
        needs=f"mask-adapter-fcclip-large, and {generator.gigabytes:.1f} GB from the Hugging Face hub when first used",
        state="convert",
        published={},
    )


COMPOSED_ENTRIES = (
    _mask_adapter_behind("mask-adapter-sam", SAM),
    _mask_adapter_behind("mask-adapter-sam2", SAM2),
    _ready("ready-mask2former-convnext-large", MASK2FORMER),
    _ready("ready-eomt-convnext-large", EOMT),
    _ready("ready-sam-convnext-large", SAM),
    _ready("ready-sam2-convnext-large", SAM2),
)

ZOO: dict[str, Entry] = {entry.name: entry for entry in (*ENTRIES, *COMPOSED_ENTRIES)}
