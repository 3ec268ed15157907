"""Warm-up requests of a SavedModel: TF Serving runs them before it answers the first client.

The file is assets.extra/tf_serving_warmup_requests in the version's folder: a TFRecord of PredictionLog messages, at
most 1000. A record that fails makes the server refuse the version, so `replay` runs them before publication. The
messages (tensorflow_serving/apis: prediction_log.proto, predict.proto, model.proto) are simple enough to be written by
hand, and tensorflow-serving-api stays optional:

    PredictionLog.predict_log = 6 > PredictLog.request = 1 > PredictRequest: model_spec = 1, inputs = 2 (a map)
    ModelSpec: name = 1, signature_name = 3       a map's entry: key = 1, value = 2 (here a TensorProto)

The name of the model is left out: the server runs the records on the version that holds them, under whatever name.
"""

import tensorflow as tf

from consumers import wire_format

FILE = "assets.extra/tf_serving_warmup_requests"


def field(number, content):
    """A length-delimited field of a protocol buffer: `content` (bytes) under the field's number (at most 15)."""
    length, size = len(content), b""
    while length > 127:
        size += bytes([length & 127 | 128])
        length >>= 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


def encode(signature, inputs):
    """The PredictionLog (bytes) of a request with arrays or tensors `inputs` (a dictionary) to a signature."""
    request = field(1, field(3, signature.encode()))
    for name, value in inputs.items():
        request += field(2, field(1, name.encode()) + field(2, tf.make_tensor_proto(value).SerializeToString()))
    return field(6, field(1, request))


def write_requests(folder, requests):
    """Writes pairs (signature, inputs) as the warm-up file of the SavedModel in `folder`."""
    path = folder / FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests:
            writer.write(encode(signature, inputs))


def read_requests(folder):
    """The pairs (signature, inputs) in the warm-up file of the SavedModel in `folder`."""
    return [wire_format.warmup_request(record.numpy()) for record in tf.data.TFRecordDataset(str(folder / FILE))]


def replay(folder):
    """Runs every warm-up request of the SavedModel in `folder`, as the server will.

    Returns:
        a list of {"signature", "batch"}, one for each request.

    Raises:
        RuntimeError: a request fails; the server would refuse this version.
    """
    signatures = tf.saved_model.load(str(folder)).signatures
    done = []
    for signature, inputs in read_requests(folder):
        try:
            signatures[signature](**{name: tf.constant(value) for name, value in inputs.items()})
        except (KeyError, TypeError, ValueError, tf.errors.OpError) as error:
            raise RuntimeError(f"The warm-up request to {signature} fails: {error}") from error
        done.append({"signature": signature, "batch": len(next(iter(inputs.values())))})
    return done
