package agent

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/agent/keydir"
	"github.com/spire-tpm/spire-tpm-attestor/agent/tpm"
)

// keyStore holds the keys of one configuration of a KeyManager. The TPM makes the keys from the files in a key
// directory. A keyStore is safe for concurrent use.
type keyStore struct {
	edge      *edge
	tpm       *tpm.TPM
	directory string
	// turn is of size 1; the call that has sent to it has the turn and may use the directory. That call may then
	// wait for the TPM. A call that has the TPM never waits for the directory, so a file system that hangs does
	// not keep other calls from signing.
	turn chan struct{}
	// atTPM is true if the call that has the turn, or had it last, waits for the TPM; false if for a file.
	atTPM atomic.Bool

	mu   sync.Mutex
	keys map[string]*managedKey // by ID; the map is replaced as a whole and never changed
}

// known returns the keys that were loaded or made so far. The caller must not change the map.
func (s *keyStore) known() map[string]*managedKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys
}

func (s *keyStore) know(keys map[string]*managedKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = keys
}

// withTPM runs f, which uses the TPM, and returns its result. While the TPM is not ready, withTPM tries again
// until ctx ends.
func withTPM[T any](ctx context.Context, s *keyStore, f func() (*T, error)) (*T, error) {
	pause := firstAttemptPause
	var last error
	for {
		var got *T
		err := s.edge.use(ctx, func() (err error) {
			got, err = f()
			return err
		})
		switch {
		case err == nil:
			return got, nil
		case errors.Is(err, errTPMBusy) && last != nil:
			return nil, last // it says why the TPM was not ready
		case ctx.Err() != nil || !errors.Is(err, tpm.ErrNotReady):
			return nil, err
		}
		last = err
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, last
		}
		pause = min(2*pause, maxAttemptPause)
	}
}

// make has the TPM make a key. The caller must have the turn.
func (s *keyStore) make(ctx context.Context, unique [keydir.UniqueSize]byte) (*tpm.SVIDKey, error) {
	return inTurnAtTPM(ctx, s, func() (*tpm.SVIDKey, error) { return s.tpm.MakeSVIDKey(ctx, unique) })
}

// inTurnAtTPM is withTPM for a caller that has the turn.
func inTurnAtTPM[T any](ctx context.Context, s *keyStore, f func() (*T, error)) (*T, error) {
	s.atTPM.Store(true)
	got, err := withTPM(ctx, s, f)
	if err == nil {
		s.atTPM.Store(false)
	}
	return got, err
}

// sign has the TPM sign a digest.
func (s *keyStore) sign(ctx context.Context, k *managedKey, digest []byte) ([]byte, error) {
	signature, err := withTPM(ctx, s, func() (*[]byte, error) {
		b, err := s.tpm.SignSVID(ctx, k.key, digest)
		return &b, err
	})
	if err != nil {
		return nil, err
	}
	return *signature, nil
}

// inDirectory runs f when nothing else uses the directory. If that takes too long, the error says whether
// the directory or the TPM is to blame.
func (s *keyStore) inDirectory(ctx context.Context, f func() error) error {
	err := s.edge.inTurn(ctx, s.turn, func() error {
		s.atTPM.Store(false)
		return f()
	})
	if errors.Is(err, errTPMBusy) && !s.atTPM.Load() {
		return errDirectoryHangs
	}
	return err
}

// generate makes a key in place of an earlier key with its ID. If it fails, or the process ends meanwhile, the
// earlier key stays. If it succeeds, the key is the newest.
func (s *keyStore) generate(ctx context.Context, id string) (*managedKey, error) {
	var made *managedKey
	err := s.inDirectory(ctx, func() (err error) {
		made, err = s.generateInTurn(ctx, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	return made, nil
}

func (s *keyStore) generateInTurn(ctx context.Context, id string) (*managedKey, error) {
	if err := keydir.Prepare(s.directory); err != nil {
		return nil, err
	}
	l, err := keydir.List(s.directory)
	if err != nil {
		return nil, err
	}
	slot := &keydir.Slot{ID: id, Serial: l.NextSerial()}
	if err := random(slot.Unique[:]); err != nil {
		return nil, err
	}
	key, err := s.make(ctx, slot.Unique)
	if err != nil {
		return nil, err
	}
	slot.Name = key.Name
	k, err := newManagedKey(slot, key)
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil { // SPIRE no longer waits for the key
		return nil, context.Cause(ctx)
	}
	if err := keydir.Write(s.directory, slot); err != nil {
		return nil, err
	}
	keys := maps.Clone(s.known())
	if keys == nil {
		keys = make(map[string]*managedKey)
	}
	keys[id] = k
	s.know(keys)
	return k, nil
}

// reload has the TPM make all keys in the directory again, and returns those that are this TPM's.
func (s *keyStore) reload(ctx context.Context) (map[string]*managedKey, error) {
	var keys map[string]*managedKey
	err := s.inDirectory(ctx, func() (err error) {
		keys, err = s.reloadInTurn(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	return keys, nil
}

func (s *keyStore) reloadInTurn(ctx context.Context) (map[string]*managedKey, error) {
	if err := keydir.Prepare(s.directory); err != nil {
		return nil, err
	}
	l, err := keydir.List(s.directory)
	if err != nil {
		return nil, err
	}
	for _, u := range l.Unreadable {
		s.edge.logger.Warn("leaving out a key that cannot be read", "path", u.Path, "error", u.Err)
	}
	keys := make(map[string]*managedKey)
	for _, slot := range l.Slots {
		key, err := s.make(ctx, slot.Unique)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(key.Name, slot.Name) {
			s.edge.logger.Warn("leaving out a key of another TPM", "key_id", slot.ID, "directory", s.directory)
			continue
		}
		if keys[slot.ID], err = newManagedKey(&slot, key); err != nil {
			return nil, err
		}
	}
	s.know(keys)
	return keys, nil
}

// find returns the key with an ID. If the key is not known, find loads the directory again.
func (s *keyStore) find(ctx context.Context, id string) (*managedKey, error) {
	if k := s.known()[id]; k != nil {
		return k, nil
	}
	keys, err := s.reload(ctx)
	if err != nil {
		return nil, err
	}
	if k := keys[id]; k != nil {
		return k, nil
	}
	return nil, errNoKey
}
