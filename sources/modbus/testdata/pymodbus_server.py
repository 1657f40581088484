"""pymodbus as a peer: pymodbus_server.py IMAGE tcp|udp|rtutcp|rtu PORT|TTY [UNITS [HOLE-HOLE]]

IMAGE holds a line for each table: holding HEX, input HEX, coil 0101…, discrete 0101….
Units that are not named do not answer. Registers of the hole do not exist.
"""
import asyncio
import sys

from pymodbus.datastore import ModbusServerContext, ModbusSlaveContext, ModbusSparseDataBlock
from pymodbus.server import async_io
from pymodbus.transaction import ModbusRtuFramer, ModbusSocketFramer


def table(text, width, hole):
    values = [int(text[i:i + width], 16 if width == 4 else 2) for i in range(0, len(text), width)]
    return ModbusSparseDataBlock({i: v for i, v in enumerate(values) if not hole[0] <= i <= hole[1]})


async def main():
    image, mode, where = sys.argv[1:4]
    units = [int(u) for u in sys.argv[4].split(",")] if len(sys.argv) > 4 else []
    hole = [int(h) for h in sys.argv[5].split("-")] if len(sys.argv) > 5 else [-1, -1]
    with open(image, encoding="ascii") as f:
        lines = dict(line.split() for line in f)
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
