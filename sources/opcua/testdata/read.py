"""Reads the variables below Plant/Types with asyncua and prints them as the
test compares them: name -> "kind text"."""
import asyncio, base64, datetime, enum, json, math, sys, uuid
from asyncua import Client, ua

VT = ua.VariantType
INTS = {VT.SByte, VT.Int16, VT.Int32, VT.Int64}
UINTS = {VT.Byte, VT.UInt16, VT.UInt32, VT.UInt64, VT.StatusCode}
NAMES = {"State": {3: "Suspended"}, "Valve": {0: "Closed", 1: "Open"}}


def number(f):
    if isinstance(f, float) and (math.isnan(f) or math.isinf(f)):
        return "NaN" if math.isnan(f) else ("+Inf" if f > 0 else "-Inf")
    return f


def time(d):
    text = d.strftime("%Y-%m-%dT%H:%M:%S.%f").rstrip("0").rstrip(".")
    return text + "Z"


def plain(v, t):
    """The value as it stands in JSON."""
    if isinstance(v, list):
        return [plain(x, t) for x in v]
    if v is None:
        return "" if t in (VT.String, VT.ByteString, VT.XmlElement) else None
    if isinstance(v, bool):
        return v
    if isinstance(v, ua.StatusCode):
        return v.value
    if isinstance(v, enum.IntEnum) and t == VT.ExtensionObject:
        return v.name
    if isinstance(v, int):
        return int(v)
    if isinstance(v, float):
        if math.isnan(v) or math.isinf(v):
            return {"NaN": "NaN", "+Inf": "Infinity", "-Inf": "-Infinity"}[number(v)]
        if t == VT.Float:
            return float("%.7g" % v)
        return int(v) if v == int(v) and abs(v) < 1e15 else v
    if isinstance(v, bytes):
        return base64.b64encode(v).decode()
    if isinstance(v, datetime.datetime):
        return time(v)
    if isinstance(v, uuid.UUID):
        return str(v).upper()
    if isinstance(v, ua.Variant):
        return plain(v.Value, v.VariantType)
    if isinstance(v, ua.NodeId):
        return v.to_string()
    if isinstance(v, ua.QualifiedName):
        return "%d:%s" % (v.NamespaceIndex, v.Name)
    if isinstance(v, ua.LocalizedText):
        return v.Text
    if isinstance(v, ua.XmlElement):
        return v.Value
    if hasattr(v, "Encoding") and hasattr(v, "Value"):  # a union
        fields = [k for k, p in vars(type(v)).items() if isinstance(p, property)]
        return {fields[v.Encoding - 1]: plain(v.Value, VT.ExtensionObject)}
    if hasattr(v, "Encoding"):  # optional fields
        return {k: plain(getattr(v, k), VT.ExtensionObject) for k in v.__dataclass_fields__ if k not in ("Encoding", "data_type") and getattr(v, k) is not None}
    if hasattr(v, "__dataclass_fields__"):
        return {k: plain(getattr(v, k), VT.ExtensionObject) for k in v.__dataclass_fields__ if k not in ("Encoding", "data_type")}
    return str(v)


def line(name, dv):
    t, v = dv.Value.VariantType, dv.Value.Value
    if dv.Value.is_array or isinstance(v, list) or t == VT.ExtensionObject:
        return "json " + json.dumps(plain(v, t), separators=(",", ":"), ensure_ascii=False).replace("\\n", "\\u000a")
    if name in NAMES:
        return "string " + NAMES[name][v]
    if t == VT.Boolean:
        return "bool " + str(v).lower()
    if t in INTS:
        return "int64 %d" % v
    if t in UINTS:
        return "uint64 %d" % plain(v, t)
    if t in (VT.Float, VT.Double):
        return "float64 " + (number(v) if isinstance(number(v), str) else json.dumps(plain(v, t)))
    if t == VT.ByteString:
        return "bytes " + v.hex()
    return "string " + str(plain(v, t))


async def main():
    async with Client(sys.argv[1], timeout=60, watchdog_intervall=30) as c:  # on a busy machine
        await c.load_data_type_definitions()
        ns = await c.get_namespace_index("urn:edgehost:test")
        out = {}
        for n in await c.get_node(ua.NodeId("Types", ns)).get_children():
            out[n.nodeid.Identifier] = line(n.nodeid.Identifier, await n.read_data_value())
        print(json.dumps(out))


asyncio.run(main())
