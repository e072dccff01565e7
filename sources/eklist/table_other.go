//go:build !linux

package eklist

import "github.com/spire-tpm/spire-tpm-attestor/sources"

func preferHugePages([]sources.EKHash) {}

func giveBack([]sources.EKHash) {}
