module github.com/edgehost/edgehost/bench/wasm

go 1.26.0

replace github.com/edgehost/edgehost => ../..

require (
	github.com/edgehost/edgehost v0.0.0
	github.com/knqyf263/go-plugin v0.9.0
	github.com/tetratelabs/wazero v1.12.0
	google.golang.org/protobuf v1.36.12
)

require golang.org/x/sys v0.49.0 // indirect
