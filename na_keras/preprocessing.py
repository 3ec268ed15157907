"""The public name of na_keras/data/preprocessing.py: the one definition of pixels (TensorFlow)."""

from na_keras.data.preprocessing import decode, evaluation_image, training_image

__all__ = ["decode", "evaluation_image", "training_image"]
