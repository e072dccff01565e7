package sources

// Boot is what a TPM has proved about its machine's boot: quoted PCRs, and the event log as far as
// it agrees with them.
type Boot struct {
	// Bank is the bank of all PCRs here: "sha256" or "sha384".
	Bank string
	// PCRs are the quoted values by index, one for each PCR that was asked for. Each is as long as
	// the bank's digests.
	PCRs map[int][]byte
	// Log is what the event log says. It is nil if the server did not ask for a log, if the machine
	// sent none, or if the log cannot be read; NoLog says which.
	Log *BootLog
	// NoLog is a text for people that says why Log is nil; empty if it is not.
	NoLog string
}

// BootLog is what an event log says about the quoted PCRs (TCG PC Client Platform Firmware Profile
// 1.06, 10). A log is only a claim by the machine. What is verified is what hashes to a quoted
// value: the PCR of an event, the order of a PCR's events, their digests, and the data of an event
// if they hash to its digest. The type of an event is never verified.
type BootLog struct {
	// Replays says for each PCR whether its events hash to the quoted value. It has a member for
	// each of the PCRs 0 to 7 and 14 that was quoted, and for 8 and 9 if they were quoted and
	// replay.
	Replays map[int]bool
	// SecureBoot is "enabled", "disabled" or, if neither is proved, empty.
	SecureBoot string
	// NoSecureBoot is a text for people that says why SecureBoot is empty; empty if it is not.
	NoSecureBoot string

	// DB are the SHA-256 hashes of the certificates (DER) in the signature database db, and DBX the
	// SHA-256 digests in the database of forbidden signatures, dbx.
	DB, DBX Measured
	// Authorities are the SHA-256 hashes of the certificates (DER) that have verified what was
	// booted: those of the variable events of PCR 7 after its separator, except for what is built
	// into shim.
	Authorities Measured
	// Images are the digests, in PCR 4 of Bank, of the programs that firmware has started.
	Images Measured

	// Events are the events of all PCRs that replay, in the order of the log.
	Events []BootEvent
}

// Measured is a set of digests that a log proves.
type Measured struct {
	Digests [][]byte // each once
	// Partial is empty if Digests is the whole set. Otherwise it says, for people, what is missing
	// from Digests or cannot be verified.
	Partial string
}

// BootEvent is one event of a PCR that replays.
type BootEvent struct {
	PCR int
	// Number is the place of the event in the log, from 1. The header does not count.
	Number int
	Digest []byte // in Boot.Bank
	// What names the event's type for people, such as "EV_EFI_VARIABLE_AUTHORITY". It is not
	// verified, and does not depend on the event's data.
	What string
}
