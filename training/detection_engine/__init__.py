"""What the programs about detectors share: recipes, runs, the training loop."""

# Of these extras, in an environment of their own (docs/detection.md).
NEEDED, EXTRA = ("official", "tf_keras", "pycocotools", "matplotlib", "tensorboard"), "detection,train"
