"""An OPC UA server by another author: counters on asyncua. Arguments: port,
number of counters, milliseconds between changes. Prints "ready"."""
import asyncio, sys
from asyncua import Server, ua


async def main():
    port, count, every = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) / 1000
    server = Server()
    await server.init()
    server.set_endpoint("opc.tcp://127.0.0.1:%d/UA/Peer" % port)
    server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
    ns = await server.register_namespace("urn:edgehost:test")
    plant = await server.nodes.objects.add_folder(ua.NodeId("Plant", ns), "%d:Plant" % ns)
    counters = []
    for i in range(count):
        v = await plant.add_variable(ua.NodeId("Counter%d" % i, ns), "%d:Counter%d" % (ns, i), ua.Variant(0, ua.VariantType.UInt32))
        counters.append(v)
    async with server:
        print("ready", flush=True)
        n = 0
        loop = asyncio.get_running_loop()
        stop = loop.run_in_executor(None, sys.stdin.readline)
        while not stop.done():
            await asyncio.sleep(every)
            n += 1
            for v in counters:
                await server.write_attribute_value(v.nodeid, ua.DataValue(ua.Variant(n, ua.VariantType.UInt32)))
        print("done %d" % n, flush=True)
        await loop.run_in_executor(None, sys.stdin.readline)


asyncio.run(main())
