"""Which part of a network is trained in which epoch, and how fast.

What is frozen keeps its values to the bit, and its gradient is not computed. Weights are frozen one by one, statistics
with their layer: a layer of which any weight is frozen runs with Keras' `trainable=False`, in which a batch norm
normalises by its moving statistics and leaves them, whether its other weights are trained or not. A scale that is
frozen on top of statistics that move would not be frozen.
"""

import itertools
import re

import keras

from engine.optimization import Group, check_found
from na_keras.graph.calls import sublayers

MOST_NAMES = 6  # of runs of layers that are listed


def own_weights(layer):
    """A layer's floating-point weights, without those of layers in it."""
    inner = {id(weight) for other in sublayers(layer)[1:] for weight in other.weights}
    return [w for w in layer.weights if id(w) not in inner and keras.backend.is_float_dtype(w.dtype)]


def unchanging(model):
    """ids of the weights that no step changes, as the model's layers stand now."""
    frozen = [layer for layer in sublayers(model) if not layer.trainable]
    return {id(weight) for layer in frozen for weight in own_weights(layer) if not weight.trainable}


def is_batch_norm(layer):
    """Whether a layer has moving statistics."""
    return isinstance(layer, keras.layers.BatchNormalization)


def set_batch_norm_momentum(model, momentum):
    """Gives all batch norms of a model, in models and layers inside it too, a momentum; None leaves them their own."""
    for layer in filter(is_batch_norm, sublayers(model)) if momentum is not None else ():
        layer.momentum = momentum


def thaw(model):
    """Makes trainable whatever can be. One by one: Keras does not pass the flag on to the layers of a model whose own
    flag is set already.
    """
    for layer in sublayers(model):
        layer.trainable = True


def listed(layers, chosen):
    """Names of the chosen ones among all layers; of those that follow one another the first and the last."""
    runs = []
    for now, run in itertools.groupby(layers, lambda layer: id(layer) in chosen):
        names = [layer.name for layer in run]
        if now:
            runs.append(", ".join(names) if len(names) < 3 else f"{names[0]} ... {names[-1]}")
    more = len(runs) - MOST_NAMES
    return ", ".join(runs[:MOST_NAMES]) + (f" and in {more} more places" if more > 0 else "")


class Freezing:
    """What of a network is trained when, from a recipe's freeze, train_only, freeze_trunk, unfreeze_epoch and
    trunk_learning_rate. A recipe with none of them trains what the network's layers say, always.

    Attributes:
        trainable: the variables that may be trained, in the order of the model.
        frozen: ids of those that are not, before `unfreeze_epoch`.
        layers: those that have weights, in the order of the weights.
        still: ids of the layers that keep their statistics until then.
        unfrozen: whether everything is trained now.

    Args:
        recipe: Recipe.
        model: keras.Model, whose `trainable` flags are set for epoch 0, and changed by `begin`.
        head: layers that are no part of the trunk: the classifier and fresh attention modules.

    Raises:
        ValueError: a pattern that is found nowhere; nothing is trained; nothing is frozen that could be unfrozen.
    """

    def __init__(self, recipe, model, head=()):
        self.recipe, self.model = recipe, model
        self.head = {id(weight) for layer in head for weight in layer.weights}
        if recipe.says_what_is_trained:
            thaw(model)  # what of a file is frozen was so in another training
        self.trainable = list(model.trainable_variables)
        place = {id(weight): index for index, weight in enumerate(model.weights)}
        layers = [layer for layer in sublayers(model) if own_weights(layer)]
        # In the order of the weights, an outer layer before those in it
        self.layers = sorted(layers, key=lambda layer: place[id(own_weights(layer)[0])])
        may = {id(variable) for variable in self.trainable}
        self.frozen = {id(variable) for variable in self.trainable if self.freezes(variable)}
        self.still = {id(layer) for layer in self.layers if self.keeps_statistics(layer, may)}
        self.check()
        self.unfrozen = None
        self.begin(0)

    def freezes(self, variable):
        """Whether the recipe freezes a variable."""
        recipe = self.recipe
        if recipe.train_only:
            return not re.search(recipe.train_only, variable.path)
        in_trunk = recipe.freeze_trunk and id(variable) not in self.head
        return in_trunk or bool(recipe.freeze and re.search(recipe.freeze, variable.path))

    def keeps_statistics(self, layer, may):
        """Whether anything of a layer is frozen; `may` are the ids of what can be trained. A pattern that says what is
        trained need not find the statistics of these weights.
        """
        own = own_weights(layer)
        weights = [weight for weight in own if id(weight) in may]
        return any(map(self.freezes, weights if self.recipe.train_only and weights else own))

    def check(self):
        """Raises what the class does."""
        recipe, weights = self.recipe, [weight for layer in self.layers for weight in own_weights(layer)]
        check_found("--freeze", [recipe.freeze] if recipe.freeze else [], weights)
        check_found("--train-only", [recipe.train_only] if recipe.train_only else [], self.trainable)
        if not self.trainable:
            raise ValueError("Nothing would be trained: the file has all layers frozen. --train-only . trains them.")
        if len(self.frozen) == len(self.trainable):
            last = re.escape(self.trainable[-1].path.rpartition("/")[0])
            raise ValueError(
                f"Nothing would be trained: all {len(self.trainable)} variables are frozen. Leave some out, as by "
                f"--train-only '^{last}/' in place of what freezes them."
            )
        if recipe.unfreeze_epoch is not None and not self.still:
            raise ValueError("--unfreeze-epoch has no effect: nothing is frozen before. Leave it out.")

    def check_effects(self, names):
        """Raises ValueError if one of these fields, which somebody gave, has no effect."""
        trained = [v for v in self.trainable if self.recipe.unfreeze_epoch is not None or id(v) not in self.frozen]
        rate = self.recipe.trunk_learning_rate
        if "trunk_learning_rate" in names and rate != 1 and all(id(v) in self.head for v in trained):
            raise ValueError("--trunk-learning-rate has no effect: the trunk is frozen, always. Leave it out.")
        still = self.still if self.recipe.unfreeze_epoch is None else ()
        moving = [layer for layer in self.layers if is_batch_norm(layer) and id(layer) not in still]
        if "batch_norm_momentum" in names and not moving:
            raise ValueError("--batch-norm-momentum has no effect: no batch norm's statistics move. Leave it out.")

    def begin(self, epoch):
        """Makes trainable what is trained in an epoch, and nothing else; whether that is something else than before."""
        unfrozen = self.recipe.unfreeze_epoch is not None and epoch >= self.recipe.unfreeze_epoch
        if unfrozen == self.unfrozen:
            return False
        self.unfrozen = unfrozen
        if self.recipe.says_what_is_trained:
            thaw(self.model)
            for layer in self.layers if not unfrozen else ():  # inner ones later: an outer one's flag reaches them too
                layer.trainable = id(layer) not in self.still
            for variable in self.trainable:
                variable.trainable = unfrozen or id(variable) not in self.frozen
        return True

    def groups(self):
        """The Groups of variables that are trained at any time; the first is trained from the start."""
        found = {}
        for variable in self.trainable:
            late = id(variable) in self.frozen
            in_head = id(variable) in self.head
            if not late or self.recipe.unfreeze_epoch is not None:
                factor = 1.0 if in_head else self.recipe.trunk_learning_rate
                found.setdefault((late, factor), []).append(variable)
        return [Group(found[late, factor], factor, late) for late, factor in sorted(found)]

    def lines(self):
        """What is frozen, in words; empty if nothing is."""
        recipe, lines = self.recipe, []
        if self.still:
            until = "" if recipe.unfreeze_epoch is None else f" until epoch {recipe.unfreeze_epoch} is done"
            moving = {id(v) for v in self.trainable} - self.frozen
            for text, layers, variables in (
                (f"Frozen{until}, statistics included", self.still, self.frozen),
                ("Trained", {id(layer) for layer in self.layers if moving & {*map(id, own_weights(layer))}}, moving),
            ):
                count = sum(v.shape.num_elements() for v in self.trainable if id(v) in variables)
                lines.append(f"{text}: {count:,} parameters; layers ({len(layers)}): {listed(self.layers, layers)}")
        elif not recipe.says_what_is_trained and unchanging(self.model):
            count = len(unchanging(self.model))
            lines.append(f"{count} weights are frozen as the file has it; --train-only . trains them too.")
        if recipe.trunk_learning_rate != 1:
            factor = f"{recipe.trunk_learning_rate:g}"
            lines.append(f"The learning rate of what came trained is {factor} times the schedule's.")
        return lines
