"""Class names and a description inside the TFLite file, as MediaPipe's ImageClassifier and Android Studio read them.

The description is a flatbuffer of its own, ModelMetadata (google-ai-edge/mediapipe,
mediapipe/tasks/metadata/metadata_schema.fbs, version 1.0.0 of the schema suffices). It stands in the model under the
name TFLITE_METADATA; the class names, labels.txt, stand behind the model as a zip archive. Interpreters ignore both.

MediaPipe takes pixels 0..255 and normalises what the description says: (pixel - 0) / 1, because the exported networks
normalise in their own graph. It refuses float files without that entry, and int8 inputs: full int8 files take uint8.
"""

import io
import zipfile

import flatbuffers
import numpy as np

from na_keras.deploy.tflite.graph import describe
from na_keras.deploy.tflite.runner import litert

NAME, IDENTIFIER = b"TFLITE_METADATA", b"M001"
PARSER_VERSION = "1.0.0"  # the first schema: it has everything that is written here
LABELS_FILE = "labels.txt"
ALIGNMENT = 16  # bytes, of constants in a TFLite file

# The schema's tables: the position of each field written here. A union takes two, its type's number and its value.
FIELDS = {
    "ModelMetadata": {"name": 0, "description": 1, "version": 2, "subgraph_metadata": 3, "min_parser_version": 7},
    "SubGraphMetadata": {"input_tensor_metadata": 2, "output_tensor_metadata": 3},
    "TensorMetadata": {"name": 0, "description": 1, "content": 3, "process_units": 4, "associated_files": 6},
    "Content": {"content_properties_type": 0, "content_properties": 1},
    "ImageProperties": {"color_space": 0},
    "FeatureProperties": {},
    "ProcessUnit": {"options_type": 0, "options": 1},
    "NormalizationOptions": {"mean": 0, "std": 1},
    "AssociatedFile": {"name": 0, "description": 1, "type": 2},
}
FEATURE_PROPERTIES, IMAGE_PROPERTIES = 1, 2  # union ContentProperties
NORMALIZATION_OPTIONS = 1  # union ProcessUnitOptions
COLOR_SPACES = {3: 1, 1: 2}  # {channels: enum ColorSpaceType, RGB or GRAYSCALE}
TENSOR_AXIS_LABELS = 2  # enum AssociatedFileType: a name per index along the output's only long axis


class Table:
    """A table of the schema to be written: its name and the values of its fields.

    A value is a string, a Table, a list of Tables or of floats, or an int for a byte-sized enumeration.
    """

    def __init__(self, kind, **values):
        self.kind, self.values = kind, values


def write(builder, value):
    """Writes a value to a flatbuffer and returns its offset; what it refers to is written first."""
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, list) and isinstance(value[0], float):
        return builder.CreateNumpyVector(np.array(value, "<f4"))
    if isinstance(value, list):
        offsets = [write(builder, entry) for entry in value]
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()
    slots = FIELDS[value.kind]
    written = {k: v if isinstance(v, int) else write(builder, v) for k, v in value.values.items()}
    builder.StartObject(max(slots.values(), default=-1) + 1)
    for name, entry in written.items():
        if isinstance(value.values[name], int):
            builder.PrependInt8Slot(slots[name], entry, 0)
        else:
            builder.PrependUOffsetTRelativeSlot(slots[name], entry, 0)
    return builder.EndObject()


def classifier_metadata(name, description="", version="", *, channels=3, answer="probabilities"):
    """The ModelMetadata flatbuffer (bytes) of a network from an image 0..255 to class probabilities, or logits."""
    normalization = Table("NormalizationOptions", mean=[0.0], std=[1.0])
    image = Table(
        "TensorMetadata",
        name="image",
        description=f"{'grey' if channels == 1 else 'RGB'} image, pixels 0 to 255",
        content=Table(
            "Content",
            content_properties_type=IMAGE_PROPERTIES,
            content_properties=Table("ImageProperties", color_space=COLOR_SPACES[channels]),
        ),
        process_units=[Table("ProcessUnit", options_type=NORMALIZATION_OPTIONS, options=normalization)],
    )
    labels = Table("AssociatedFile", name=LABELS_FILE, description="class names", type=TENSOR_AXIS_LABELS)
    noun = {"probabilities": "probability", "logits": "logit"}[answer]
    scores = Table(
        "TensorMetadata",
        name=noun,
        description=f"{noun} of each class",
        content=Table(
            "Content", content_properties_type=FEATURE_PROPERTIES, content_properties=Table("FeatureProperties")
        ),
        associated_files=[labels],
    )
    graph = Table("SubGraphMetadata", input_tensor_metadata=[image], output_tensor_metadata=[scores])
    texts = {key: text for key, text in (("description", description), ("version", version)) if text}
    model = Table("ModelMetadata", name=name, **texts, subgraph_metadata=[graph], min_parser_version=PARSER_VERSION)
    builder = flatbuffers.Builder(1024)
    builder.Finish(write(builder, model), IDENTIFIER)
    return bytes(builder.Output())


def check_labels(labels, classes):
    """Raises ValueError unless there is a class name for each class, each a line of text."""
    if isinstance(labels, str) or len(labels) != classes:
        raise ValueError(f"The file's output has {classes} classes. Received: {len(labels)} labels")
    if bad := [label for label in labels if not label or set(label) & set("\r\n")]:
        raise ValueError(f"A label is one line of labels.txt, and not empty. Received: {bad[0]!r}")


def check_classifier_file(blob, labels):
    """The channels of a TFLite classifier's image.

    Raises:
        ValueError: `labels` do not fit the file, or its input is of a type that MediaPipe does not take.
    """
    described = describe(blob)
    inputs, outputs = described["inputs"], described["outputs"]
    if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0]["shape"]) != 4:
        raise ValueError(f"Expected one image in and one tensor out. Received: {inputs} and {outputs}")
    if inputs[0]["shape"][-1] not in COLOR_SPACES:
        raise ValueError(f"Expected an RGB or grey image. Received: {inputs}")
    if (dtype := inputs[0]["dtype"]) not in ("float32", "uint8"):
        raise ValueError(f"MediaPipe takes float32 and uint8 images. Received a file with {dtype} input")
    check_labels(labels, outputs[0]["shape"][-1])
    return inputs[0]["shape"][-1]


class AlignedBuilder(flatbuffers.Builder):
    """Keeps constants where the runtime's kernels expect them: the generated classes forget the schema's alignment."""

    def CreateNumpyVector(self, x):  # noqa: N802  its name in flatbuffers
        """A one-dimensional array; its data begins at a multiple of ALIGNMENT."""
        self.Prep(ALIGNMENT, x.nbytes)
        return super().CreateNumpyVector(x)


def attach(blob, labels, name, description="", version="", *, answer="probabilities"):
    """A TFLite classifier with its class names and description inside; what it computes is untouched.

    Args:
        blob: the TFLite file (bytes), float32 or uint8 image in, probabilities out.
        labels: class names in the order of the outputs; UTF-8 in the file.
        name, description, version: free text for a person; empty ones are left out.
        answer: what the output is, "probabilities" or "logits".

    Returns:
        The new file, as bytes: the same ones whenever the arguments are.

    Raises:
        ValueError: labels that do not fit, an input that MediaPipe refuses, a file that has metadata already.
    """
    schema = litert("schema_py_generated")
    channels = check_classifier_file(blob, labels)
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(blob, 0))
    if any(entry.name == NAME for entry in model.metadata or ()):
        raise ValueError("The TFLite file has metadata already. Attach to the file that the converter wrote.")
    buffer, entry = schema.BufferT(), schema.MetadataT()
    about = classifier_metadata(name, description, version, channels=channels, answer=answer)
    buffer.data = np.frombuffer(about, np.uint8)
    model.buffers.append(buffer)
    entry.name, entry.buffer = NAME, len(model.buffers) - 1
    model.metadata = [*(model.metadata or ()), entry]
    builder = AlignedBuilder(len(blob) + 4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    file = io.BytesIO(builder.Output())
    with zipfile.ZipFile(file, "a") as archive:  # stored, not compressed: MediaPipe reads it in place
        archive.writestr(zipfile.ZipInfo(LABELS_FILE), "".join(f"{label}\n" for label in labels))
    return file.getvalue()
