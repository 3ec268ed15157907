"""Training recipes as data. A recipe is all that decides a run, except where it runs (strategy, precision, folders).

Every number stands with its source:

    paper          "Attention meets Normalization and Beyond", section 5.1
    released code  13952522076/NANet: imagenet.py (ResNet), main_mobile.py (MobileNetV2)

The two disagree in places, so both are here under their names. A third is how one would train today: procedure A3 of
"ResNet strikes back" (arXiv 2110.00476). None of the ImageNet recipes has been run by us.
"""

import dataclasses

from na_keras import ATTENTION
from na_keras.models import MODELS

SCHEDULES = ("cosine", "step")
OPTIMIZERS = ("sgd", "lamb")
LOSSES = ("cross_entropy", "binary_cross_entropy")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What decides a run. Sizes in pixels, durations in epochs.

    Attributes:
        model, attention: names in na_keras.models.MODELS and na_keras.ATTENTION (None: no attention).
        model_options: further arguments of the builder.
        dataset: see na_keras.data.load_source.
        size: sides of the images that the network is trained on; evaluation_size: and evaluated on, if others;
            evaluation_resize: shorter side before evaluation's centre crop.
        crop_area, crop_aspect, flip, antialias: see na_keras.preprocessing.training_image.
        rand_augment: None, or the magnitude of na_keras.data.augmentation.rand_augment.
        mixup, cutmix, target_threshold: see na_keras.data.augmentation.mixed_batch.
        skip_unreadable: an image that does not decode gets weight 0 and is counted, instead of stopping the run.
        epochs; batch_size: images per step, all replicas together.
        learning_rate: peak. schedule: "cosine", to zero, or "step", times `decay_factor` every `decay_epochs`;
            warmup_epochs: linear from zero, before the cosine.
        optimizer: "sgd" (na_keras.TorchSGD) or "lamb" (na_keras.TimmLamb).
        momentum, weight_decay: as torch.optim.SGD takes them (LAMB has its own two momenta); no_weight_decay: regular
            expressions; a variable is not decayed if one is found in its path, "layer name/variable name".
        clip_norm: None, or the largest norm of all gradients together.
        loss: "cross_entropy", or "binary_cross_entropy": each class a question by itself, the mean over the classes.
        label_smoothing: share of the target that is spread over all classes.
        ema_decay: None, or the decay of the weights' exponential moving average, which then is what is evaluated and
            saved.
        accumulate: slices that each replica's batch is worked through in, for batches that do not fit at once; the
            gradients are added up, the batch norm sees one slice at a time.
        seed: decides initial weights, order and augmentation.
    """

    model: str
    attention: str | None
    dataset: str
    size: int
    evaluation_resize: int
    epochs: int
    batch_size: int
    learning_rate: float
    schedule: str
    weight_decay: float
    crop_area: tuple[float, float] = (0.08, 1.0)  # torchvision's defaults, the "common practice" of section 5.1
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    antialias: bool = True
    evaluation_size: int | None = None
    rand_augment: float | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    target_threshold: float | None = None
    skip_unreadable: bool = False
    decay_epochs: int = 30
    decay_factor: float = 0.1
    warmup_epochs: int = 0
    optimizer: str = "sgd"
    momentum: float = 0.9
    no_weight_decay: tuple[str, ...] = ()
    clip_norm: float | None = None
    loss: str = "cross_entropy"
    label_smoothing: float = 0.0
    ema_decay: float | None = None
    accumulate: int = 1
    model_options: dict = dataclasses.field(default_factory=dict)
    seed: int = 0

    @property
    def tested_size(self):
        """Sides of the images in evaluation, and of those that the saved network takes."""
        return self.evaluation_size or self.size

    @property
    def mix(self):
        """What pipeline.training_batches takes to mix examples, None for no mixing."""
        if not (self.mixup or self.cutmix):
            return None
        return {"mixup": self.mixup, "cutmix": self.cutmix, "threshold": self.target_threshold}


IMAGENET = {"attention": "na", "dataset": "imagenet2012", "size": 224, "evaluation_resize": 256}

RESNET50_PAPER = Recipe(
    **IMAGENET,
    model="ResNet50",
    epochs=100,  # "for 100 epochs"
    batch_size=256,  # "with a batch size of 256 (i.e., 32 images per GPU)"
    learning_rate=0.1,  # "stating at a learning rate of 0.1"
    schedule="step",  # "decreasing it by 10 every 30 epochs"
    weight_decay=1e-4,  # "a weight decay of 0.0001 and a momentum of 0.9"
)
MOBILENETV2_PAPER = Recipe(
    **IMAGENET,
    model="MobileNetV2",
    epochs=150,  # "for 150 epochs"
    batch_size=512,  # "with a batch size of 512 (i.e., 64 images per GPU)"
    learning_rate=0.1,  # "stating at a learning rate of 0.1"
    schedule="cosine",  # "adjusting it using a cosine decay method"
    weight_decay=1e-4,  # "a weight decay of 0.0001 and a momentum of 0.9"
)
# NANet's pipelines: random area and aspect of the crop.
RELEASED_CROP = {"crop_area": (0.1, 1.0), "crop_aspect": (0.8, 1.25)}

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
        schedule="cosine",
        warmup_epochs=2,
        weight_decay=1e-4,
    ),
    "resnet50-paper": RESNET50_PAPER,
    "mobilenetv2-paper": MOBILENETV2_PAPER,
    # imagenet.py: the paper's numbers otherwise; every parameter is decayed, NA's two included.
    "resnet50-released-code": dataclasses.replace(RESNET50_PAPER, **RELEASED_CROP),
    # main_mobile.py: warm-up and a weaker decay, which spares batch norms, depthwise convolutions and whatever has
    # "bias" in its PyTorch name; NA's beta is called bias2 there, its gamma weight2.
    "mobilenetv2-released-code": dataclasses.replace(
        MOBILENETV2_PAPER,
        **RELEASED_CROP,
        warmup_epochs=5,
        weight_decay=4e-5,
        no_weight_decay=(r"(?i)(bn|bn_conv1)/(gamma|beta)$", r"depthwise/kernel$", r"/bias$", r"attention/beta$"),
    ),
    # "ResNet strikes back", table 2, column A3, and the authors' commands for it. It reached 78.1 % with a plain
    # ResNet50. Ours resizes bilinearly, not bicubically, and mixes each example by itself (na_keras.data.augmentation).
    "resnet50-a3": dataclasses.replace(
        RESNET50_PAPER,
        epochs=100,
        size=160,  # train at 160,
        evaluation_size=224,  # test at 224
        evaluation_resize=235,  # test crop ratio .95: 224 / .95
        batch_size=2048,
        optimizer="lamb",
        learning_rate=8e-3,
        schedule="cosine",
        warmup_epochs=5,
        weight_decay=0.02,
        no_weight_decay=(r"/(gamma|beta|bias)$",),  # timm spares whatever has one dimension
        clip_norm=1.0,  # timm's Lamb clips by default (max_grad_norm)
        loss="binary_cross_entropy",
        target_threshold=0.2,  # timm's commands: --bce-target-thresh
        mixup=0.1,
        cutmix=1.0,
        rand_augment=6.0,  # "rand-m6-mstd0.5-inc1"
    ),
}


def in_range(recipe):
    """Raises ValueError on a number that could only fail later, or silently."""
    limits = {
        "epochs": (1, None),
        "batch_size": (1, None),
        "size": (32, None),
        "evaluation_size": (32, None),
        "evaluation_resize": (recipe.tested_size, None),
        "rand_augment": (0, 10),
        "mixup": (0, None),
        "cutmix": (0, None),
        "target_threshold": (0, 0.5),
        "ema_decay": (0, 1),
        "learning_rate": (0, None),
        "weight_decay": (0, None),
        "decay_epochs": (1, None),
        "decay_factor": (0, 1),
        "warmup_epochs": (0, recipe.epochs),
        "momentum": (0, 1),
        "clip_norm": (0, None),
        "label_smoothing": (0, 1),
        "accumulate": (1, None),
        "seed": (0, 2**31 - 1),
    }
    for field, (low, high) in limits.items():
        value = getattr(recipe, field)
        if value is not None and not (low <= value and (high is None or value <= high)):
            bound = f"at least {low}" if high is None else f"between {low} and {high}"
            raise ValueError(f"{field} must be {bound}. Received: {value}")
    for field, highest in (("crop_area", 1.0), ("crop_aspect", float("inf"))):
        low, high = getattr(recipe, field)
        if not 0 < low <= high <= highest:
            raise ValueError(f"{field} must be a range of positive numbers (low, high). Received: {(low, high)}")


def get_recipe(name, **overrides):
    """The recipe of that name with the fields in `overrides` replaced; None keeps a field.

    Raises:
        ValueError: an unknown recipe (the message lists the known ones), model, attention or schedule, or a number
            outside its range, or options that contradict. Nothing has been loaded or written by then.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe must be one of {sorted(RECIPES)}. Received: {name!r}")
    overrides = {field: value for field, value in overrides.items() if value is not None}
    if overrides.get("attention") == "none":
        overrides["attention"] = None
    if overrides.get("model", RECIPES[name].model) != RECIPES[name].model:
        # The builder's other arguments belong to the recipe's own network; its numbers stand under any.
        overrides.setdefault("model_options", {})
    recipe = dataclasses.replace(RECIPES[name], **overrides)
    known = {"model": MODELS, "attention": [None, *ATTENTION], "schedule": SCHEDULES}
    known |= {"optimizer": OPTIMIZERS, "loss": LOSSES}
    for field, values in known.items():
        if getattr(recipe, field) not in values:
            raise ValueError(f"{field} must be one of {list(values)}. Received: {getattr(recipe, field)!r}")
    in_range(recipe)
    return recipe
