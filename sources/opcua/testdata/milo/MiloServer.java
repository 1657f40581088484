// An OPC UA server on Eclipse Milo for the conformance tests. Arguments are
// name=value (see opts, and trust=<file of a CA's certificate>: then clients need
// a certificate that this CA issued, or one below it); it prints "ready" when it listens, and obeys one command
// a line on standard input: "freeze", "set Level <number>". It ends with its
// standard input.

import static org.eclipse.milo.opcua.stack.core.types.builtin.unsigned.Unsigned.*;

import java.io.BufferedReader;
import java.io.FileInputStream;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.security.KeyPair;
import java.security.Security;
import java.security.cert.X509Certificate;
import java.util.*;
import java.util.concurrent.ConcurrentHashMap;
import org.bouncycastle.jce.provider.BouncyCastleProvider;
import org.eclipse.milo.opcua.sdk.core.Reference;
import org.eclipse.milo.opcua.sdk.server.*;
import org.eclipse.milo.opcua.sdk.server.identity.*;
import org.eclipse.milo.opcua.sdk.server.items.*;
import org.eclipse.milo.opcua.sdk.server.model.objects.DataTypeEncodingTypeNode;
import org.eclipse.milo.opcua.sdk.server.model.variables.AnalogItemTypeNode;
import org.eclipse.milo.opcua.sdk.server.nodes.*;
import org.eclipse.milo.opcua.sdk.server.nodes.factories.NodeFactory;
import org.eclipse.milo.opcua.stack.core.NodeIds;
import org.eclipse.milo.opcua.stack.core.security.*;
import org.eclipse.milo.opcua.stack.core.transport.TransportProfile;
import org.eclipse.milo.opcua.stack.core.types.builtin.*;
import org.eclipse.milo.opcua.stack.core.types.builtin.unsigned.UInteger;
import org.eclipse.milo.opcua.stack.core.types.enumerated.*;
import org.eclipse.milo.opcua.stack.core.types.structured.*;
import org.eclipse.milo.opcua.stack.core.util.*;
import org.eclipse.milo.opcua.stack.transport.server.tcp.*;

public class MiloServer {
  static final Map<String, Integer> opts = new HashMap<>(Map.of("port", 0, "counters", 10, "every", 100, "idle", 0, "read", 1000, "items", 1000, "browse", 1000, "translate", 1000));

  public static void main(String[] args) throws Exception {
    String trust = null;
    for (String a : args) {
      String[] option = a.split("=", 2);
      if (option[0].equals("trust")) trust = option[1];
      else opts.put(option[0], Integer.parseInt(option[1]));
    }
    Security.addProvider(new BouncyCastleProvider());
    KeyPair keys = SelfSignedCertificateGenerator.generateRsaKeyPair(2048);
    X509Certificate cert = new SelfSignedCertificateBuilder(keys).setCommonName("milo peer").setApplicationUri("urn:edgehost:milo").addIpAddress("127.0.0.1").build();
    OpcUaServer server = new OpcUaServer(config(keys, cert, trust), profile -> new OpcTcpServerTransport(OpcTcpServerTransportConfig.newBuilder().build()));
    Plant plant = new Plant(server);
    plant.startup();
    server.startup().get();
    System.out.println("ready " + opts.get("port"));
    Timer clock = new Timer(true);
    clock.scheduleAtFixedRate(new TimerTask() { public void run() { plant.tick(); } }, 0, opts.get("every"));
    BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
    for (String line; (line = in.readLine()) != null; ) {
      String[] words = line.split(" ");
      if (words[0].equals("freeze")) clock.cancel();
      if (words[0].equals("set")) plant.set(words[1], new Variant(Double.parseDouble(words[2])));
      System.out.println("done " + plant.n);
    }
    System.exit(0);
  }

  static OpcUaServerConfig config(KeyPair keys, X509Certificate cert, String trust) throws Exception {
    RsaSha256CertificateFactory factory = new RsaSha256CertificateFactory() {
      protected KeyPair createRsaSha256KeyPair() { return keys; }
      protected X509Certificate[] createRsaSha256CertificateChain(KeyPair k) { return new X509Certificate[] {cert}; }
    };
    MemoryTrustListManager trusted = new MemoryTrustListManager();
    CertificateValidator validator = (chain, uri, names) -> {};
    if (trust != null) {
      try (InputStream in = new FileInputStream(trust)) {
        trusted.addTrustedCertificate((X509Certificate) java.security.cert.CertificateFactory.getInstance("X.509").generateCertificate(in));
      }
      validator = new DefaultServerCertificateValidator(trusted, new MemoryCertificateQuarantine());
    }
    DefaultApplicationGroup group = DefaultApplicationGroup.createAndInitialize(trusted, new MemoryCertificateStore(), factory, validator);
    EndpointConfig.Builder b = EndpointConfig.newBuilder().setTransportProfile(TransportProfile.TCP_UASC_UABINARY).setBindAddress("127.0.0.1").setBindPort(opts.get("port"))
        .setHostname("127.0.0.1").setPath("/UA/Peer").setCertificate(cert)
        .addTokenPolicies(OpcUaServerConfig.USER_TOKEN_POLICY_ANONYMOUS, OpcUaServerConfig.USER_TOKEN_POLICY_USERNAME, OpcUaServerConfig.USER_TOKEN_POLICY_X509);
    Set<EndpointConfig> endpoints = new LinkedHashSet<>();
    endpoints.add(b.copy().setSecurityPolicy(SecurityPolicy.None).setSecurityMode(MessageSecurityMode.None).build());
    for (SecurityPolicy p : List.of(SecurityPolicy.Basic256Sha256, SecurityPolicy.Aes128_Sha256_RsaOaep, SecurityPolicy.Aes256_Sha256_RsaPss)) {
      for (MessageSecurityMode m : List.of(MessageSecurityMode.Sign, MessageSecurityMode.SignAndEncrypt)) {
        endpoints.add(b.copy().setSecurityPolicy(p).setSecurityMode(m).build());
      }
    }
    return OpcUaServerConfig.builder().setApplicationUri("urn:edgehost:milo").setProductUri("urn:edgehost:milo").setApplicationName(LocalizedText.english("milo peer"))
        .setEndpoints(endpoints).setCertificateManager(new DefaultCertificateManager(new MemoryCertificateQuarantine(), group))
        .setIdentityValidator(new CompositeValidator(AnonymousIdentityValidator.INSTANCE, new X509IdentityValidator(c -> true),
            new UsernameIdentityValidator(c -> c.getUsername().equals("operator") && c.getPassword().equals("correct horse"))))
        .setLimits(new OpcUaServerConfigLimits() {
          public UInteger getMaxNodesPerRead() { return uint(opts.get("read")); }
          public UInteger getMaxMonitoredItemsPerCall() { return uint(opts.get("items")); }
          public UInteger getMaxNodesPerBrowse() { return uint(opts.get("browse")); }
          public UInteger getMaxNodesPerTranslateBrowsePathsToNodeIds() { return uint(opts.get("translate")); }
          public Double getMinPublishingInterval() { return 10.0; }
          public Double getMinSupportedSampleRate() { return 0.0; }
        })
        .build();
  }

  // Plant is the namespace urn:edgehost:test. Its items get each value pushed, so
  // that no sampling stands between a counter and its subscribers.
  static class Plant extends ManagedNamespaceWithLifecycle {
    final Map<NodeId, Set<DataItem>> watchers = new ConcurrentHashMap<>();
    final List<UaVariableNode> counters = new ArrayList<>();
    UaFolderNode folder;
    volatile long n;

    Plant(OpcUaServer server) {
      super(server, "urn:edgehost:test");
      getLifecycleManager().addStartupTask(this::furnish);
    }

    synchronized void tick() {
      n++;
      for (UaVariableNode v : counters) push(v, new Variant(uint(n)));
    }

    synchronized void set(String name, Variant v) { push((UaVariableNode) getNodeManager().get(newNodeId(name)), v); }

    void push(UaVariableNode node, Variant v) {
      DataValue value = new DataValue(v, StatusCode.GOOD, DateTime.now());
      node.setValue(value);
      for (DataItem i : watchers.getOrDefault(node.getNodeId(), Set.of())) i.setValue(value);
    }

    void furnish() {
      folder = addFolder("Plant");
      folder.addReference(new Reference(folder.getNodeId(), NodeIds.Organizes, NodeIds.ObjectsFolder.expanded(), false));
      for (int i = 0; i < opts.get("counters"); i++) counters.add(add(folder, "Counter" + i, NodeIds.UInt32, new Variant(uint(0))));
      for (int i = 0; i < opts.get("idle"); i++) add(folder, "Idle" + i, NodeIds.Double, new Variant((double) i));
      add(folder, "Set", NodeIds.Double, new Variant(0.0));
      try {
        AnalogItemTypeNode level = (AnalogItemTypeNode) getNodeFactory().createNode(newNodeId("Level"), NodeIds.AnalogItemType, new NodeFactory.InstantiationCallback() {
          public boolean includeOptionalNode(NodeId type, QualifiedName name) { return false; }
        });
        level.setBrowseName(newQualifiedName("Level"));
        level.setDisplayName(LocalizedText.english("Level"));
        level.setDataType(NodeIds.Double);
        level.setEuRange(new Range(100.0, 300.0));
        level.setValue(new DataValue(new Variant(100.0)));
        folder.addOrganizes(level);
        addTypes();
      } catch (Exception e) {
        throw new IllegalStateException(e);
      }
    }

    UaFolderNode addFolder(String name) {
      UaFolderNode f = new UaFolderNode(getNodeContext(), newNodeId(name), newQualifiedName(name), LocalizedText.english(name));
      getNodeManager().addNode(f);
      return f;
    }

    UaVariableNode add(UaFolderNode to, String name, NodeId type, Variant value) {
      UaVariableNode v = new UaVariableNode.UaVariableNodeBuilder(getNodeContext()).setNodeId(newNodeId(name)).setBrowseName(newQualifiedName(name))
          .setDisplayName(LocalizedText.english(name)).setDataType(type).setTypeDefinition(NodeIds.BaseDataVariableType).setMinimumSamplingInterval(0.0).build();
      v.setValue(new DataValue(value, StatusCode.GOOD, DateTime.now()));
      getNodeManager().addNode(v);
      to.addOrganizes(v);
      return v;
    }

    // Structures as other programs send them: bytes of a type, which the server
    // describes, or does not.
    void addTypes() throws Exception {
      UaFolderNode types = addFolder("Types");
      folder.addOrganizes(types);
      StructureField x = new StructureField("x", LocalizedText.NULL_VALUE, NodeIds.Double, -1, null, uint(0), false);
      StructureField note = new StructureField("note", LocalizedText.NULL_VALUE, NodeIds.String, -1, null, uint(0), true);
      StructureField count = new StructureField("count", LocalizedText.NULL_VALUE, NodeIds.UInt32, -1, null, uint(0), true);
      NodeId optional = define("Optional", NodeIds.Structure, StructureType.StructureWithOptionalFields, x, note, count);
      // The mask of optional fields, x, then those that are there.
      add(types, "OptionalNone", optional, structure("Optional", bytes(12).putInt(0).putDouble(1.5)));
      add(types, "OptionalSecond", optional, structure("Optional", bytes(16).putInt(2).putDouble(1.5).putInt(7)));
      add(types, "OptionalBoth", optional, structure("Optional", bytes(22).putInt(3).putDouble(-2.5).putInt(2).put("ok".getBytes()).putInt(8)));
      StructureField number = new StructureField("number", LocalizedText.NULL_VALUE, NodeIds.UInt32, -1, null, uint(0), false);
      StructureField text = new StructureField("text", LocalizedText.NULL_VALUE, NodeIds.String, -1, null, uint(0), false);
      NodeId choice = define("Choice", NodeIds.Union, StructureType.Union, number, text);
      // Which field it is, counted from 1, then the field.
      add(types, "ChoiceNumber", choice, structure("Choice", bytes(8).putInt(1).putInt(42)));
      add(types, "ChoiceText", choice, structure("Choice", bytes(8).putInt(2).putInt(0)));
      add(types, "ChoiceNone", choice, structure("Choice", bytes(4).putInt(0)));
      add(types, "Opaque", NodeIds.Structure, structure("Nowhere", bytes(4).putInt(0x01020304)));
    }

    static ByteBuffer bytes(int n) { return ByteBuffer.allocate(n).order(ByteOrder.LITTLE_ENDIAN); }

    Variant structure(String type, ByteBuffer body) { return new Variant(ExtensionObject.of(ByteString.of(body.array()), newNodeId(type + "/Binary"))); }

    NodeId define(String name, NodeId base, StructureType kind, StructureField... fields) throws Exception {
      NodeId id = newNodeId("Type/" + name), encoding = newNodeId(name + "/Binary");
      UaDataTypeNode type = new UaDataTypeNode(getNodeContext(), id, newQualifiedName(name), LocalizedText.english(name), LocalizedText.NULL_VALUE, uint(0), uint(0), false);
      type.addReference(new Reference(id, NodeIds.HasSubtype, base.expanded(), Reference.Direction.INVERSE));
      type.setDataTypeDefinition(new StructureDefinition(encoding, base, kind, fields));
      getNodeManager().addNode(type);
      DataTypeEncodingTypeNode e = new DataTypeEncodingTypeNode(getNodeContext(), encoding, new QualifiedName(0, "Default Binary"), LocalizedText.english("Default Binary"),
          LocalizedText.NULL_VALUE, uint(0), uint(0), null, null, null);
      e.addReference(new Reference(encoding, NodeIds.HasTypeDefinition, NodeIds.DataTypeEncodingType.expanded(), Reference.Direction.FORWARD));
      e.addReference(new Reference(encoding, NodeIds.HasEncoding, id.expanded(), Reference.Direction.INVERSE));
      getNodeManager().addNode(e);
      return id;
    }

    public synchronized void onDataItemsCreated(List<DataItem> items) {
      for (DataItem i : items) {
        NodeId id = i.getReadValueId().getNodeId();
        watchers.computeIfAbsent(id, k -> ConcurrentHashMap.newKeySet()).add(i);
        if (getNodeManager().get(id) instanceof UaVariableNode v) i.setValue(v.getValue());
      }
    }

    public void onDataItemsModified(List<DataItem> items) {}

    public synchronized void onDataItemsDeleted(List<DataItem> items) {
      for (DataItem i : items) watchers.getOrDefault(i.getReadValueId().getNodeId(), Set.of()).remove(i);
    }

    public void onMonitoringModeChanged(List<MonitoredItem> items) {}
  }
}
