"""A TFLite file whose batch can be resized, although it was converted for one image at a time.

The converter takes the batch of 1 for granted in two ways:

- RESHAPE operations ask for shapes with that 1 in them; an interpreter then refuses `resize_tensor_input` to another
  batch. -1 in its place stands for whatever is left over: for one image 1 again.
- A gate (1, 1, 1, channels), such as SE's, is left as (1, channels) where it meets the map, for that broadcasts alike.
  Of several images it is (batch, channels), which an interpreter refuses, or takes for one gate a column where the map
  is as wide as the batch is large: a wrong answer without a word. The missing dimensions are put back.
"""

import numpy as np

BROADCASTING = ("ADD", "DIV", "MAXIMUM", "MINIMUM", "MUL", "SQUARED_DIFFERENCE", "SUB")


def free_reshapes(file):
    """Puts -1 in place of the batch in the shapes of RESHAPE; returns whether anything changed.

    A shape stays what it is if it has a -1 already, or if an operation of another kind reads it too.
    """
    shapes, others = set(), set()  # numbers of buffers
    for operator in file.graph.operators:
        for position, index in enumerate(operator.inputs):
            if index >= 0:
                place = shapes if position == 1 and file.name(operator) == "RESHAPE" else others
                place.add(file.graph.tensors[index].buffer)
    changed = False
    for number in shapes - others:
        data = file.model.buffers[number].data
        shape = np.array([] if data is None else data, np.uint8).view("<i4")
        if len(shape) > 1 and shape[0] == 1 and (shape > 0).all():
            shape[0] = -1
            file.model.buffers[number].data, changed = shape.view(np.uint8), True
    return changed


def with_rank(file, index, rank):
    """(operator, tensor): a RESHAPE of tensor `index`, (batch, ...), to (batch, 1, ..., 1, ...) of that rank."""
    tensor, shape = file.graph.tensors[index], file.shape(index)
    ones = [1] * (rank - len(shape))
    wanted = np.array([-1, *ones, *shape[1:]], "<i4").view(np.uint8)
    target = file.add_tensor(tensor.name + b"/shape", [rank], file.schema.TensorType.INT32, wanted)
    full = file.add_tensor(
        tensor.name + b"/full", [shape[0], *ones, *shape[1:]], tensor.type, quantization=tensor.quantization
    )
    return file.make_operator("RESHAPE", [index, target], [full]), full


def complete_broadcasts(file):
    """Gives both computed operands of an elementwise operation the same rank; returns whether anything changed."""
    operators = []
    for operator in file.graph.operators:
        if file.name(operator) in BROADCASTING and all(file.data(index) is None for index in operator.inputs):
            ranks = [len(file.shape(index)) for index in operator.inputs]
            for position, index in enumerate(operator.inputs):
                if 0 < ranks[position] < max(ranks) and file.shape(index)[0] == 1:
                    reshape, operator.inputs[position] = with_rank(file, index, max(ranks))
                    operators.append(reshape)
        operators.append(operator)
    changed = len(operators) > len(file.graph.operators)
    file.graph.operators = operators
    return changed


def free_batch(file):
    """Makes the batch of an EditedFile one that an interpreter can resize; for one image it computes the same.

    Returns:
        Whether anything changed.
    """
    return any([free_reshapes(file), complete_broadcasts(file)])
