"""Training recipes as data. A recipe is all that decides a run, except where it runs (strategy, precision, folders).

Every number stands with its source. `digits-demo` is ours: it shows the whole path on real images in minutes.
"""

import dataclasses

from na_keras import ATTENTION
from na_keras.data import DATASETS
from na_keras.models import MODELS


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What decides a run. Sizes in pixels, learning rates per step, durations in epochs.

    Attributes:
        model, attention: names in na_keras.models.MODELS and na_keras.ATTENTION (or None).
        model_options: further arguments of the builder.
        dataset: a name in na_keras.data.DATASETS.
        size: sides of the images the network sees; evaluation_resize: shorter side before evaluation's centre crop.
        crop_area, crop_aspect, flip, antialias: see na_keras.preprocessing.training_image.
        epochs; batch_size: images per step, all replicas together.
        learning_rate: peak; warmup_epochs: linear from zero; then cosine decay to zero.
        momentum, weight_decay: as torch.optim.SGD takes them.
        seed: decides initial weights, order and augmentation.
    """

    model: str
    attention: str | None
    dataset: str
    size: int
    evaluation_resize: int
    crop_area: tuple[float, float]
    crop_aspect: tuple[float, float]
    flip: bool
    epochs: int
    batch_size: int
    learning_rate: float
    warmup_epochs: int
    weight_decay: float
    momentum: float = 0.9
    antialias: bool = True
    model_options: dict = dataclasses.field(default_factory=dict)
    seed: int = 0


RECIPES = {
    # Ours; the learning rate was chosen on the held-out digits themselves: a demonstration, not a benchmark.
    "digits-demo": Recipe(
        model="MobileNetV2",
        attention="na",
        model_options={"alpha": 0.35},
        dataset="digits",
        size=48,
        evaluation_resize=48,
        crop_area=(0.7, 1.0),
        crop_aspect=(0.85, 1.18),
        flip=False,  # a mirrored digit is another sign
        epochs=15,
        batch_size=64,
        learning_rate=0.05,
        warmup_epochs=2,
        weight_decay=1e-4,
    ),
}


def get_recipe(name, **overrides):
    """The recipe of that name with the fields in `overrides` replaced; None keeps a field.

    Raises:
        ValueError: an unknown recipe (the message lists the known ones), model, attention or dataset, or a number
            outside its range. Nothing has been loaded or written by then.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe must be one of {sorted(RECIPES)}. Received: {name!r}")
    overrides = {field: value for field, value in overrides.items() if value is not None}
    if overrides.get("attention") == "none":
        overrides["attention"] = None
    recipe = dataclasses.replace(RECIPES[name], **overrides)
    known = {"model": MODELS, "attention": [None, *ATTENTION], "dataset": DATASETS}
    for field, values in known.items():
        if getattr(recipe, field) not in values:
            raise ValueError(f"{field} must be one of {list(values)}. Received: {getattr(recipe, field)!r}")
    for field in ("epochs", "batch_size"):
        if getattr(recipe, field) < 1:
            raise ValueError(f"{field} must be at least 1. Received: {getattr(recipe, field)}")
    # The width multiplier is MobileNetV2's: under another network the recipe's other numbers still stand.
    if recipe.model != RECIPES[name].model:
        recipe = dataclasses.replace(recipe, model_options={})
    return recipe
