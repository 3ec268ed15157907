"""A TFLite file whose batch can be resized, although it was converted for one image at a time.

Converted for a batch of 1, a file has that 1 in the shapes that its RESHAPE operations ask for; an interpreter then
refuses `resize_tensor_input` to another batch. -1 in its place stands for whatever is left over: for one image 1 again.
"""

from na_keras.deploy.tflite.graph import names_of
from na_keras.deploy.tflite.runner import litert


def with_free_batch(flatbuffer):
    """The same file (bytes), with a free batch in the shapes of RESHAPE; for one image it computes the same.

    A shape stays what it is if it has a -1 already, or if an operation of another kind reads it too.
    """
    schema = litert("schema_py_generated")
    content = bytearray(flatbuffer)
    model = schema.Model.GetRootAs(content, 0)
    names = names_of(schema.BuiltinOperator)
    shapes, others = set(), set()  # numbers of buffers
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        for operator in map(graph.Operators, range(graph.OperatorsLength())):
            code = model.OperatorCodes(operator.OpcodeIndex())
            reshape = names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())] == "RESHAPE"
            for position, index in enumerate(operator.InputsAsNumpy().tolist()):
                if index >= 0:
                    place = shapes if reshape and position == 1 else others
                    place.add(graph.Tensors(index).Buffer())
    for number in shapes - others:
        buffer = model.Buffers(number)
        if not buffer.DataLength():
            continue
        shape = buffer.DataAsNumpy().view("<i4")
        if len(shape) > 1 and shape[0] == 1 and (shape > 0).all():
            shape[0] = -1
    return bytes(content)
