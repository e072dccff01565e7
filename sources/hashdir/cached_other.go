//go:build !linux

package hashdir

func openCached(string) (directory, uint64, error) { return nil, 0, errWouldWait }

func volumeAt(string) (volume, error) { return volume{}, errWouldWait }
