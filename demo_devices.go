package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math"
	"net"
	"strconv"
	"time"

	"github.com/gopcua/opcua/id"
	opcua "github.com/gopcua/opcua/server"
	"github.com/gopcua/opcua/server/attrs"
	"github.com/gopcua/opcua/ua"
	"github.com/simonvetter/modbus"
)

// attempts is how often a device looks for a free port: between finding it and
// listening there another process may take it.
const attempts = 5

// listenAnywhere calls start with free ports of 127.0.0.1 until it succeeds. The
// device libraries cannot tell which port they got, so it is chosen here.
func listenAnywhere(start func(port int) error) (addr string, err error) {
	for range attempts {
		var l net.Listener
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return "", err
		}
		port := l.Addr().(*net.TCPAddr).Port
		if err = l.Close(); err != nil {
			return "", err
		}
		if err = start(port); err == nil {
			return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), nil
		}
	}
	return "", err
}

// wave is a simulated reading: a slow wave around mean.
func wave(mean, span, phase float64) float64 {
	t := time.Duration(time.Now().UnixNano()).Seconds()
	return mean + span*math.Sin(t/7+phase)
}

// press is the demo's Modbus device, a hydraulic press: input registers with
// readings, scaled as small devices do it, and discrete inputs.
type press struct {
	addr   string
	server *modbus.ModbusServer
}

// pressConfig is how the demo reads the press.
const pressConfig = `
    poll_interval_ms: 200
    registers:
    - {address: 30001, register_type: input, name: force, scale: 0.1, unit: kN}
    - {address: 30002, register_type: input, name: stroke, scale: 0.01, unit: mm}
    - {address: 30003, register_type: input, data_type: int16, name: oil_level, unit: "%"}
    - {address: 10001, register_type: discrete, name: closed}`

func startPress() (*press, error) {
	p := &press{}
	var err error
	p.addr, err = listenAnywhere(func(port int) (err error) {
		conf := &modbus.ServerConfiguration{URL: fmt.Sprintf("tcp://127.0.0.1:%d", port), Logger: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
		if p.server, err = modbus.NewServer(conf, p); err != nil {
			return err
		}
		return p.server.Start()
	})
	if err != nil {
		return nil, fmt.Errorf("start the demo's Modbus device: %w", err)
	}
	return p, nil
}

func (p *press) close() error { return p.server.Stop() }

// HandleInputRegisters answers reads of the press's readings.
func (p *press) HandleInputRegisters(r *modbus.InputRegistersRequest) ([]uint16, error) {
	readings := []float64{wave(4200, 900, 0), wave(12000, 11000, 1), wave(71, 4, 2)}
	if int(r.Addr)+int(r.Quantity) > len(readings) {
		return nil, modbus.ErrIllegalDataAddress
	}
	words := make([]uint16, r.Quantity)
	for i := range words {
		words[i] = uint16(readings[int(r.Addr)+i])
	}
	return words, nil
}

// HandleDiscreteInputs answers reads of the press's one switch.
func (p *press) HandleDiscreteInputs(r *modbus.DiscreteInputsRequest) ([]bool, error) {
	if r.Addr != 0 || r.Quantity != 1 {
		return nil, modbus.ErrIllegalDataAddress
	}
	return []bool{wave(0, 1, 1) > 0}, nil
}

// HandleCoils refuses: the press has none.
func (p *press) HandleCoils(*modbus.CoilsRequest) ([]bool, error) {
	return nil, modbus.ErrIllegalFunction
}

// HandleHoldingRegisters refuses: the press has none.
func (p *press) HandleHoldingRegisters(*modbus.HoldingRegistersRequest) ([]uint16, error) {
	return nil, modbus.ErrIllegalFunction
}

// oven is the demo's OPC UA device.
type oven struct {
	addr   string
	server *opcua.Server
	stop   context.CancelFunc
}

// ovenConfig is how the demo reads the oven. It polls: the library's server
// knows too little of subscriptions to be relied upon.
const ovenConfig = `
    security_policy: None
    security_mode: None
    mode: poll
    defaults: {sampling_interval_ms: 200}
    nodes:
    - {node_id: "nsu=urn:edgehost:demo;s=oven.temperature", name: temperature, unit: C}
    - {node_id: "nsu=urn:edgehost:demo;s=oven.humidity", name: humidity, unit: "%"}
    - {node_id: "nsu=urn:edgehost:demo;s=oven.power", name: power, unit: kW}`

func startOven(ctx context.Context) (*oven, error) {
	// The library prints on the standard logger, which edgehost does not use.
	log.SetOutput(io.Discard)
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	o := &oven{stop: stop}
	var err error
	o.addr, err = listenAnywhere(func(port int) error {
		o.server = opcua.New(opcua.EndPoint("127.0.0.1", port), opcua.EnableSecurity("None", ua.MessageSecurityModeNone),
			opcua.EnableAuthMode(ua.UserTokenTypeAnonymous), opcua.ServerName("edgehost demo"))
		o.furnish()
		return o.server.Start(ctx)
	})
	if err != nil {
		stop()
		return nil, fmt.Errorf("start the demo's OPC UA server: %w", err)
	}
	return o, nil
}

// furnish builds the address space: one object per reading, without the
// library's folders, which are broken.
func (o *oven) furnish() {
	ns := opcua.NewNodeNameSpace(o.server, "urn:edgehost:demo")
	for i, v := range []struct {
		name       string
		mean, span float64
	}{{"temperature", 180, 15}, {"humidity", 31, 6}, {"power", 42, 9}} {
		node := opcua.NewNode(ua.NewStringNodeID(ns.ID(), "oven."+v.name), map[ua.AttributeID]*ua.DataValue{
			ua.AttributeIDNodeClass:   opcua.DataValueFromValue(uint32(ua.NodeClassVariable)),
			ua.AttributeIDBrowseName:  opcua.DataValueFromValue(attrs.BrowseName(v.name)),
			ua.AttributeIDDisplayName: opcua.DataValueFromValue(attrs.DisplayName(v.name, v.name)),
			ua.AttributeIDDataType:    opcua.DataValueFromValue(ua.NewNumericExpandedNodeID(0, id.Double)),
		}, nil, func() *ua.DataValue {
			now := time.Now()
			return &ua.DataValue{Value: ua.MustVariant(wave(v.mean, v.span, float64(i))), SourceTimestamp: now, ServerTimestamp: now,
				EncodingMask: ua.DataValueValue | ua.DataValueSourceTimestamp | ua.DataValueServerTimestamp}
		})
		ns.AddNode(node)
		ns.Objects().AddRef(node, id.HasComponent, true)
	}
}

func (o *oven) close() error {
	o.stop()
	// Closing says that the listener is closed, which is what it is for.
	if err := o.server.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("stop the demo's OPC UA server: %w", err)
	}
	return nil
}
