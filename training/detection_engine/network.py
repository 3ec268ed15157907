"""A recipe's detector: Model Garden's task and model, and the trained weights that its backbone starts from."""

import keras
import tf_keras

from na_keras.detection.model_garden import configurations, saved
from na_keras.models import MODELS, in_stages
from na_keras.pretrained import Notes, open_weights, start

# Fields of the recipe under the names that configurations.detection_task and its networks have for them.
NETWORK = ("attention", "attention_stages", "frozen_stages", "fixed_batch_norm", "filters")
OF_CASCADE = ("units", "regions")
CHOSEN = ("coarsest_level", "anchor_size")  # where the recipe has a number, instead of the detector's own
DATA = ("batch_size", "weight_decay", "flip")
SCHEDULE = ("epochs", "drop_epochs", "learning_rate", "momentum", "warmup_steps", "warmup_factor", "clip_norm")


def describe(recipe, categories):
    """What detector.json says of a recipe's detector of these categories, {id: name}."""
    names = (*NETWORK, *(OF_CASCADE if recipe.detector == "cascade_rcnn" else ()))
    network = {name: getattr(recipe, name) for name in names} | {"model_id": recipe.depth}
    network |= {name: getattr(recipe, name) for name in CHOSEN if getattr(recipe, name) is not None}
    return saved.describe(recipe.detector, categories, recipe.size, recipe.longer_size, **network)


def task_config(recipe, description, records):
    """The configuration of a recipe's task; `records`: paths of the training records, or a pattern of them."""
    return saved.task_config(description, records=records, **{name: getattr(recipe, name) for name in DATA})


def trainer_config(recipe, steps_per_epoch):
    """Model Garden's configuration of a recipe's schedule."""
    return configurations.trainer(steps_per_epoch, **{name: getattr(recipe, name) for name in SCHEDULE})


def make_model(recipe, config):
    """The task and its model, freshly initialised from the recipe's seed. In the strategy's scope."""
    tf_keras.utils.set_random_seed(recipe.seed)
    task = saved.make_task(config)
    return task, task.build_model()


class BackboneWeights:
    """Trained weights of a recipe's backbone, opened before anything is built or written.

    Attributes:
        sha256: of the file.
        notes: sentences that say what is fresh.
        arrays: {layer's name: its weights}.

    Raises:
        ValueError: no such weights, or weights that do not fit, by name.
    """

    def __init__(self, recipe):
        weights, build = open_weights(recipe.weights, recipe.model), MODELS[recipe.model]
        self.sha256 = weights.sha256
        keras.utils.set_random_seed(recipe.seed)  # of fresh attention modules
        attention = recipe.attention and in_stages(recipe.attention, recipe.attention_stages)
        classifier = build(include_top=False, attention=attention)

        def twin(modules, classes):
            """Reads a file that has no names in it."""
            top = {"include_top": classes is not None, "classes": classes or 1}
            return build(attention=attention if modules else None, **top)

        self.notes = Notes(start(classifier, weights, None, twin))
        self.arrays = {layer.name: layer.get_weights() for layer in classifier.layers if layer.weights}

    def fill(self, backbone):
        """Gives a backbone of networks.backbone all of them. Raises ValueError: they are of another network."""
        layers = {layer.name: layer for layer in backbone.layers if layer.weights}
        arrays = {name: self.arrays[name] for name in self.arrays if name in layers}
        shapes = lambda weights: [tuple(weight.shape) for weight in weights]  # noqa: E731
        differing = [name for name in layers if shapes(layers[name].weights) != shapes(arrays.get(name, ()))]
        left = sorted(set(self.arrays) - set(layers))
        if differing or left:
            raise ValueError(f"The weights do not fit the backbone: layers {', '.join((differing + left)[:5])}.")
        for name, layer in layers.items():
            layer.set_weights(arrays[name])
