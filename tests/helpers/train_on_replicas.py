"""Trains the small network of small_training.py and writes its variables: a program for tests. On several machines it
also evaluates, and writes the labels that every machine got to see.

python tests/helpers/train_on_replicas.py N FILE      on N virtual CPUs
python tests/helpers/train_on_replicas.py 0 FILE      on the machines of TF_CONFIG
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"
sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "training"))

import numpy as np

from engine import strategies

if __name__ == "__main__":
    replicas, path = int(sys.argv[1]), sys.argv[2]
    if replicas:
        strategy = strategies.make_strategy("mirrored", virtual_cpus=replicas)
    else:
        strategy = strategies.make_strategy("multi_worker_mirrored")
    from small_training import weights_after  # starts TensorFlow, after which devices cannot be split

    weights, _ = weights_after(strategy, 20, 1)
    if not replicas:
        import tensorflow as tf

        from engine import evaluation, steps
        from na_keras.data.digits import digits

        answer_nought = steps.make_evaluate_steps(strategy, lambda images: tf.zeros((tf.shape(images)[0], 10)))
        answers = evaluation.evaluate(strategy, answer_nought, digits("validation"), batch_size=50, resize=32, size=32)
        np.save(path.replace(".npz", ".npy"), answers.labels)
    strategies.total(strategy, 0)  # nobody leaves before the others are done
    np.savez(path, *weights)
