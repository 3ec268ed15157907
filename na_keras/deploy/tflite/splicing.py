"""Two TFLite files as one: the outputs of the first are the inputs of the second.

So a network whose weights or activations are made smaller can be followed by arithmetic that needs float32, such as
coordinates of boxes: the converter has one precision for a whole file. Inputs and outputs go by their names in the
files' signatures.
"""

from na_keras.deploy.tflite.editing import EditedFile


def tensors_of(entries):
    """{name: index of the tensor} of a signature's inputs or outputs."""
    return {entry.name.decode(): entry.tensorIndex for entry in entries}


def spliced(first, second):
    """One file of two.

    Args:
        first, second: TFLite files (bytes), each with one graph and one signature; the second's inputs are named as the
            first's outputs, and are of their shapes and types.

    Returns:
        The file (bytes), with the inputs of the first and the outputs of the second.

    Raises:
        ImportError: ai-edge-litert is not installed.
        ValueError: the names, shapes or types do not fit.
    """
    file, other = EditedFile(first), EditedFile(second)
    (signature,), (other_signature,) = file.model.signatureDefs, other.model.signatureDefs
    outputs, inputs = tensors_of(signature.outputs), tensors_of(other_signature.inputs)
    if set(outputs) != set(inputs):
        raise ValueError(f"Expected a second file with the inputs {sorted(outputs)}. Received: {sorted(inputs)}")
    place = {-1: -1}  # an optional input that is not given
    for name, index in inputs.items():
        ours, theirs = file.graph.tensors[outputs[name]], other.graph.tensors[index]
        if (file.shape(outputs[name]), ours.type) != (other.shape(index), theirs.type):
            raise ValueError(f"{name} is {file.shape(outputs[name])} in one file, {other.shape(index)} in the other.")
        place[index] = outputs[name]
    codes, buffers = len(file.model.operatorCodes), len(file.model.buffers)
    file.model.operatorCodes += other.model.operatorCodes
    file.model.buffers += other.model.buffers
    for index, tensor in enumerate(other.graph.tensors):
        if index not in place:
            tensor.buffer += buffers
            place[index] = len(file.graph.tensors)
            file.graph.tensors.append(tensor)
    for operator in other.graph.operators:
        operator.opcodeIndex += codes
        operator.inputs = [place[index] for index in operator.inputs]
        operator.outputs = [place[index] for index in operator.outputs]
        file.graph.operators.append(operator)
    for entry in other_signature.outputs:
        entry.tensorIndex = place[entry.tensorIndex]
    signature.outputs = other_signature.outputs
    file.graph.outputs = [place[index] for index in other.graph.outputs]
    file.size += other.size
    return file.pack()
