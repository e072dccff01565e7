//go:build !race

package eklist_test

const raceEnabled = false
