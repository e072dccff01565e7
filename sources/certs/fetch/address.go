package fetch

import (
	"fmt"
	"net/netip"
	"slices"
)

// notPublic are the parts of the address space that are local to a machine or network (the IANA
// special-purpose registries, RFC 6890), or whose addresses contain another address.
var notPublic = prefixes(
	"0.0.0.0/8",         // this network
	"10.0.0.0/8",        // private
	"100.64.0.0/10",     // carrier-grade NAT, and a cloud's metadata in it
	"127.0.0.0/8",       // loopback
	"168.63.129.16/32",  // a cloud's host, from within its machines
	"169.254.0.0/16",    // link-local, and the clouds' metadata in it
	"172.16.0.0/12",     // private
	"192.0.0.0/24",      // protocol assignments, and a cloud's metadata in it
	"192.0.2.0/24",      // documentation
	"192.88.99.0/24",    // 6to4 relays
	"192.168.0.0/16",    // private
	"198.18.0.0/15",     // benchmarks
	"198.51.100.0/24",   // documentation
	"203.0.113.0/24",    // documentation
	"224.0.0.0/3",       // multicast, reserved, broadcast
	"2001::/23",         // protocol assignments, with Teredo in it
	"2001:db8::/32",     // documentation
	"2002::/16",         // 6to4
	"3fff::/20",         // documentation
	"2620:4f:8000::/48", // AS112
)

// global is all of IPv6 that is allocated. It does not include loopback, unique local, link-local
// and multicast addresses, NAT64 within a network (64:ff9b:1::/48), and IPv4-mapped addresses.
var global = netip.MustParsePrefix("2000::/3")

// nat64 are the IPv6 addresses that stand for the IPv4 address in their last four bytes (RFC 6052,
// 2.1). In a network without IPv4, DNS returns such addresses.
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// meant returns the address that a stands for: the IPv4 address that is embedded by NAT64, or a
// itself.
func meant(a netip.Addr) netip.Addr {
	if !nat64.Contains(a) {
		return a
	}
	b := a.As16()
	return netip.AddrFrom4([4]byte(b[12:]))
}

func prefixes(all ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(all))
	for i, p := range all {
		out[i] = netip.MustParsePrefix(p)
	}
	return out
}

// public reports whether an address is public.
func public(a netip.Addr) bool {
	a = meant(a)
	if !a.IsValid() || a.Zone() != "" || a.Is4In6() || a.Is6() && (!global.Contains(a) || tunnels(a)) {
		return false
	}
	return !slices.ContainsFunc(notPublic, func(p netip.Prefix) bool { return p.Contains(a) })
}

// tunnels reports whether the interface identifier of an IPv6 address is one of
// ISATAP (RFC 5214, 6.1), which has an IPv4 address in it.
func tunnels(a netip.Addr) bool {
	b := a.As16()
	return b[8]&^2 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe
}

// faultOfEntry returns why a configured address cannot be that of a web server, or an empty string.
func faultOfEntry(a netip.Addr) string {
	a = meant(a)
	metadata := netip.MustParseAddr("fd00:ec2::254")
	switch {
	case a.IsUnspecified():
		return "it is not a host's address"
	case a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "it is the address of many hosts"
	case a.IsLinkLocalUnicast() || a == metadata:
		return "it is a link-local address: clouds serve their machines' metadata there, and nobody serves certificates"
	}
	return ""
}

// A forbiddenError means that a name resolves to an address that must not be contacted.
type forbiddenError struct {
	host string
	at   netip.Addr
}

func (e *forbiddenError) Error() string {
	return fmt.Sprintf("%s resolves to %v, which is not a public address: if that server is your own, "+
		"set mirror_url, and serve the file at <mirror_url>/<what follows :// in its URL>", e.host, e.at)
}
