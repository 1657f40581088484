package opcua

import "golang.org/x/sys/unix"

// received is how many bytes of its stream a TCP connection has received.
func received(fd uintptr) uint64 {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil { // not a connection, or a kernel that does not say
		return 0
	}
	return info.Bytes_received
}
