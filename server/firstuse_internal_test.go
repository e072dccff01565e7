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
		if reserved, full := r.reserve(id); !reserved || full {
			t.Fatal("not reserved")
		}
		for begun := time.Now(); time.Since(begun) < reservedFor; time.Sleep(time.Second) {
			if reserved, full := r.reserve(id); reserved || full {
				t.Fatalf("reserved again after %v", time.Since(begun))
			}
		}
		if reserved, _ := r.reserve(id); !reserved {
			t.Errorf("reserved for more than %v", reservedFor)
		}
	})
}

// TestReservationsAreBounded: any number of machines that are admitted and never stored
// take bounded memory; beyond that, the server tells agents to try again.
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
		time.Sleep(reservedFor / 2)
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
		time.Sleep(reservedFor / 2) // forgets the first half
		if reserved, _ := r.reserve(next()); !reserved || len(r.until) > maxReserved/2+1 {
			t.Errorf("%d are kept", len(r.until))
		}
	})
}
