"""Consumer: TensorFlow's Python loaders, of TensorFlow 2 and of TensorFlow 1's sessions, where Keras does not exist.

python -m consumers.python_loaders VERSION REFERENCE.npz ANSWERS.npz      (from export/; see protocol.py)
"""

from consumers.protocol import answer_calls, check_without_keras, forbid_keras, run_consumer


def load_functions(path):
    """predict(signature, inputs) by tf.saved_model.load."""
    import tensorflow as tf

    signatures = tf.saved_model.load(str(path)).signatures

    def predict(signature, inputs):
        answer = signatures[signature](**{name: tf.constant(array) for name, array in inputs.items()})
        return {name: value.numpy() for name, value in answer.items()}

    return predict


def load_session(path, session):
    """predict(signature, inputs) by the TensorFlow 1 loader, which restores into the session's graph."""
    import tensorflow as tf

    signatures = tf.compat.v1.saved_model.load(session, ["serve"], str(path)).signature_def

    def predict(signature, inputs):
        definition = signatures[signature]
        feeds = {definition.inputs[name].name: array for name, array in inputs.items()}
        return session.run({name: info.name for name, info in definition.outputs.items()}, feeds)

    return predict


def consume(path, reference):
    forbid_keras()
    import tensorflow as tf

    answers = {"tf2:" + key: value for key, value in answer_calls(load_functions(path), reference).items()}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        predict = load_session(path, session)
        answers |= {"tf1:" + key: value for key, value in answer_calls(predict, reference).items()}
    check_without_keras()
    return answers, {"runtime": f"TensorFlow {tf.__version__}, Python without Keras"}


if __name__ == "__main__":
    run_consumer(consume)
