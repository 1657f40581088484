"""pymodbus as a peer: pymodbus_server.py IMAGE tcp|udp|rtutcp|rtu PORT|TTY [UNITS [HOLE-HOLE]]

IMAGE holds lines that fill the tables one after the other: holding HEX, input HEX,
coil 0101…, discrete 0101…, or one value that the peer encodes by itself:
holding TYPE ORDER VALUE, such as: holding float32 CDAB 21.5 (TYPE bit:N is bit N,
string:N has N characters).
Units that are not named do not answer. Registers of the hole do not exist.
"""
import asyncio
import sys

from pymodbus.constants import Endian
from pymodbus.datastore import ModbusServerContext, ModbusSlaveContext, ModbusSparseDataBlock
from pymodbus.payload import BinaryPayloadBuilder
from pymodbus.server import async_io
from pymodbus.transaction import ModbusRtuFramer, ModbusSocketFramer


def encode(kind, order, value):
    """The registers of a value, by pymodbus."""
    kind, _, n = kind.partition(":")
    b = BinaryPayloadBuilder(byteorder=Endian.Little if order in ("BADC", "DCBA") else Endian.Big,
                             wordorder=Endian.Little if order in ("CDAB", "DCBA") else Endian.Big)
    numbers = {"int16": b.add_16bit_int, "uint16": b.add_16bit_uint, "int32": b.add_32bit_int, "uint32": b.add_32bit_uint,
               "int64": b.add_64bit_int, "uint64": b.add_64bit_uint}
    floats = {"float16": b.add_16bit_float, "float32": b.add_32bit_float, "float64": b.add_64bit_float}
    word = {"bool": lambda: int(value), "bit": lambda: 1 << int(n) if value == "1" else 0xffff ^ 1 << int(n),
            "int8": lambda: 0x5500 | int(value) & 0xff, "uint8": lambda: 0x5500 | int(value),
            "int8_high": lambda: (int(value) & 0xff) << 8 | 0x55, "uint8_high": lambda: int(value) << 8 | 0x55,
            "bcd16": lambda: int(value, 16)}
    if kind in word:
        b.add_16bit_uint(word[kind]())
    elif kind == "bcd32":
        b.add_32bit_uint(int(value, 16))
    elif kind == "string":  # two characters a register, as they stand
        text = value.encode("latin-1").ljust((int(n) + 1) // 2 * 2, b" ")
        for i in range(0, len(text), 2):
            b.add_16bit_uint(text[i] << 8 | text[i + 1])
    elif kind in floats:
        floats[kind](float(value))
    else:
        numbers[kind](int(value))
    return "".join(f"{r:04x}" for r in b.to_registers())


def load(path):
    tables = {"holding": "", "input": "", "coil": "", "discrete": ""}
    with open(path, encoding="utf-8") as f:
        for line in f:
            name, *rest = line.split()
            tables[name] += rest[0] if len(rest) == 1 else encode(*rest)
    return tables


def table(text, width, hole):
    values = [int(text[i:i + width], 16 if width == 4 else 2) for i in range(0, len(text), width)]
    return ModbusSparseDataBlock({i: v for i, v in enumerate(values) if not hole[0] <= i <= hole[1]})


async def main():
    image, mode, where = sys.argv[1:4]
    units = [int(u) for u in sys.argv[4].split(",")] if len(sys.argv) > 4 else []
    hole = [int(h) for h in sys.argv[5].split("-")] if len(sys.argv) > 5 else [-1, -1]
    lines = load(image)
    slave = ModbusSlaveContext(
        hr=table(lines["holding"], 4, hole), ir=table(lines["input"], 4, hole),
        co=table(lines["coil"], 1, hole), di=table(lines["discrete"], 1, hole), zero_mode=True)
    context = ModbusServerContext(slaves={u: slave for u in units} if units else slave, single=not units)
    quiet = {"ignore_missing_slaves": True}
    if mode == "rtu":
        await async_io.StartAsyncSerialServer(context=context, framer=ModbusRtuFramer, port=where, baudrate=115200, **quiet)
        return
    framer = ModbusRtuFramer if mode == "rtutcp" else ModbusSocketFramer
    address = ("127.0.0.1", int(where))
    if mode == "udp":
        server = async_io.ModbusUdpServer(context, framer=framer, address=address, **quiet)
    else:
        server = async_io.ModbusTcpServer(context, framer=framer, address=address, allow_reuse_address=True, **quiet)
    await server.serve_forever()


asyncio.run(main())
