// An OPC UA server for the conformance tests. Options are one JSON object as
// the first argument; it prints "ready" when it listens, and obeys one command
// a line on standard input: "set <name> <json>", "freeze", "thaw".
"use strict";
const opcua = require("node-opcua");
const path = require("path");
const fs = require("fs");
const readline = require("readline");

const o = Object.assign({
  port: 0, dir: "", counters: 10, everyMs: 100, idle: 0, namespaces: ["urn:edgehost:test"], without: [],
  secure: false, anonymous: true, sessions: 50, alarms: false, limits: {}, types: false, history: false, events: false, conformance: false,
  cycle: 0, versioned: false, autoAccept: true, autoAcceptUsers: true, cert: "", key: "", tokenLifetime: 0,
}, JSON.parse(process.argv[2] || "{}"));

const S = opcua.SecurityPolicy;
const M = opcua.MessageSecurityMode;

async function main() {
  const pki = new opcua.OPCUACertificateManager({ rootFolder: path.join(o.dir, "pki"), automaticallyAcceptUnknownCertificate: o.autoAccept });
  await pki.initialize();
  const userPki = new opcua.OPCUACertificateManager({ rootFolder: path.join(o.dir, "user-pki"), automaticallyAcceptUnknownCertificate: o.autoAcceptUsers, name: "user" });
  await userPki.initialize();
  // cert and key: files of the server's certificate, with those of its issuers.
  const cert = o.cert || path.join(o.dir, "server.pem"), key = o.key || pki.privateKey;
  if (!fs.existsSync(cert)) {
    await pki.createSelfSignedCertificate({
      applicationUri: "urn:edgehost:peer", dns: ["localhost"], ip: ["127.0.0.1"], outputFile: cert,
      startDate: new Date(Date.now() - 3600e3), subject: "/CN=peer", validity: 365,
    });
  }
  const server = new opcua.OPCUAServer({
    port: o.port, hostname: "127.0.0.1", resourcePath: "/UA/Peer", maxConnectionsPerEndpoint: 50,
    serverInfo: { applicationUri: "urn:edgehost:peer" }, defaultSecureTokenLifetime: o.tokenLifetime || undefined, certificateFile: cert, privateKeyFile: key,
    serverCertificateManager: pki, userCertificateManager: userPki, allowAnonymous: o.anonymous,
    securityPolicies: o.secure ? [S.None, S.Basic256Sha256, S.Aes128_Sha256_RsaOaep, S.Aes256_Sha256_RsaPss] : [S.None],
    securityModes: o.secure ? [M.None, M.Sign, M.SignAndEncrypt] : [M.None],
    userManager: { isValidUser: (u, p) => u === "operator" && p === "correct horse" },
    serverCapabilities: new opcua.ServerCapabilities({
      maxSessions: o.sessions, maxSubscriptions: o.limits.subscriptions || 100, maxSubscriptionsPerSession: 50,
      maxMonitoredItems: 200000, maxMonitoredItemsPerSubscription: o.limits.perSubscription || 100000, maxMonitoredItemsQueueSize: 10000,
      maxBrowseContinuationPoints: o.limits.continuation || 50,
      operationLimits: {
        maxNodesPerRead: o.limits.read || 1000, maxNodesPerBrowse: o.limits.browse || 1000, maxMonitoredItemsPerCall: o.limits.items || 1000,
        maxNodesPerTranslateBrowsePathsToNodeIds: o.limits.translate || 1000, maxNodesPerHistoryReadData: 10,
      },
    }),
    nodeset_filename: o.conformance || o.types ? [opcua.nodesets.standard].concat(o.types ? [path.join(__dirname, "types.xml")] : []) : [opcua.nodesets.standard],
  });
  await server.initialize();
  const space = server.engine.addressSpace;
  const spaces = {};
  for (const uri of o.namespaces) spaces[uri] = space.registerNamespace(uri);
  const ns = spaces["urn:edgehost:test"];
  const plant = ns.addFolder(space.rootFolder.objects, { browseName: "Plant", nodeId: "s=Plant", nodeVersion: o.versioned ? "1" : undefined });
  const counters = [], extra = {};
  let n = 0;
  for (let i = 0; i < o.counters; i++) {
    if (o.without.includes("Counter" + i)) continue;
    const v = ns.addVariable({
      componentOf: plant, browseName: "Counter" + i, nodeId: "s=Counter" + i, dataType: "UInt32", minimumSamplingInterval: 0,
      value: { dataType: "UInt32", value: 0 },
    });
    if (o.history && i < 3) space.installHistoricalDataNode(v, { maxOnlineValues: 20000 });
    counters.push(v);
  }
  for (let i = 0; i < o.idle; i++) {
    ns.addVariable({ componentOf: plant, browseName: "Idle" + i, nodeId: "s=Idle" + i, dataType: "Double", value: { dataType: "Double", value: i } });
  }
  const frozenName = {};
  extra.Set = ns.addVariable({ componentOf: plant, browseName: "Set", nodeId: "s=Set", dataType: "Double", minimumSamplingInterval: 0, value: { dataType: "Double", value: 0 } });
  extra.Level = ns.addAnalogDataItem({ componentOf: plant, browseName: "Level", nodeId: "s=Level", dataType: "Double", minimumSamplingInterval: 0,
    engineeringUnitsRange: { low: 100, high: 300 }, value: { dataType: "Double", value: 100 } });
  ns.addVariable({ componentOf: plant, browseName: "Gone", nodeId: "s=Gone", dataType: "Double", value: { get: () => opcua.StatusCodes.BadDeviceFailure } });
  if (o.alarms) {
    const tank = ns.addObject({ organizedBy: space.rootFolder.objects, browseName: "Tank", nodeId: "s=Tank", notifierOf: space.rootFolder.objects.server });
    extra.Height = ns.addVariable({ componentOf: tank, browseName: "Height", nodeId: "s=Height", dataType: "Double", eventSourceOf: tank, value: { dataType: "Double", value: 0 } });
    space.installAlarmsAndConditionsService();
    ns.instantiateExclusiveLimitAlarm("ExclusiveLimitAlarmType", { browseName: "TankAlarm", conditionName: "TankAlarm", componentOf: tank, conditionSource: extra.Height, inputNode: extra.Height,
      highHighLimit: 100, highLimit: 80, lowLimit: -80, lowLowLimit: -100 });
  }
  if (o.cycle) {
    // Areas of 100 variables each, and a reference back from the last to the first.
    let first, last;
    for (let a = 0; a * 100 < o.cycle; a++) {
      const area = ns.addFolder(last || plant, { browseName: "Area" + a });
      first = first || area;
      for (let i = 0; i < 100; i++) {
        ns.addVariable({ componentOf: area, browseName: "V" + i, nodeId: "s=A" + a + "V" + i, dataType: i % 2 ? "Double" : "Int32",
          value: i % 2 ? { dataType: "Double", value: i } : { dataType: "Int32", value: i } });
      }
      last = area;
    }
    last.addReference({ referenceType: "Organizes", nodeId: first.nodeId, isForward: true });
  }
  if (o.types) addTypes(space, ns, plant);
  if (o.conformance) {
    await require("node-opcua-address-space-for-conformance-testing").build_address_space_for_conformance_testing(space, { mass_variables: false });
  }
  let frozen = false;
  setInterval(() => {
    if (frozen) return;
    n++;
    const at = new Date();
    for (const v of counters) v.setValueFromSource({ dataType: "UInt32", value: n }, opcua.StatusCodes.Good, at);
    if (o.events && n % 5 === 0) {
      space.rootFolder.objects.server.raiseEvent("BaseEventType", {
        message: { dataType: "LocalizedText", value: { text: "event " + n } }, severity: { dataType: "UInt16", value: n % 10 === 0 ? 700 : 100 },
      });
    }
  }, o.everyMs);
  await server.start();
  readline.createInterface({ input: process.stdin }).on("line", (line) => {
    const [cmd, name, ...rest] = line.split(" ");
    if (cmd === "freeze") frozen = true;
    if (cmd === "thaw") frozen = false;
    if (cmd === "set") extra[name].setValueFromSource({ dataType: "Double", value: JSON.parse(rest.join(" ")) });
    if (cmd === "add") {
      ns.addVariable({ componentOf: plant, browseName: name, nodeId: "s=" + name, dataType: "Double", value: { dataType: "Double", value: 1 } });
    }
    console.log("done " + n);
  }).on("close", () => process.exit(0));
  console.log("ready " + server.endpoints[0].port);
}

function addTypes(space, ns, plant) {
  const dir = ns.addFolder(plant, { browseName: "Types", nodeId: "s=Types" });
  const at = new Date(Date.UTC(2024, 1, 29, 12, 34, 56, 789));
  const D = opcua.DataType, A = opcua.VariantArrayType;
  const samples = {
    Boolean: true, SByte: -128, Byte: 255, Int16: -32768, UInt16: 65535, Int32: -2147483648, UInt32: 4294967295,
    Int64: [0x80000000, 1], UInt64: [4294967295, 4294967295], Float: 0.1, Double: Math.PI, String: "Grüße \"q\"\n", DateTime: at,
    Guid: "72962B91-FA75-4AE6-8D28-B404DC7DAF63", ByteString: Buffer.from([0, 1, 2, 255]), XmlElement: "<a>b</a>",
    NodeId: opcua.resolveNodeId("ns=1;s=abc"), StatusCode: opcua.StatusCodes.BadNodeIdUnknown,
    QualifiedName: { namespaceIndex: 2, name: "qn" }, LocalizedText: { locale: "de", text: "Wert" },
  };
  for (const [name, value] of Object.entries(samples)) {
    const add = (suffix, variant, rank, dims) => {
      const v = ns.addVariable({ componentOf: dir, browseName: name + suffix, nodeId: "s=" + name + suffix, dataType: name, valueRank: rank, arrayDimensions: dims, value: variant });
      v.setValueFromSource(variant, opcua.StatusCodes.Good, at);
    };
    add("", { dataType: D[name], arrayType: A.Scalar, value }, -1);
    add("Array", { dataType: D[name], arrayType: A.Array, value: [value, value, value] }, 1);
    if (["Int32", "Double", "String"].includes(name)) {
      add("Matrix", { dataType: D[name], arrayType: A.Matrix, dimensions: [2, 3], value: [value, value, value, value, value, value] }, 2, [2, 3]);
    }
  }
  for (const [name, value] of [["NaN", NaN], ["Inf", Infinity], ["NegInf", -Infinity]]) {
    ns.addVariable({ componentOf: dir, browseName: name, nodeId: "s=" + name, dataType: "Double", value: { dataType: D.Double, value } });
  }
  ns.addVariable({ componentOf: dir, browseName: "EmptyArray", nodeId: "s=EmptyArray", dataType: "Int32", valueRank: 1, value: { dataType: D.Int32, arrayType: A.Array, value: [] } });
  ns.addVariable({ componentOf: dir, browseName: "State", nodeId: "s=State", dataType: "ServerState", value: { dataType: D.Int32, value: 3 } });
  // Not among the others: node-opcua publishes it without its URI, and reads it out with it.
  const far = new opcua.ExpandedNodeId(opcua.NodeIdType.STRING, "abc", 0, "urn:far", 0);
  ns.addVariable({ componentOf: plant, browseName: "Far", nodeId: "s=Far", dataType: "ExpandedNodeId", valueRank: 1, value: { dataType: D.ExpandedNodeId, arrayType: A.Array, value: [far] } });
  ns.addVariable({ componentOf: dir, browseName: "Variants", nodeId: "s=Variants", dataType: "BaseDataType", valueRank: 1, value: { dataType: D.Variant, arrayType: A.Array,
    value: [new opcua.Variant({ dataType: D.Int32, value: -7 }), new opcua.Variant({ dataType: D.String, value: "a" }), new opcua.Variant({ dataType: D.Boolean, value: true })] } });
  ns.addVariable({ componentOf: dir, browseName: "Any", nodeId: "s=Any", dataType: "BaseDataType", value: { dataType: D.UInt16, value: 7 } });
  const types = space.getNamespaceIndex("urn:edgehost:types");
  const point = space.findDataType("Point", types), shape = space.findDataType("Shape", types), valve = space.findDataType("Valve", types);
  if (point) {
    const p = space.constructExtensionObject(point, { x: 1.5, y: -2.5, label: "p" });
    const s = space.constructExtensionObject(shape, { name: "tri", corners: [{ x: 0, y: 0, label: "a" }, { x: 1, y: 0, label: "b" }], weight: 7, valve: 1 });
    ns.addVariable({ componentOf: dir, browseName: "Point", nodeId: "s=Point", dataType: point.nodeId, value: { dataType: D.ExtensionObject, value: p } });
    ns.addVariable({ componentOf: dir, browseName: "PointArray", nodeId: "s=PointArray", dataType: point.nodeId, valueRank: 1, value: { dataType: D.ExtensionObject, arrayType: A.Array, value: [p, p] } });
    ns.addVariable({ componentOf: dir, browseName: "Shape", nodeId: "s=Shape", dataType: shape.nodeId, value: { dataType: D.ExtensionObject, value: s } });
    ns.addVariable({ componentOf: dir, browseName: "AnyStructure", nodeId: "s=AnyStructure", dataType: "Structure", value: { dataType: D.ExtensionObject, value: p } });
    const optional = space.findDataType("Optional", types), choice = space.findDataType("Choice", types);
    const structures = { OptionalNone: [optional, { x: 1.5 }], OptionalCount: [optional, { x: 1.5, count: 7 }], OptionalBoth: [optional, { x: -2.5, note: "ok", count: 8 }],
      ChoiceNumber: [choice, { number: 42 }], ChoiceText: [choice, { text: "t" }] };
    for (const [name, [type, fields]] of Object.entries(structures)) {
      ns.addVariable({ componentOf: dir, browseName: name, nodeId: "s=" + name, dataType: type.nodeId,
        value: { dataType: D.ExtensionObject, value: space.constructExtensionObject(type, fields) } });
    }
    ns.addVariable({ componentOf: dir, browseName: "Valve", nodeId: "s=Valve", dataType: valve.nodeId, value: { dataType: D.Int32, value: 1 } });
  }
}

main().catch((e) => { console.error(e); process.exit(1); });
