package opcua

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/edgehost/edgehost/sources"
	"github.com/gopcua/opcua/ua"
	"github.com/gopcua/opcua/uacp"
)

// The kinds of refusal; each has a state of its own.
const (
	refusedConfig = iota // the configuration cannot work with this server
	refusedAuth          // the server refuses our user, certificate or role
	refusedTrust         // we refuse the server's certificate
)

// refusal is a "no" that a person must act on: retrying alone does not help.
type refusal struct {
	kind int
	msg  string
	err  error
}

func (r *refusal) Error() string {
	if r.err != nil {
		return r.msg + ": " + statusText(r.err)
	}
	return r.msg
}

func (r *refusal) Unwrap() error { return r.err }

// marked tells the supervisor in which state a refusal leaves the source.
func marked(err error) error {
	var r *refusal
	switch {
	case !errors.As(err, &r):
		return err
	case r.kind == refusedConfig:
		return sources.ConfigError(err)
	default:
		return sources.AuthError(err)
	}
}

// explain turns an error of the handshake into words that say what to do. own
// is our certificate, nil on an unsecured channel.
func explain(err error, endpoint string, own *identity) error {
	var status ua.StatusCode
	var tcp *uacp.Error
	if errors.As(err, &tcp) {
		status = ua.StatusCode(tcp.ErrorCode)
	}
	if status == 0 && !errors.As(err, &status) {
		return explainNet(err, endpoint)
	}
	if msg := explainUser(status); msg != "" {
		return &refusal{kind: refusedAuth, msg: msg, err: status}
	}
	if msg := explainCertificate(status, own); msg != "" {
		return &refusal{kind: refusedAuth, msg: msg, err: status}
	}
	switch status {
	case ua.StatusBadSecurityPolicyRejected, ua.StatusBadSecurityModeRejected:
		return &refusal{kind: refusedConfig, msg: "server rejects the security policy or mode: set opcua.security_policy and security_mode to what it offers", err: status}
	case ua.StatusBadTooManySessions:
		return fmt.Errorf("server has no free session: raise its session limit or close other clients: %w", status)
	case ua.StatusBadTCPEndpointURLInvalid, ua.StatusBadTCPServerTooBusy:
		return fmt.Errorf("server does not serve %s: %w", endpoint, status)
	default:
		return fmt.Errorf("connect %s: %w", endpoint, err)
	}
}

// explainUser is for a server that refuses the user; "" when status is about
// something else.
func explainUser(status ua.StatusCode) string {
	switch status {
	case ua.StatusBadUserAccessDenied:
		return "server refuses the user: check opcua.username and opcua.password, and the user's rights on the server"
	case ua.StatusBadIdentityTokenInvalid:
		return "server does not accept this kind of user (anonymous, password or certificate): set opcua.username or user_certificate_path as the server demands"
	case ua.StatusBadIdentityTokenRejected:
		return "server rejects the user: check the user name and password, or trust our user certificate on the server"
	case ua.StatusBadUserSignatureInvalid:
		return "server rejects the signature of the user certificate: check that user_private_key_path belongs to user_certificate_path"
	}
	return ""
}

// explainCertificate is for a server that refuses our certificate; "" when status
// is about something else.
func explainCertificate(status ua.StatusCode, own *identity) string {
	switch status {
	case ua.StatusBadSecurityChecksFailed, ua.StatusBadCertificateUntrusted, ua.StatusBadCertificateInvalid, ua.StatusBadCertificateChainIncomplete:
		if own == nil {
			return "server refuses the connection's security: check its log"
		}
		return explainUntrusted(own)
	case ua.StatusBadCertificateTimeInvalid:
		if own != nil && !selfMade(own.cert) {
			return fmt.Sprintf("server says that our certificate %s is expired or not yet valid (it is valid from %s to %s): check both clocks, or put a new one at certificate_path",
				own.thumbprint(), own.cert.NotBefore.Format(time.DateOnly), own.cert.NotAfter.Format(time.DateOnly))
		}
		return fmt.Sprintf("server says that our certificate %s is expired or not yet valid: check both clocks, or delete the certificate to have a new one made", own.thumbprint())
	case ua.StatusBadCertificateURIInvalid:
		return fmt.Sprintf("the application URI in our certificate %s is not the one that we announce: correct opcua.application_uri, or delete the certificate to have a new one made", own.thumbprint())
	case ua.StatusBadCertificateRevocationUnknown, ua.StatusBadCertificateIssuerRevocationUnknown:
		return fmt.Sprintf("server has no revocation list of a CA of our certificate %s: install the CA's list on the server", own.thumbprint())
	case ua.StatusBadCertificateIssuerTimeInvalid, ua.StatusBadCertificateIssuerRevoked, ua.StatusBadCertificateIssuerUseNotAllowed:
		return fmt.Sprintf("server refuses a CA above our certificate %s (%s): have the certificate issued by another one", own.thumbprint(), statusName(status))
	case ua.StatusBadCertificateRevoked, ua.StatusBadCertificateUseNotAllowed, ua.StatusBadCertificateHostNameInvalid:
		return fmt.Sprintf("server refuses our certificate %s: have a new one issued, for digital signature and encipherment, by the CA that the server trusts", own.thumbprint())
	}
	return ""
}

// explainUntrusted says how a server comes to trust own: it hides which part of
// the chain it missed.
func explainUntrusted(own *identity) string {
	msg := fmt.Sprintf("server refuses our certificate: trust our certificate %s on the server (most list it under rejected certificates)", own.thumbprint())
	if selfIssued(own.cert) {
		return msg
	}
	msg += fmt.Sprintf(", or the CA that issued it (%s)", own.cert.Issuer)
	if top := own.top(); !selfIssued(top) {
		msg += fmt.Sprintf("; if the server trusts a CA above that only, append the certificate of %s to the file at certificate_path", top.Issuer)
	}
	return msg
}

func explainNet(err error, endpoint string) error {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		return fmt.Errorf("host name %s does not resolve: correct the endpoint or DNS: %w", dns.Name, err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("nothing listens at %s: start the server, or correct host and port: %w", endpoint, err)
	case errors.Is(err, context.DeadlineExceeded), isTimeout(err):
		return fmt.Errorf("%s does not answer in time: check network and firewall: %w", endpoint, err)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("server closed the connection during the handshake: check the URL, and the server's log for a refused certificate: %w", err)
	default:
		return fmt.Errorf("connect %s: %w", endpoint, err)
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// statusName is the name of a status code as in the standard: Good,
// BadNodeIdUnknown, or hexadecimal when it is unknown. Info bits are left out.
func statusName(s ua.StatusCode) string {
	if d, ok := ua.StatusCodes[s&0xFFFF0000]; ok {
		name := strings.TrimPrefix(d.Name, "Status")
		if name == "OK" {
			return "Good"
		}
		return standardCase(name)
	}
	return fmt.Sprintf("0x%08X", uint32(s))
}

// standardCase writes BadNodeIDUnknown, as the library does, as the standard
// does: BadNodeIdUnknown.
func standardCase(name string) string {
	b := []byte(name)
	upper := func(i int) bool { return i < len(name) && name[i] >= 'A' && name[i] <= 'Z' }
	for i := 1; i < len(b); i++ {
		// The last capital of several begins the next word, unless the name ends.
		if upper(i) && upper(i-1) && (i+1 == len(name) || upper(i+1)) {
			b[i] |= 0x20
		}
	}
	return string(b)
}

func statusText(err error) string {
	var s ua.StatusCode
	if errors.As(err, &s) {
		return statusName(s)
	}
	return err.Error()
}

// qualityName is the quality in the top two bits of a status code (Part 4,
// 7.39.1).
func qualityName(s ua.StatusCode) string {
	switch s >> 30 {
	case 0:
		return "Good"
	case 1:
		return "Uncertain"
	default:
		return "Bad"
	}
}
