//go:build !linux

package eklist

func preferHugePages([]Hash) {}
