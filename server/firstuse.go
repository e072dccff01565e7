package server

import (
	"context"
	"crypto/sha256"
	"maps"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentstorev1 "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/server/agentstore/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// agentStoreTimeout bounds one call of SPIRE's AgentStore.
	agentStoreTimeout = 5 * time.Second
	// reservedFor is how long an ID stays reserved. SPIRE signs the SVID and stores the agent
	// only after the plugin has returned. If that fails, the machine is admitted again once
	// the reservation has ended.
	reservedFor = 2 * time.Minute
	// maxReserved is how many IDs are reserved at most, which is enough for a thousand
	// admissions a second. An ID takes some 100 bytes.
	maxReserved = 1 << 17
	// sweepPause is the shortest time between two removals of expired reservations.
	sweepPause = time.Second
)

// reservations holds the IDs of machines that are being admitted, for configurations that admit each machine only
// once. The IDs are in memory, so other SPIRE servers do not see them. The zero value is ready to use. It is safe
// for concurrent use.
type reservations struct {
	mu    sync.Mutex
	until map[[sha256.Size]byte]time.Time // by the hash of the ID
	swept time.Time                       // when expired reservations were last removed
}

// reserve reserves an ID. If it is reserved already, both results are false; if there
// is no room, full is true.
func (r *reservations) reserve(id spiffeid.ID) (reserved, full bool) {
	key, now := sha256.Sum256([]byte(id.String())), time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.until == nil {
		r.until = map[[sha256.Size]byte]time.Time{}
	}
	if now.Sub(r.swept) >= sweepPause {
		maps.DeleteFunc(r.until, func(_ [sha256.Size]byte, until time.Time) bool { return !now.Before(until) })
		r.swept = now
	}
	switch {
	case now.Before(r.until[key]):
		return false, false
	case len(r.until) >= maxReserved:
		return false, true
	}
	r.until[key] = now.Add(reservedFor)
	return true, false
}

// release ends a reservation.
func (r *reservations) release(id spiffeid.ID) {
	key := sha256.Sum256([]byte(id.String()))
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.until, key)
}

// count returns how many IDs are reserved, including those that have expired since the last sweep.
func (r *reservations) count() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return int64(len(r.until))
}

// firstUse checks that no agent with this ID has been attested before, and that none is being attested.
// Configurations with reattest = false need that, since SPIRE then never attests the machine again. If firstUse
// returns nil, the ID stays reserved until SPIRE has stored the agent or has failed to.
func (p *Plugin) firstUse(ctx context.Context, id spiffeid.ID) *failure {
	if !p.agentStore.IsInitialized() {
		return &failure{
			outcome: outcomeInternal, code: codes.Internal,
			told: "the server cannot tell whether this machine has been admitted before",
			why:  "reattest is false, but SPIRE offers no AgentStore",
		}
	}
	// Reserve before asking: if SPIRE stores the agent for another attestation after it has answered this one, the
	// other attestation still holds the reservation, and this one fails.
	reserved, full := p.reserved.reserve(id)
	if full {
		return tooMany(reasonAdmissions,
			"too many machines are being admitted for the first time, and reattest is false")
	}
	stored, admitted := false, false
	defer func() {
		if stored || reserved && !admitted {
			p.reserved.release(id)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, agentStoreTimeout)
	defer cancel()
	_, err := p.agentStore.GetAgentInfo(ctx, &agentstorev1.GetAgentInfoRequest{AgentId: id.String()})
	switch code := status.Code(err); {
	case code == codes.NotFound && reserved:
		admitted = true
		return nil
	case code == codes.NotFound:
		return &failure{
			outcome: outcomeUnavailable, reason: reasonAgentStore, code: codes.Unavailable,
			told: "this machine is being admitted already: if that fails, it can be admitted again in two minutes",
			why: "reattest is false and the agent " + id.String() + " was admitted less than two minutes ago; " +
				"SPIRE has not stored it yet, or could not",
		}
	case code == codes.OK:
		stored = true
		return &failure{
			outcome: outcomeSecondUse, code: codes.PermissionDenied,
			told: "this machine has been admitted before and can only be admitted once",
			why: "reattest is false and the agent " + id.String() + " already exists: " +
				"evict it to admit the machine again",
		}
	default:
		return &failure{
			outcome: outcomeUnavailable, reason: reasonAgentStore, code: codes.Unavailable,
			told: "the server cannot tell right now whether this machine has been admitted before",
			why:  "ask SPIRE's AgentStore: " + err.Error(),
		}
	}
}
