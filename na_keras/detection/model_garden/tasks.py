"""What Model Garden calls a task, for the library's detectors: network, training data and losses.

Evaluation is not a task's here but na_keras.detection.evaluation's, over every image. Importing this registers the
tasks with Model Garden.
"""

import dataclasses

import tensorflow as tf
import tf_keras
from official.common import dataset_fn
from official.core import input_reader, task_factory
from official.modeling import hyperparams
from official.vision.configs import maskrcnn, retinanet
from official.vision.dataloaders import maskrcnn_input, retinanet_input
from official.vision.tasks import maskrcnn as maskrcnn_task
from official.vision.tasks import retinanet as retinanet_task

from na_keras.detection.model_garden import detectors, images, losses, networks


@dataclasses.dataclass
class Resize(hyperparams.Config):
    """How large images are: pixels of the shorter side, and the most that the longer one may have."""

    shorter: int = 800
    longer: int = 1333


@dataclasses.dataclass
class RetinaNetLosses(retinanet.Losses):
    """Model Garden's, whose weight of the boxes' loss is a whole number."""

    box_loss_weight: float = 50.0


@dataclasses.dataclass
class RetinaNetTask(retinanet.RetinaNetTask):
    """RetinaNet with classes and no background. `category_ids`: see images.Decoder."""

    category_ids: list[int] | None = None
    resize: Resize = dataclasses.field(default_factory=Resize)
    losses: RetinaNetLosses = dataclasses.field(default_factory=RetinaNetLosses)


@dataclasses.dataclass
class CascadeRCNNTask(maskrcnn.MaskRCNNTask):
    """Cascade R-CNN without masks. `category_ids`: see images.Decoder."""

    category_ids: list[int] | None = None
    resize: Resize = dataclasses.field(default_factory=Resize)


def regularized_layers(config):
    """The layers of a task's network. Model Garden halves the weight decay, as tf.nn.l2_loss does."""
    decay = config.losses.l2_weight_decay
    regularizer = tf_keras.regularizers.l2(decay / 2.0) if decay else None
    return networks.RegularizedLayers(regularizer, config.model.backbone.get().fixed_batch_norm)


def check_canvas(config):
    """Raises ValueError if the network's input cannot hold the task's images, or the pyramid's levels do not fit."""
    (height, width, _), stride = config.model.input_size, 2**config.model.max_level
    if height != width or height % stride or height < config.resize.longer:
        raise ValueError(
            f"A detector's input must be a square of a multiple of {stride} pixels that holds the longer side, "
            f"{config.resize.longer}, such as {images.canvas_side(config.resize.longer, stride)}. "
            f"Received: {height} x {width}"
        )


def check_losses(config):
    """Raises ValueError if numbers of Cascade R-CNN's losses are asked for that are fixed here."""
    expected = maskrcnn.Losses(l2_weight_decay=config.l2_weight_decay)
    if config.as_dict() != expected.as_dict():
        raise ValueError(
            "Cascade R-CNN has mmdetection's losses (na_keras/detection/model_garden/losses.py): of the configuration "
            f"`losses` only l2_weight_decay can be chosen. Received: {config.as_dict()}"
        )


def read(parameters, config, parser, input_context):
    """The batches of a task's records (images, labels)."""
    check_canvas(config)
    resize, side = config.resize, config.model.input_size[0]
    decoder = images.Decoder(
        config.category_ids, resize.shorter, resize.longer, side, flip=parameters.parser.aug_rand_hflip
    )
    reader = input_reader.InputReader(
        parameters,
        dataset_fn=dataset_fn.pick_dataset_fn(parameters.file_type),
        decoder_fn=decoder.decode,
        parser_fn=parser.parse_fn(parameters.is_training),
    )
    return reader.read(input_context=input_context)


def parser_options(parameters, model):
    """What both parsers are told."""
    own = detectors.fields(parameters.parser, "skip_crowd_during_training", "max_num_instances")
    return detectors.anchor_options(model) | own | {"output_size": model.input_size[:2], "dtype": parameters.dtype}


@task_factory.register_task_cls(RetinaNetTask)
class RetinaNet(retinanet_task.RetinaNetTask):
    """Trains RetinaNet."""

    def build_model(self):
        """A RetinaNetModel around the library's networks."""
        check_canvas(self.task_config)
        return detectors.retinanet(self.task_config.model, regularized_layers(self.task_config))

    def build_inputs(self, params, input_context=None):
        """The records' batches."""
        matching = detectors.fields(params.parser, "match_threshold", "unmatched_threshold")
        parser = retinanet_input.Parser(**parser_options(params, self.task_config.model), **matching)
        return read(params, self.task_config, parser, input_context)

    def build_losses(self, outputs, labels, aux_losses=None):
        """Model Garden's, of targets that count classes from 0 and have no background: -1 is none of the classes."""
        targets = {level: classes - 1 for level, classes in labels["cls_targets"].items()}
        return super().build_losses(outputs, {**labels, "cls_targets": targets}, aux_losses)


@task_factory.register_task_cls(CascadeRCNNTask)
class CascadeRCNN(maskrcnn_task.MaskRCNNTask):
    """Trains Cascade R-CNN."""

    def build_model(self):
        """A MaskRCNNModel around the library's networks."""
        check_canvas(self.task_config)
        check_losses(self.task_config.losses)
        return detectors.cascade_rcnn(self.task_config.model, regularized_layers(self.task_config))

    def build_inputs(self, params, input_context=None):
        """The records' batches."""
        names = "rpn_match_threshold", "rpn_unmatched_threshold", "rpn_batch_size_per_im", "rpn_fg_fraction"
        matching = detectors.fields(params.parser, *names)
        parser = maskrcnn_input.Parser(**parser_options(params, self.task_config.model), **matching)
        return read(params, self.task_config, parser, input_context)

    def build_losses(self, outputs, labels, aux_losses=None):
        """mmdetection's; of the configuration's numbers only the weight decay has an effect."""
        found = losses.cascade_rcnn_losses(outputs, labels)
        loss = tf.add_n(list(found.values()))
        return found | {"mask_loss": 0.0, "model_loss": loss, "total_loss": loss + tf.add_n(aux_losses or [0.0])}
