package mqtt

import (
	"fmt"
	"net"

	packets5 "github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.mqtt.golang/packets"
)

// read reads a packet of the client; those of MQTT 5 become what they are in
// MQTT 3.1.1, so that the peer behaves alike in both.
func (p *peer) read(conn net.Conn) (packets.ControlPacket, error) {
	if !p.v5 {
		return packets.ReadPacket(conn)
	}
	packet, err := packets5.ReadPacket(conn)
	if err != nil {
		return nil, err
	}
	switch m := packet.Content.(type) {
	case *packets5.Connect:
		p.mu.Lock()
		p.connects5 = append(p.connects5, m)
		p.mu.Unlock()
		out := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
		out.ClientIdentifier, out.CleanSession, out.Keepalive, out.ProtocolVersion = m.ClientID, m.CleanStart, m.KeepAlive, m.ProtocolVersion
		out.Username, out.Password = m.Username, m.Password
		return out, nil
	case *packets5.Subscribe:
		out := packets.NewControlPacket(packets.Subscribe).(*packets.SubscribePacket)
		out.MessageID = m.PacketID
		for _, sub := range m.Subscriptions {
			out.Topics, out.Qoss = append(out.Topics, sub.Topic), append(out.Qoss, sub.QoS)
		}
		return out, nil
	case *packets5.Unsubscribe:
		out := packets.NewControlPacket(packets.Unsubscribe).(*packets.UnsubscribePacket)
		out.MessageID, out.Topics = m.PacketID, m.Topics
		return out, nil
	case *packets5.Puback:
		out := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
		out.MessageID = m.PacketID
		return out, nil
	case *packets5.Pubrec:
		out := packets.NewControlPacket(packets.Pubrec).(*packets.PubrecPacket)
		out.MessageID = m.PacketID
		return out, nil
	case *packets5.Pubcomp:
		out := packets.NewControlPacket(packets.Pubcomp).(*packets.PubcompPacket)
		out.MessageID = m.PacketID
		return out, nil
	case *packets5.Publish:
		out := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
		out.TopicName, out.Payload, out.Qos = m.Topic, m.Payload, m.QoS
		return out, nil
	case *packets5.Pingreq:
		return packets.NewControlPacket(packets.Pingreq), nil
	case *packets5.Disconnect:
		return packets.NewControlPacket(packets.Disconnect), nil
	}
	return nil, fmt.Errorf("a client does not send %s", packet.PacketType())
}

// write sends a packet to the client.
func (p *peer) write(conn net.Conn, packet packets.ControlPacket) error {
	if !p.v5 {
		return packet.Write(conn)
	}
	_, err := p.packet5(packet).WriteTo(conn)
	return err
}

func (p *peer) packet5(packet packets.ControlPacket) *packets5.ControlPacket {
	kind := byte(0)
	switch packet.(type) {
	case *packets.ConnackPacket:
		kind = packets5.CONNACK
	case *packets.SubackPacket:
		kind = packets5.SUBACK
	case *packets.UnsubackPacket:
		kind = packets5.UNSUBACK
	case *packets.PubrelPacket:
		kind = packets5.PUBREL
	case *packets.PublishPacket:
		kind = packets5.PUBLISH
	default:
		kind = packets5.PINGRESP
	}
	out := packets5.NewControlPacket(kind)
	switch m := packet.(type) {
	case *packets.ConnackPacket:
		c := out.Content.(*packets5.Connack)
		c.ReasonCode, c.SessionPresent = m.ReturnCode, m.SessionPresent
		c.Properties.ReasonString = p.reason
	case *packets.SubackPacket:
		c := out.Content.(*packets5.Suback)
		c.PacketID, c.Reasons = m.MessageID, m.ReturnCodes
	case *packets.UnsubackPacket:
		c := out.Content.(*packets5.Unsuback)
		c.PacketID, c.Reasons = m.MessageID, make([]byte, len(p.gone))
	case *packets.PubrelPacket:
		out.Content.(*packets5.Pubrel).PacketID = m.MessageID
	case *packets.PublishPacket:
		c := out.Content.(*packets5.Publish)
		c.PacketID, c.Topic, c.Payload, c.QoS, c.Duplicate, c.Retain = m.MessageID, m.TopicName, m.Payload, m.Qos, m.Dup, m.Retain
		c.Properties = &p.properties
	}
	return out
}

// connect5 returns the n-th CONNECT of MQTT 5.
func (p *peer) connect5(n int) *packets5.Connect {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.connects5[n]
}
