package ekhashes_test

import (
	"bytes"
	"runtime"
	"runtime/debug"
	"testing"
)

// A list without names takes at most 45 bytes an entry as long as it serves.
func TestLiveMemory(t *testing.T) {
	n := 1 << 18
	if testing.Short() {
		n /= 8
	}
	for name, data := range map[string][]byte{
		"text":      textList(randomHashes(1, n)),
		"JSON":      jsonList(randomHashes(1, n), plainEntry),
		"commented": bytes.ReplaceAll(textList(randomHashes(1, n)), []byte("0\n"), []byte("0\n# a comment between\n")),
	} {
		before := liveMemory()
		d := build(t, data)
		each := float64(liveMemory()-before) / float64(n)
		if t.Logf("%s: %.1f bytes an entry", name, each); each > 45 {
			t.Errorf("%s: %.1f bytes an entry", name, each)
		}
		runtime.KeepAlive(d)
		runtime.KeepAlive(data)
	}
}

func liveMemory() int {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}
