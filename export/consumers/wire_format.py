"""Reads protocol buffers and TFRecord files without their libraries, for programs that must not import TensorFlow.

Protocol buffer wire format (https://protobuf.dev/programming-guides/encoding): a message is a run of fields, each a
varint (field number << 3 | wire type) and a value. TFRecord (tensorflow/core/lib/io/record_writer.h): per record its
length as uint64, the masked CRC-32C of these 8 bytes, the data, and the data's. Numbers of fields and types are those
of tensorflow/core/framework/tensor.proto and types.proto, and tensorflow_serving/apis/{predict,prediction_log}.proto.
"""

import struct

import numpy as np

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
FIXED_SIZE = {FIXED64: 8, FIXED32: 4}

STRING = 7  # DT_STRING; TF_DataType has the same numbers
DTYPES = {1: "float32", 2: "float64", 3: "int32", 4: "uint8", 6: "int8", 9: "int64", 10: "bool"}
# The field of TensorProto that holds a type's values, where they are not in tensor_content.
VALUE_FIELD = {"float32": 5, "float64": 6, "int32": 7, "uint8": 7, "int8": 7, "int64": 10, "bool": 11}

CASTAGNOLI = 0x82F63B78  # CRC-32C's polynomial, bits reversed


def read_varint(data, position):
    """(the unsigned integer at `position`, the position behind it)."""
    value = shift = 0
    while True:
        if position >= len(data):
            raise ValueError("The message ends within an integer.")
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position


def fields(data):
    """Yields (field number, value) of a message: an int for varints, bytes for everything else.

    Raises:
        ValueError: the bytes are not a message.
    """
    position = 0
    while position < len(data):
        key, position = read_varint(data, position)
        wire_type = key & 7
        if wire_type == VARINT:
            value, position = read_varint(data, position)
        elif wire_type in (BYTES, *FIXED_SIZE):
            size, position = read_varint(data, position) if wire_type == BYTES else (FIXED_SIZE[wire_type], position)
            value, position = data[position : position + size], position + size
            if position > len(data):
                raise ValueError("The message ends within a field.")
        else:
            raise ValueError(f"Not a protocol buffer: wire type {wire_type}.")
        yield key >> 3, value


def message(data):
    """The fields of a message in which none repeats, as a dict."""
    return dict(fields(data))


def string_map(data, number):
    """Field `number`, a map from string to message: {key: message as bytes}."""
    entries = (message(entry) for key, entry in fields(data) if key == number)
    return {entry[1].decode(): entry.get(2, b"") for entry in entries}


def signed(value):
    """A varint as int32 or int64, whose negative numbers are written as their two's complement of 64 bits."""
    return value - 2**64 if value >= 2**63 else value


def read_values(data, number, dtype):
    """The values of a repeated field of TensorProto, packed or one by one."""
    values = []
    for key, value in fields(data):
        if key != number:
            continue
        if isinstance(value, int):
            values.append(signed(value))
        elif dtype in ("float32", "float64"):
            values.extend(np.frombuffer(value, np.dtype(dtype).newbyteorder("<")))
        else:
            position = 0
            while position < len(value):
                integer, position = read_varint(value, position)
                values.append(signed(integer))
    return values


def tensor(data):
    """A TensorProto as an array; strings as an object array of bytes.

    Raises:
        ValueError: a type that no exported classifier has, or too many values for the shape.
    """
    parts = message(data)
    sizes = [message(dim).get(1, 0) for key, dim in fields(parts.get(2, b"")) if key == 2]
    count, number = int(np.prod(sizes)), parts.get(1)
    if number == STRING:
        values = [value for key, value in fields(data) if key == 8]
        dtype = object
    elif number not in DTYPES:
        raise ValueError(f"Expected a tensor of one of {sorted(DTYPES.values())} or string. Received: type {number}")
    elif 4 in parts:
        dtype = DTYPES[number]
        values = np.frombuffer(parts[4], np.dtype(dtype).newbyteorder("<"))
    else:
        dtype = DTYPES[number]
        values = read_values(data, VALUE_FIELD[dtype], dtype)
    if len(values) > count:
        raise ValueError(f"A tensor of shape {sizes} holds {len(values)} values.")
    # Equal values at the end are written once.
    fill = values[-1] if len(values) else (b"" if dtype is object else 0)
    result = np.full(count, fill, dtype)
    result[: len(values)] = values
    return result.reshape(sizes)


def crc32c_table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (CASTAGNOLI if byte & 1 else 0)
        table.append(byte)
    return table


CRC32C_TABLE = crc32c_table()


def masked_crc32c(data):
    """TFRecord's checksum."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC32C_TABLE[(crc ^ byte) & 255]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(data):
    """Yields the records of a TFRecord file's content.

    Raises:
        ValueError: cut, or a checksum is wrong.
    """
    position = 0
    while position < len(data):
        if len(data) < position + 12:
            raise ValueError("The TFRecord file ends within a record.")
        length, length_checksum = struct.unpack_from("<QI", data, position)
        if masked_crc32c(data[position : position + 8]) != length_checksum:
            raise ValueError(f"Not a TFRecord file: the checksum at byte {position + 8} is wrong.")
        record = data[position + 12 : position + 12 + length]
        position += 16 + length
        if position > len(data):
            raise ValueError("The TFRecord file ends within a record.")
        if masked_crc32c(record) != struct.unpack_from("<I", data, position - 4)[0]:
            raise ValueError(f"The TFRecord file is damaged: the checksum at byte {position - 4} is wrong.")
        yield record


def warmup_request(record):
    """(signature name, {input name: array}) of a PredictionLog record, as in assets.extra/tf_serving_warmup_requests.

    Raises:
        ValueError: a log of something else than a Predict request.
    """
    log = message(record)
    if 6 not in log:
        raise ValueError(f"Expected a PredictionLog with a predict_log (field 6). Received: fields {sorted(log)}")
    request = message(log[6]).get(1, b"")
    specification = message(message(request).get(1, b""))
    signature = specification.get(3, b"").decode() or "serving_default"
    return signature, {name: tensor(value) for name, value in string_map(request, 2).items()}
