"""Training recipes as data: what their fields are, and how one is chosen. A recipe is all that decides a run, except
where it runs (strategy, precision, folders). The recipes themselves are in named_recipes.py.
"""

import dataclasses
import math

import named_recipes
from recipe_fields import ON, check_effect, check_field, check_patterns, setting

PIXELS = ("raw", "tf", "torch", "caffe")  # as na_keras.networks has them, which imports Keras


def check_model(text):
    """Raises ValueError on what names no network; see na_keras.networks."""
    from na_keras.networks import network_name  # not at the top: command lines are parsed before Keras is imported

    network_name(text)


def check_attention(text):
    """Raises ValueError on what names no attention module; see na_keras.networks."""
    from na_keras.networks import check_attention

    check_attention(text)


def pattern_check(name):
    """A function that raises ValueError on what is no regular expression; `name` of the field begins the message."""
    return lambda text: check_patterns([text], f"{name}: ")


def check_trunk_learning_rate(factor):
    """Raises ValueError on a factor that would stop the trunk, or blow it up."""
    if not 0 < factor < math.inf:
        raise ValueError(
            f"trunk_learning_rate must be a factor above 0; what stays is for --freeze-trunk. Received: {factor}"
        )


NETWORK, DATA, AUGMENTATION = "network", "data", "augmentation of the training images"
SCHEDULE, OPTIMIZER, LOSS = "learning rate and duration", "optimizer", "loss"
FREEZING, VALIDATION = "what is trained", "what the validation decides"
SEEDS = (0, 2**31 - 1)
SPLITS = ("train_split", "validation_split")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What decides a run. Each field's meaning, limits and choices stand with it, and are those of its flag."""

    model: str = setting(
        NETWORK,
        "the network: a name of this library, keras.applications.NAME, or a .keras or .h5 file, whose weights it "
        "starts from; a path that exists is taken first",
        check=check_model,
    )
    attention: str | None = setting(
        NETWORK,
        'attention module: a name, package.module:Class of your own, or "none"; none for networks that are not of this '
        "library unless given",
        check=check_attention,
    )
    weights: str | None = setting(
        NETWORK,
        "trained weights to start from: imagenet (keras.applications), torchvision-v1 or torchvision-v2 (this "
        "library's), or a file; what it does not have is fresh, and said to be",
        None,
    )
    where: str | None = setting(
        NETWORK,
        "regular expression of the layers after which attention goes, in networks that are not of this library; by "
        "default after the last normalisation before each residual addition",
        None,
        check=pattern_check("where"),
        needs=({"attention": ON},),
    )
    preserve: bool | None = setting(
        NETWORK,
        "divide what fresh attention multiplies by out of the trained layers before it; by default where it can be",
        None,
        needs=({"attention": ON},),
    )
    pixels: str | None = setting(
        NETWORK,
        "what the pixels of a .keras or .h5 file mean, where it does not show it: 0..255; -1..1; ImageNet's mean and "
        "deviation; BGR less the mean",
        None,
        choices=PIXELS,
    )
    model_options: dict = setting(NETWORK, "further arguments of the network's builder, as in '{\"alpha\": 0.35}'", {})
    seed: int = setting(NETWORK, "decides initial weights, order and augmentation", 0, limits=SEEDS)

    dataset: str = setting(
        DATA,
        '"digits", "folder" (image files), "csv" (image files with labels in a table), or a dataset that TFDS has '
        "prepared",
    )
    train_split: str | None = setting(
        DATA, 'training images of a TFDS dataset, in its syntax: "train[:80%]", "train+validation"', None
    )
    validation_split: str | None = setting(
        DATA,
        "validation images: of a TFDS dataset in its syntax; of image files without validation images the share of the "
        "training images to hold out, such as 0.2, the same images whatever the seed",
        None,
    )
    size: int = setting(DATA, "pixels of the training images' sides", limits=(32, None))
    evaluation_resize: int = setting(
        DATA,
        "pixels of the shorter side before evaluation's centre crop, at least the size of the crop; by default in the "
        "recipe's ratio to it",
        limits=("resolved_evaluation_size", None),
    )
    evaluation_size: int | None = setting(
        DATA, "pixels of the sides in evaluation and of the saved network, if not --size", None, limits=(32, None)
    )
    exif_orientation: bool = setting(DATA, "turn JPEG photographs upright as their Exif tag says", True, before=False)
    skip_unreadable: bool = setting(
        DATA, "leave out and count images that cannot be opened or decoded, instead of stopping the run", False
    )

    # torchvision's defaults, the "common practice" of section 5.1. See na_keras.preprocessing.training_image.
    crop_area: tuple[float, float] = setting(
        AUGMENTATION, "share of the image's area that a random crop takes", (0.08, 1.0), limits=(0, 1)
    )
    crop_aspect: tuple[float, float] = setting(
        AUGMENTATION, "width over height of a random crop", (3 / 4, 4 / 3), limits=(0, None)
    )
    flip: bool = setting(AUGMENTATION, "mirror every other image", True)
    antialias: bool = setting(AUGMENTATION, "average over the pixels that shrinking merges", True)
    # See na_keras.data.augmentation.
    rand_augment: float | None = setting(AUGMENTATION, "magnitude of RandAugment", None, limits=(0, 10))
    mixup: float = setting(AUGMENTATION, "alpha of MixUp, 0 for none", 0.0, limits=(0, None))
    cutmix: float = setting(AUGMENTATION, "alpha of CutMix, 0 for none", 0.0, limits=(0, None))

    epochs: int = setting(SCHEDULE, "passes over the training images", limits=(1, None))
    batch_size: int = setting(SCHEDULE, "images per step, all replicas together", limits=(1, None))
    learning_rate: float = setting(SCHEDULE, "the highest", limits=(0, None))
    min_learning_rate: float = setting(
        SCHEDULE, "what the cosine ends at", 0.0, limits=(0, "learning_rate"), needs=({"schedule": "cosine"},)
    )
    trunk_learning_rate: float = setting(
        SCHEDULE,
        "factor by which the learning rate of what came trained is smaller (or larger); the classifier and fresh "
        "attention modules have the learning rate itself",
        1.0,
        check=check_trunk_learning_rate,
    )
    schedule: str = setting(
        SCHEDULE,
        "cosine: to --min-learning-rate; step: times --decay-factor every --decay-epochs",
        choices=("cosine", "step"),
    )
    warmup_epochs: int = setting(SCHEDULE, "of a linear rise from zero, at the start", 0, limits=(0, "epochs"))
    decay_epochs: int = setting(
        SCHEDULE, "between two drops of the step schedule", 30, limits=(1, None), needs=({"schedule": "step"},)
    )
    decay_factor: float = setting(
        SCHEDULE, "what each drop multiplies by", 0.1, limits=(0, 1), needs=({"schedule": "step"},)
    )
    accumulate: int = setting(
        SCHEDULE,
        "slices that each replica's batch is worked through in, for batches that do not fit at once; gradients are "
        "added up, the batch norm sees one slice at a time",
        1,
        limits=(1, None),
    )

    freeze: str | None = setting(
        FREEZING,
        "regular expression of what is not trained, searched for in each variable's path; a layer of which anything is "
        'frozen keeps its batch-norm statistics too, and "moving_" freezes these alone',
        None,
        check=pattern_check("freeze"),
    )
    train_only: str | None = setting(
        FREEZING,
        "the opposite: regular expression of what is trained; all else is frozen",
        None,
        check=pattern_check("train_only"),
    )
    freeze_trunk: bool = setting(
        FREEZING, "train only the classifier and the attention modules that the trained weights had not", False
    )
    unfreeze_epoch: int | None = setting(
        FREEZING,
        "after so many epochs everything is trained",
        None,
        limits=(1, "last_unfreeze_epoch"),
        needs=({"freeze": ON, "train_only": ON, "freeze_trunk": ON},),
    )

    batch_norm_momentum: float | None = setting(
        FREEZING,
        "momentum of batch norms' moving statistics, if not the network's own; Keras' networks have .99 or .999, which "
        "lags behind by a thousand steps; PyTorch's usual is .9 in Keras' terms",
        None,
        limits=(0, 1),
    )

    optimizer: str = setting(
        OPTIMIZER,
        "na_keras.TorchSGD, na_keras.TimmLamb, or Keras' AdamW or RMSprop",
        "sgd",
        choices=("sgd", "lamb", "adamw", "rmsprop"),
    )
    momentum: float = setting(
        OPTIMIZER,
        "as torch.optim.SGD, or Keras' RMSprop, takes it",
        0.9,
        limits=(0, 1),
        needs=({"optimizer": ("sgd", "rmsprop")},),
    )
    weight_decay: float = setting(
        OPTIMIZER,
        "as PyTorch's SGD and AdamW and timm's LAMB take it; Keras' RMSprop decays like AdamW: learning rate * decay * "
        "weight is taken away",
        limits=(0, None),
    )
    no_weight_decay: tuple[str, ...] = setting(
        OPTIMIZER,
        'regular expressions, as in \'["bias$"]\': a variable is not decayed if one is found in its path, "layer '
        'name/variable name"',
        (),
        needs=({"weight_decay": ON},),
    )
    clip_norm: float | None = setting(OPTIMIZER, "largest norm of all gradients together", None, limits=(0, None))
    ema_decay: float | None = setting(
        OPTIMIZER,
        "decay of the weights' exponential moving average, which then is what is evaluated and saved",
        None,
        limits=(0, 1),
    )

    loss: str = setting(
        LOSS,
        "binary_cross_entropy asks about each class by itself and takes the mean over the classes; what multi-label "
        "data (--dataset csv) needs",
        "cross_entropy",
        choices=("cross_entropy", "binary_cross_entropy"),
    )
    label_smoothing: float = setting(LOSS, "share of the target that is spread over all classes", 0.0, limits=(0, 1))
    target_threshold: float | None = setting(
        LOSS,
        "shares of smoothed and mixed targets above this count as 1, others as 0",
        None,
        limits=(0, 0.5),
        needs=({"loss": "binary_cross_entropy"}, {"mixup": ON, "cutmix": ON, "label_smoothing": ON}),
    )
    class_weights: str | None = setting(
        LOSS,
        "weights of the training examples by class: balanced, or a CSV or JSON file with a number above 0 for every "
        "class",
        None,
    )

    keep_best: str | None = setting(
        VALIDATION,
        "write best.keras, the network of the epoch that is best by this metric of the validation images; the first of "
        "equal ones; mean_average_precision is of multi-label data, top1 and mean_class_accuracy of other",
        None,
        choices=("top1", "loss", "mean_class_accuracy", "mean_average_precision"),
    )
    patience: int | None = setting(
        VALIDATION,
        "epochs without a better one after which the run ends",
        None,
        limits=(1, None),
        needs=({"keep_best": ON},),
    )

    @property
    def resolved_evaluation_size(self):
        """Sides of the images in evaluation, and of those that the saved network takes."""
        return self.evaluation_size or self.size

    @property
    def last_unfreeze_epoch(self):
        """The last number of epochs after which there is one more."""
        return self.epochs - 1

    @property
    def says_what_is_trained(self):
        """Whether it says which part of the network is trained, or how fast."""
        return bool(self.freeze or self.train_only or self.freeze_trunk or self.trunk_learning_rate != 1)

    @property
    def network(self):
        """The na_keras.networks.Network that it asks for. Raises ValueError: fields contradict each other."""
        from na_keras.networks import Network

        fields = ("model", "attention", "weights", "where", "preserve", "pixels")
        return Network(**{name: getattr(self, name) for name in fields}, options=self.model_options)

    @property
    def splits(self):
        """What na_keras.data.load_source takes of it."""
        return {name: getattr(self, name) for name in SPLITS}

    @property
    def mix(self):
        """What pipeline.training_batches takes to mix examples, None for no mixing."""
        return {"mixup": self.mixup, "cutmix": self.cutmix} if self.mixup or self.cutmix else None


# What a recipe.json means that was written before a field existed.
BEFORE = {
    field.name: field.metadata["before"]
    for field in dataclasses.fields(Recipe)
    if field.metadata["before"] is not dataclasses.MISSING
}

# What a resumed run may have otherwise than it was started: one that a bad file stopped goes on without the file.
MAY_CHANGE = ("skip_unreadable",)

RECIPES = {name: Recipe(**fields) for name, fields in named_recipes.NAMED.items()}


def given_splits(arguments):
    """The splits that a command line names, as na_keras.data.load_source takes them."""
    return {name: getattr(arguments, name) for name in SPLITS if getattr(arguments, name) is not None}


def get_recipe(name, **overrides):
    """The recipe of that name with the fields in `overrides` replaced; None keeps a field.

    Where the evaluation's size changes, its resize follows in the recipe's ratio, if it is not given itself; another
    network has its own `model_options` and weights (those of ImageNet for all of keras.applications), and one that is
    not of this library no attention, unless given.

    Raises:
        ValueError: an unknown recipe (the message lists the known ones), a value that is none of a field's choices, or
            a number outside its range. Nothing has been loaded or written by then.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe must be one of {sorted(RECIPES)}. Received: {name!r}")
    overrides = {field: value for field, value in overrides.items() if value is not None}
    if overrides.get("attention") == "none":
        overrides["attention"] = None
    if "model" in overrides:
        from na_keras.networks import network_name

        network = network_name(overrides["model"])
        overrides["model"] = network.text
        if network.text != RECIPES[name].model:
            # The builder's other arguments belong to the recipe's own network; its numbers stand under any.
            overrides.setdefault("model_options", {})
            if network.kind != "applications" or RECIPES[name].weights != "imagenet":
                overrides.setdefault("weights", None)
        if network.kind != "ours":  # a file may have its attention already
            overrides.setdefault("attention", None)
    own, recipe = RECIPES[name], dataclasses.replace(RECIPES[name], **overrides)
    if "evaluation_resize" not in overrides:
        resize = round(recipe.resolved_evaluation_size * own.evaluation_resize / own.resolved_evaluation_size)
        recipe = dataclasses.replace(recipe, evaluation_resize=resize)
    for field in dataclasses.fields(recipe):
        check_field(field, recipe)
    check_what_is_trained(recipe)
    return recipe


def check_what_is_trained(recipe):
    """Raises ValueError on fields about what is trained that exclude each other, or need trained weights."""
    wrong = None
    if recipe.freeze and recipe.train_only:
        wrong = "--freeze and --train-only each say what is frozen: give one of them"
    elif recipe.freeze_trunk and recipe.train_only:
        wrong = "--freeze-trunk and --train-only each say what is trained: give --no-freeze-trunk, or no --train-only"
    elif (recipe.freeze_trunk or recipe.trunk_learning_rate != 1) and not recipe.network.starts_trained:
        flag, off = ("--freeze-trunk", "--no-freeze-trunk") if recipe.freeze_trunk else ("--trunk-learning-rate",) * 2
        off += "" if recipe.freeze_trunk else " 1"
        wrong = f"{flag} is about trained weights, and {recipe.model} has none: give --weights, or {off}"
    if wrong:
        raise ValueError(f"{wrong}.")


def check_effects(recipe, names):
    """Raises ValueError if one of these fields, which somebody gave, has no effect in the recipe. Inherited values may
    have none: --optimizer=lamb under a recipe of SGD leaves its momentum without a use.
    """
    for field in dataclasses.fields(recipe):
        if field.name in names:
            check_effect(field, recipe)
