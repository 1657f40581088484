package opcua

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/gopcua/opcua/ua"
)

// parseEndpoint checks an opc.tcp URL and adds the default port (4840, Part 6,
// 7.4).
func parseEndpoint(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, fmt.Errorf("not a URL; write opc.tcp://host:4840: %w", err)
	}
	if u.Scheme != "opc.tcp" {
		return nil, fmt.Errorf("scheme %q is not supported; write opc.tcp://host:4840", u.Scheme)
	}
	if u.Hostname() == "" {
		return nil, errors.New("no host in the URL; write opc.tcp://host:4840")
	}
	if u.User != nil {
		return nil, errors.New("credentials do not belong in the URL; use opcua.username and opcua.password")
	}
	if u.Port() == "" {
		u.Host = net.JoinHostPort(u.Hostname(), "4840")
	}
	if _, port, err := net.SplitHostPort(u.Host); err != nil {
		return nil, fmt.Errorf("host and port %q: write opc.tcp://host:4840: %w", u.Host, err)
	} else if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return nil, fmt.Errorf("port %q: use 1 to 65535", port)
	}
	return u, nil
}

// policyRank orders the policies that we speak from weak to strong. Basic256
// is deprecated and usable only when allowed.
var policyRank = map[string]int{
	ua.SecurityPolicyURINone:                1,
	ua.SecurityPolicyURIBasic256:            2,
	ua.SecurityPolicyURIBasic256Sha256:      3,
	ua.SecurityPolicyURIAes128Sha256RsaOaep: 4,
	ua.SecurityPolicyURIAes256Sha256RsaPss:  5,
}

func policyName(uri string) string { return strings.TrimPrefix(uri, ua.SecurityPolicyURIPrefix) }

func modeName(m ua.MessageSecurityMode) string {
	switch m {
	case ua.MessageSecurityModeNone:
		return "None"
	case ua.MessageSecurityModeSign:
		return "Sign"
	case ua.MessageSecurityModeSignAndEncrypt:
		return "SignAndEncrypt"
	default:
		return "Invalid"
	}
}

// chooseEndpoint picks the endpoint that c asks for. auto is the strongest that
// is offered and never None; nothing is ever downgraded. The error lists what
// the server offers.
func chooseEndpoint(c Config, offered []*ua.EndpointDescription) (*ua.EndpointDescription, error) {
	var fit []*ua.EndpointDescription
	var list []string
	for _, e := range offered {
		if !strings.HasPrefix(e.EndpointURL, "opc.tcp://") {
			continue
		}
		policy, mode := policyName(e.SecurityPolicyURI), modeName(e.SecurityMode)
		if line := policy + "/" + mode; !slices.Contains(list, line) {
			list = append(list, line)
		}
		rank := policyRank[e.SecurityPolicyURI]
		switch {
		case rank == 0 || e.SecurityMode == ua.MessageSecurityModeInvalid:
		case (policy == "None") != (mode == "None"):
		case c.SecurityPolicy == "auto" && (policy == "None" || policy == "Basic256" && !c.AllowDeprecatedPolicies):
		case c.SecurityPolicy != "auto" && c.SecurityPolicy != policy:
		case c.SecurityMode != "auto" && c.SecurityMode != mode:
		default:
			fit = append(fit, e)
		}
	}
	if len(fit) == 0 {
		hint := "set opcua.security_policy and security_mode to one of these"
		if c.SecurityPolicy == "auto" && slices.Contains(list, "None/None") && len(list) == 1 {
			hint = "to accept an unsecured connection set opcua.security_policy: None"
		}
		return nil, &refusal{kind: refusedConfig, msg: fmt.Sprintf("server offers no endpoint with policy %s and mode %s; it offers %s: %s",
			c.SecurityPolicy, c.SecurityMode, strings.Join(list, ", "), hint)}
	}
	return slices.MaxFunc(fit, func(a, b *ua.EndpointDescription) int {
		if d := int(a.SecurityMode) - int(b.SecurityMode); d != 0 {
			return d
		}
		if d := policyRank[a.SecurityPolicyURI] - policyRank[b.SecurityPolicyURI]; d != 0 {
			return d
		}
		return int(a.SecurityLevel) - int(b.SecurityLevel)
	}), nil
}

// chooseToken picks the user token policy for kind, the strongest that is
// offered: gopcua would take the first. A policy without a URI uses the
// channel's (Part 4, 7.42).
func chooseToken(e *ua.EndpointDescription, kind ua.UserTokenType, allowDeprecated bool) (policyID, policyURI string, err error) {
	best, names := -1, []string{}
	for _, t := range e.UserIdentityTokens {
		name := tokenName(t.TokenType)
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
		uri := t.SecurityPolicyURI
		if uri == "" {
			uri = e.SecurityPolicyURI
		}
		rank, known := policyRank[uri]
		if t.TokenType != kind || !known || uri == ua.SecurityPolicyURIBasic256 && !allowDeprecated && e.SecurityPolicyURI != uri {
			continue
		}
		if rank > best {
			best, policyID, policyURI = rank, t.PolicyID, uri
		}
	}
	if best < 0 {
		return "", "", &refusal{kind: refusedAuth, msg: fmt.Sprintf("server does not accept %s users on this endpoint; it accepts: %s",
			tokenName(kind), strings.Join(names, ", "))}
	}
	return policyID, policyURI, nil
}

func tokenName(t ua.UserTokenType) string {
	switch t {
	case ua.UserTokenTypeAnonymous:
		return "anonymous"
	case ua.UserTokenTypeUserName:
		return "username and password"
	case ua.UserTokenTypeCertificate:
		return "certificate"
	default:
		return "issued token"
	}
}
