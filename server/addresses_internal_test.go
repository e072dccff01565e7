package server

import (
	"bytes"
	"crypto/sha256"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

var someHash = sources.EKHash(bytes.Repeat([]byte{0xab}, 32))

// journey notes an EK at each address in turn, a minute apart, and returns what note says of
// the last.
func journey(a *addresses, at *time.Time, from ...string) (other string, log bool) {
	for _, f := range from {
		*at = at.Add(time.Minute)
		var addr netip.Addr
		if addr, log = a.note(someHash, netip.MustParseAddr(f), *at); addr.IsValid() {
			other = addr.String()
		} else {
			other = ""
		}
	}
	return other, log
}

// A virtual TPM that was copied attests from two machines in turn. A machine that moves, that
// has an address of each family, or that changes its address as RFC 8981 wants, must not look
// like a copy: nobody reads an alarm that is always on.
func TestAlternatingAddresses(t *testing.T) {
	for _, c := range []struct {
		name  string
		from  []string
		other string
	}{
		{"one address", []string{"192.0.2.1", "192.0.2.1", "192.0.2.1"}, ""},
		{"moves", []string{"192.0.2.1", "192.0.2.2", "192.0.2.2"}, ""},
		{"moves often", []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.1"}, ""},
		{"two in turn", []string{"192.0.2.1", "192.0.2.2", "192.0.2.1"}, "192.0.2.2"},
		{"two in turn, several times each", []string{"192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.2", "192.0.2.1"}, "192.0.2.2"},
		{"three in turn", []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.1"}, "192.0.2.3"},
		{"four in turn", []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.1"}, "192.0.2.4"},
		{"both families", []string{"192.0.2.1", "2001:db8::1", "192.0.2.1", "2001:db8::1"}, ""},
		{"one address, written in two ways", []string{"192.0.2.1", "::ffff:192.0.2.1", "192.0.2.1"}, ""},
		{"one network", []string{"2001:db8::1", "2001:db8::2", "2001:db8::1"}, ""},
		{"two networks", []string{"2001:db8::1", "2001:db8:0:1::2", "2001:db8::3"}, "2001:db8:0:1::"},
		{"zones", []string{"fe80::1%eth0", "fe80::1%eth1", "fe80::1%eth0"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			at := time.Now()
			if other, log := journey(newAddresses(), &at, c.from...); other != c.other || log != (c.other != "") {
				t.Errorf("found %q, to be logged: %v, want %q", other, log, c.other)
			}
		})
	}
}

// Copies attest at one pace and so in one order, each from its own address, however many there
// are. Each is found soon after the first round, and at each attestation from then on.
func TestManyCopies(t *testing.T) {
	for _, period := range []time.Duration{5 * time.Minute, 30 * time.Minute, 12 * time.Hour} {
		for _, copies := range []int{2, 4, 5, 7, 20, 31, 32, 33, 100} {
			a, at, rounds := newAddresses(), time.Now(), 4
			found, first := 0, 0
			for i := range rounds * copies {
				at = at.Add(period / time.Duration(copies))
				from := netip.AddrFrom4([4]byte{192, 0, 2, byte(i % copies)})
				if other, _ := a.note(someHash, from, at); other.IsValid() {
					if found++; found == 1 {
						first = i
					}
				}
			}
			if first > copies+1 || first == 0 || found != rounds*copies-first {
				t.Errorf("%d copies, each every %v: the first is found at %d, and %d of %d",
					copies, period, first, found, rounds*copies)
			}
		}
	}
}

// A machine that goes to new places, and now and then back to an earlier place, is no copy.
// Neither is a machine that was elsewhere for longer than a day, if it has been to many places.
func TestTravels(t *testing.T) {
	place := func(n int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}) }
	a, at := newAddresses(), time.Now()
	attest := func(n int) {
		t.Helper()
		if other, _ := a.note(someHash, place(n), at); other.IsValid() {
			t.Fatalf("place %d is taken for a copy's", n)
		}
	}
	for n := range 100 {
		at = at.Add(time.Hour)
		if attest(n); n%4 == 0 && n > 5 {
			attest(n - 5)
		}
	}
	a, at = newAddresses(), time.Now()
	for range 3 { // the same seven places in the same order, each for a week
		for n := range 7 {
			at = at.Add(7 * 24 * time.Hour)
			attest(n)
		}
	}
}

// One EK cannot fill the log.
func TestAlternatingIsLoggedOnceAnHour(t *testing.T) {
	a, at, logged := newAddresses(), time.Now(), 0
	journey(a, &at, "192.0.2.1")
	for range 60 { // two hours
		for _, from := range []string{"192.0.2.2", "192.0.2.1"} {
			if _, log := journey(a, &at, from); log {
				logged++
			}
		}
	}
	if logged != 2 {
		t.Errorf("logged %d times", logged)
	}
}

// A fleet larger than what is remembered must not make the memory grow, and what
// was seen last is kept.
func TestAddressesAreBounded(t *testing.T) {
	a, now := newAddresses(), time.Now()
	one, two := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	for i := range maxSightings + 1000 {
		a.note(sha256.Sum256([]byte(strconv.Itoa(i))), one, now)
		a.note(someHash, []netip.Addr{one, two}[i%2], now)
	}
	if n := a.of.Len(); n != maxSightings {
		t.Errorf("%d are remembered", n)
	}
	if other, _ := a.note(someHash, one, now); other != two {
		t.Errorf("what was seen last is forgotten: %v", other)
	}
	for i := range 1000 {
		a.note(someHash, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), now)
	}
	s, _ := a.of.Get(sightingKey{hash: someHash})
	if n := len(s.from); n != maxAddresses {
		t.Errorf("%d addresses of one EK are remembered", n)
	}
	if other, _ := a.note(someHash, netip.Addr{}, now); other.IsValid() || a.of.Len() != maxSightings {
		t.Errorf("no address: %v", other)
	}
}
