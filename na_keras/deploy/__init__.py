"""A trained Keras classifier as what ships: deploy form, SavedModel, TFLite and ONNX files (TensorFlow)."""
