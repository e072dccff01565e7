//go:build race

package eklist_test

const raceEnabled = true
