"""Detectors on the backbones of this library: RetinaNet and Cascade R-CNN as the paper's Table 4 has them.

The parts that a detector computes with (feature_pyramid, heads) take `layers=`, a namespace of layers: Keras' own, or
that of tf_keras, which TensorFlow Model Garden trains with. Nothing here is imported by `import na_keras`.
"""

from na_keras.detection.detectors import DETECTORS, freeze_first_stage

__all__ = ["DETECTORS", "freeze_first_stage"]
