"""The Python client against an endpoint: client.py ENDPOINT WORKSPACE TABLE FORMAT RECORDS BATCH DESCRIPTOR

FORMAT is json or proto; DESCRIPTOR is base64. The records have the ids 0, 1, 2, ...
"""

import base64
import json
import struct
import sys

from google.protobuf.descriptor_pb2 import FileDescriptorProto
from zerobus.sdk.shared import StreamConfigurationOptions, TableProperties
from zerobus.sdk.sync import ZerobusSdk

endpoint, workspace, table, fmt, total, batch, descriptor = sys.argv[1:8]


def proto_row(i):
    """record_id 1 string, device 2 string, n 3 int64, temperature 4 double"""
    rid, device, n, v = str(i).encode(), b"press-%d" % (i % 7), b"", i
    while v >= 128:
        n, v = n + bytes([v & 127 | 128]), v >> 7
    n += bytes([v])
    return b"\x0a" + bytes([len(rid)]) + rid + b"\x12" + bytes([len(device)]) + device + b"\x18" + n + b"\x21" + struct.pack("<d", i / 4)


def json_row(i):
    return json.dumps({"record_id": str(i), "device": f"press-{i % 7}", "n": i, "temperature": i / 4})


def file_descriptor():
    """This client wants the descriptor in a file; it sends the message's alone."""
    file = FileDescriptorProto(name="row.proto", syntax="proto2")
    file.message_type.add().ParseFromString(base64.b64decode(descriptor))
    return file.SerializeToString()


row = proto_row if fmt == "proto" else json_row
sdk = ZerobusSdk(host=endpoint, unity_catalog_url=workspace, application_name="edgehost-conformance/1")
props = TableProperties(table, file_descriptor()) if fmt == "proto" else TableProperties(table)
stream = sdk.create_stream(client_id="client", client_secret="secret", table_properties=props, options=StreamConfigurationOptions())
for start in range(0, int(total), int(batch)):
    stream.ingest_records_offset([row(i) for i in range(start, min(start + int(batch), int(total)))])
stream.flush()
stream.close()
