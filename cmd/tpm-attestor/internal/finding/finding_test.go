package finding

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"testing"
	"testing/synctest"
)

// A mount whose server has gone must not hang the command, and says nothing about what is there.
func TestLookerDoesNotHang(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, block := NewLooker(), make(chan struct{})
		err := l.Within(t.Context(), func(context.Context) error {
			<-block
			return nil
		})
		var f List
		f.Failed("path", err)
		if !errors.Is(err, ErrHangs) || !f.Has(Unknown) || f.Has(Error) {
			t.Errorf("%v: %+v", err, f)
		}
		close(block)
	})
}

// Whoever may not read a file has not found that it is wrong.
func TestWhatCouldNotBeLookedAt(t *testing.T) {
	t.Parallel()
	for _, err := range []error{
		&fs.PathError{Op: "open", Path: "x", Err: fs.ErrPermission}, ErrHangs, context.DeadlineExceeded,
		&net.OpError{Op: "dial", Err: errors.New("refused")},
	} {
		var f List
		f.Failed("at", fmt.Errorf("read: %w", err))
		if f[0].Severity != Unknown {
			t.Errorf("%v is an error", err)
		}
	}
	var f List
	f.Failed("at", errors.New("nonsense"))
	if f[0].Severity != Error || f.Under("a", Error) || !f.Under("at", Error) {
		t.Errorf("%+v", f)
	}
}
