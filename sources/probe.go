package sources

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

const (
	// probeInterval is how often a source that loads nothing is asked about a TPM
	// that nobody has. Otherwise a directory that may not be searched, or a database
	// that is down, would show when the first machine comes, and its recovery when
	// the next one does.
	probeInterval = 30 * time.Second
	// probeTimeout is how long the answer is waited for.
	probeTimeout = 5 * time.Second
)

// watchProbes probes a source that loads nothing until ctx ends: sooner while it
// cannot tell, with pauses that double up to probeInterval.
func (r *runner) watchProbes(ctx context.Context) {
	for pause := minPause; ; {
		wait := probeInterval
		if r.failing.Load() {
			wait = pause
			pause = min(2*pause, probeInterval)
		} else {
			pause = minPause
		}
		if !sleep(ctx, wait) {
			return
		}
		_ = r.probe(ctx) // noted there
	}
}

// probe asks the source, as an attestation would, about a TPM that nobody has, and
// notes whether it can tell. The answer of a Fetcher says nothing of its health.
func (r *runner) probe(ctx context.Context) error {
	switch {
	case r.fetcher != nil:
		return nil
	case r.stuck.Load() > 0: // a hung mount is asked once, and not until no slot is left
		return errors.New("an earlier check has not returned")
	}
	ev, err := nobody()
	if err != nil {
		return err
	}
	within, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	c, replies := &check{deadline: time.Now().Add(probeTimeout)}, make(chan reply, 1)
	go r.answer(within, ev, 0, c, replies)
	var a reply
	select {
	case a = <-replies:
	case <-within.Done():
		if r.abandon(c) {
			a.err = fmt.Errorf("no answer within %v", probeTimeout)
		} else {
			a = <-replies
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	r.noteCheck(a.err)
	r.noteStatus()
	return a.err
}

// nobody returns the evidence of a TPM that does not exist.
func nobody() (*Evidence, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("write the key: %w", err)
	}
	hash := sha256.Sum256(der)
	return &Evidence{EKHash: hex.EncodeToString(hash[:]), EK: key.Public()}, nil
}
