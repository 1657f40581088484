// Command edgehost carries values from OPC UA, MQTT and Modbus devices, through
// WASM modules that can be changed while it runs, into Unity Catalog tables.
//
// This package is wiring: one file a command, the configuration file, the log,
// and the HTTP of health and metrics. What they wire is in the packages below.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal ends what runs in order, the second one at once.
	context.AfterFunc(ctx, stop)
	code := run(ctx, os.Args, os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
