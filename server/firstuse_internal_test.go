package server

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// TestReservationsEnd: if SPIRE fails to sign the SVID after the plugin has admitted the
// machine, that machine may try again after a while, and not before SPIRE has had time.
func TestReservationsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r reservations
		id := spiffeid.RequireFromString("spiffe://example.org/spire/agent/tpm/x")
		for _, late := range []time.Duration{0, time.Second, reservedFor - time.Second} {
			time.Sleep(2 * reservedFor)
			r.reserve(spiffeid.RequireFromString("spiffe://example.org/other")) // begins a turn
			time.Sleep(late)
			if reserved, _ := r.reserve(id); !reserved {
				t.Fatalf("%v: not reserved", late)
			}
			for begun := time.Now(); time.Since(begun) < reservedFor; time.Sleep(time.Second) {
				if reserved, full := r.reserve(id); reserved || full {
					t.Fatalf("%v: reserved again after %v", late, time.Since(begun))
				}
			}
			time.Sleep(reservedFor)
			if reserved, _ := r.reserve(id); !reserved {
				t.Errorf("%v: reserved for more than %v", late, 2*reservedFor)
			}
		}
	})
}

// TestReservationsAreBounded: any number of machines that are admitted and never stored
// take bounded memory; the next one is told to come again.
func TestReservationsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r reservations
		ids := 0
		next := func() spiffeid.ID {
			ids++
			return spiffeid.RequireFromString(fmt.Sprintf("spiffe://example.org/spire/agent/tpm/%d", ids))
		}
		for range maxReserved / 2 {
			r.reserve(next())
		}
		time.Sleep(reservedFor)
		first := next()
		r.reserve(first)
		for range maxReserved/2 - 1 {
			if reserved, full := r.reserve(next()); !reserved || full {
				t.Fatal("no room")
			}
		}
		if reserved, full := r.reserve(next()); reserved || !full {
			t.Error("room for one too many")
		}
		if reserved, full := r.reserve(first); reserved || full {
			t.Error("what is reserved is not told from what there is no room for")
		}
		r.release(first)
		if reserved, _ := r.reserve(next()); !reserved {
			t.Error("no room after one was released")
		}
		time.Sleep(reservedFor) // forgets the first half
		if reserved, _ := r.reserve(next()); !reserved || len(r.young)+len(r.old) > maxReserved/2+1 {
			t.Errorf("%d are kept", len(r.young)+len(r.old))
		}
	})
}
