"""Recipes of detectors: their fields, as training/recipes.py has those of classifiers, and the named ones."""

import dataclasses

from recipe_fields import ON, check_effect, check_field, setting

NETWORK, DATA = "network", "data"
SCHEDULE, OPTIMIZER, VALIDATION = "learning rate and duration", "optimizer", "validation"
SEEDS = (0, 2**31 - 1)
STAGES = (2, 3, 4, 5)
DETECTORS = ("retinanet", "cascade_rcnn")
MODELS = ("ResNet18", "ResNet34", "ResNet50", "ResNet101", "ResNet152")
RECIPES = ("coco-paper", "cells-demo")


def check_attention(name):
    """Raises ValueError on what names no attention module of a detector."""
    from na_keras.detection.model_garden import attention_layers  # not at the top: it imports Model Garden

    attention_layers.get_attention(name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionRecipe:
    """What decides a run. Each field's meaning, limits and choices stand with it, and are those of its flag."""

    detector: str = setting(NETWORK, "the kind of detector", choices=DETECTORS)
    model: str = setting(NETWORK, "the backbone, a network of this library", choices=MODELS)
    attention: str | None = setting(
        NETWORK, "attention module of the backbone: none, na, na_paper, na_mean, se or gc", check=check_attention
    )
    attention_stages: tuple[int, ...] = setting(
        NETWORK, "the stages of the backbone that have modules, of 2 to 5", STAGES, needs=({"attention": ON},)
    )
    weights: str | None = setting(
        NETWORK,
        "trained weights for the backbone: torchvision-v1, torchvision-v2, or the file of a classifier of this library "
        "or under PyTorch's names; attention that they do not have is fresh",
        None,
    )
    frozen_stages: int = setting(
        NETWORK,
        "the stem and so many stages keep their weights; 0: all are trained",
        0,
        limits=(0, 4),
        needs=({"weights": ON},),
    )
    fixed_batch_norm: bool = setting(
        NETWORK, "batch norms keep the statistics of the weights", False, needs=({"weights": ON},)
    )
    filters: int = setting(NETWORK, "of the feature pyramid and of the heads' convolutions", 256, limits=(1, None))
    coarsest_level: int | None = setting(
        NETWORK,
        "of the feature pyramid, where an image is 2**level times smaller; 7 for RetinaNet and 6 for Cascade R-CNN",
        None,
        limits=(6, 7),
    )
    anchor_size: float | None = setting(
        NETWORK,
        "sides of a level's smallest anchors, in its strides: 4 for RetinaNet and 8 for Cascade R-CNN are 32 pixels of "
        "the resized image; less for smaller objects",
        None,
        limits=(1, None),
    )
    units: int = setting(
        NETWORK,
        "of the box heads' fully connected layers",
        1024,
        limits=(1, None),
        needs=({"detector": "cascade_rcnn"},),
    )
    regions: int = setting(
        NETWORK,
        "of an image that the box heads are trained on",
        512,
        limits=(1, None),
        needs=({"detector": "cascade_rcnn"},),
    )

    size: int = setting(DATA, "pixels of the images' shorter side", limits=(32, None))
    longer_size: int = setting(DATA, "the most pixels that their longer side has", limits=("size", None))
    flip: bool = setting(DATA, "mirror every other image", True)
    seed: int = setting(DATA, "decides the initial weights", 0, limits=SEEDS)

    epochs: int = setting(SCHEDULE, "passes over the training images", limits=(1, None))
    batch_size: int = setting(SCHEDULE, "images per step, all replicas together", limits=(1, None))
    learning_rate: float = setting(SCHEDULE, "the highest", limits=(0, None))
    drop_epochs: tuple[int, ...] = setting(SCHEDULE, "after each of these epochs the rate is divided by 10", ())
    warmup_steps: int = setting(SCHEDULE, "of a linear rise to the highest rate", 0, limits=(0, None))
    warmup_factor: float = setting(
        SCHEDULE, "share of the highest rate that it begins at", 0.0, limits=(0, 1), needs=({"warmup_steps": ON},)
    )

    momentum: float = setting(OPTIMIZER, "of SGD", 0.9, limits=(0, 1))
    weight_decay: float = setting(OPTIMIZER, "of convolutions' and fully connected layers' kernels", limits=(0, None))
    clip_norm: float | None = setting(OPTIMIZER, "largest norm of all gradients together", None, limits=(0, None))

    evaluation_epochs: int = setting(VALIDATION, "epochs between two evaluations", 1, limits=(1, None))

    @property
    def depth(self):
        """Of the backbone: 50 of ResNet50."""
        return int(self.model.removeprefix("ResNet"))


def named_recipes(detector):
    """{name: fields} of the named recipes of a detector."""
    from na_keras.detection.schedule import LEARNING_RATES, MMDETECTION, PAPER

    return {
        # Section 5.3 of the paper; its backbones are those that it trained on ImageNet.
        "coco-paper": PAPER
        | MMDETECTION
        | {
            "model": "ResNet50",
            "learning_rate": LEARNING_RATES[detector],
            "frozen_stages": 1,  # as Table 4's numbers of parameters have it
            "fixed_batch_norm": True,  # mmdetection's norm_eval=True
        },
        # From scratch, for some hundred photographs and two CPU cores. Nobody's recipe but ours, found by trying.
        "cells-demo": {
            "model": "ResNet18",
            "size": 240,
            "longer_size": 320,
            "filters": 64,
            "coarsest_level": 6,
            "anchor_size": {"retinanet": 2.0, "cascade_rcnn": 4.0}[detector],  # platelets have some 20 pixels
            **({"units": 256, "regions": 128} if detector == "cascade_rcnn" else {}),
            "batch_size": 8,
            "epochs": 20,
            "drop_epochs": (16,),
            "learning_rate": 0.01,
            "warmup_steps": 50,
            "warmup_factor": 0.1,
            "weight_decay": 1e-4,
            "clip_norm": 10.0,
            "evaluation_epochs": 5,
        },
    }


# What a recipe.json means that was written before a field existed.
BEFORE = {
    field.name: field.metadata["before"]
    for field in dataclasses.fields(DetectionRecipe)
    if field.metadata["before"] is not dataclasses.MISSING
}


def get_recipe(name, **overrides):
    """The recipe of that name with the fields in `overrides` replaced.

    Raises:
        ValueError: an unknown recipe, a value out of its range, fields that contradict each other. Nothing has been
            loaded or written by then.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe must be one of {sorted(RECIPES)}. Received: {name!r}")
    detector = overrides.get("detector") or DETECTORS[0]
    if detector not in DETECTORS:
        raise ValueError(f"detector must be one of {list(DETECTORS)}. Received: {detector!r}")
    if overrides.get("attention") == "none":
        overrides["attention"] = None
    fields = {"detector": detector, "attention": "na"} | named_recipes(detector)[name] | overrides
    recipe = DetectionRecipe(**fields)
    for field in dataclasses.fields(recipe):
        if field.type != tuple[int, ...]:
            check_field(field, recipe)
        if field.name in overrides:
            check_effect(field, recipe)
    stages = recipe.attention_stages
    if not stages or list(stages) != sorted({*stages} & {*STAGES}):
        raise ValueError(
            f"--attention-stages must be ascending numbers of {' '.join(map(str, STAGES))}. Received: "
            f"{' '.join(map(str, stages)) or 'none'}"
        )
    drops = recipe.drop_epochs
    if list(drops) != sorted({*drops}) or drops and not 1 <= drops[0] <= drops[-1] < recipe.epochs:
        raise ValueError(
            f"--drop-epochs must be ascending and lie between 1 and {recipe.epochs - 1}, the run's last epoch but one. "
            f"Received: {' '.join(map(str, drops))}"
        )
    if (recipe.frozen_stages or recipe.fixed_batch_norm) and not recipe.weights:
        raise ValueError(
            f"The recipe {name} keeps parts of a trained backbone as they are, and there are no --weights. Give them, "
            "or train from scratch: --frozen-stages 0 --no-fixed-batch-norm"
        )
    return recipe
