// Package pcrs says what each PCR is for.
package pcrs

import (
	"slices"

	"github.com/spire-tpm/spire-tpm-attestor/attestor/eventlog"
)

// All returns the numbers of all PCRs, in order.
func All() []int {
	all := make([]int, 24)
	for i := range all {
		all[i] = i
	}
	return all
}

// BankOf returns the bank from which commands read a machine's PCRs: sha256, or sha384 if the machine's log has sha384
// and no sha256. log may be nil.
func BankOf(log *eventlog.Log) string {
	if log != nil && !slices.Contains(log.Banks, "sha256") && slices.Contains(log.Banks, "sha384") {
		return "sha384"
	}
	return "sha256"
}

// Meaning says what each PCR is extended with and when that changes (TCG PC Client Platform
// Firmware Profile 1.06, 3.3.4, and the Linux userspace's registry of PCRs).
func Meaning(pcr int) string {
	const dynamic = "for a launch by the processor (DRTM)"
	return [...]string{
		0:  "the firmware's own code: changes with a firmware update",
		1:  "the firmware's settings and the machine's tables: differs from machine to machine, even of one model",
		2:  "drivers on expansion cards: changes with another card, or with a card's firmware",
		3:  "settings of expansion cards",
		4:  "what the firmware starts: changes with the boot loader, and with the kernel if it is an EFI program",
		5:  "the partition table and the boot loader's settings: differs from machine to machine",
		6:  "events of the machine's manufacturer: may hold serial numbers",
		7:  "Secure Boot: its state, its keys, and who has vouched: changes with an update of db or dbx",
		8:  "the boot loader's commands and the kernel's command line: often holds UUIDs",
		9:  "what the boot loader reads: changes with each kernel and initrd",
		10: "IMA: grows while the system runs",
		11: "the unified kernel image and the phases of its boot: grows while the system starts",
		12: "the kernel's command line and credentials, of unified kernel images",
		13: "extensions of the initrd",
		14: "shim's keys of the machine's owner (MOK)",
		15: "identity of the system: differs from machine to machine",
		16: "for debugging",
		17: dynamic, 18: dynamic, 19: dynamic, 20: dynamic, 21: dynamic, 22: dynamic,
		23: "for applications",
	}[pcr]
}

// PerMachine reports whether a PCR usually differs between machines that run the same software, or changes after the
// boot.
func PerMachine(pcr int) bool {
	return slices.Contains([]int{1, 3, 5, 6, 8, 9, 10, 11, 12, 13, 15, 16, 17, 18, 19, 20, 21, 22, 23}, pcr)
}
