package sources

// Boot is what a TPM has proved of its machine's boot: PCRs by a quote, and the event log as far
// as it agrees with them.
type Boot struct {
	// Bank is the bank of all PCRs here: "sha256" or "sha384".
	Bank string
	// PCRs are the quoted values by index: all that were asked for, each as long as the
	// bank's digests.
	PCRs map[int][]byte
	// Log is what the event log says. It is nil if the server did not ask for a log, if the
	// machine sent none, and if the log cannot be read; NoLog says which.
	Log *BootLog
	// NoLog says why Log is nil, for people; empty if it is not nil.
	NoLog string
}

// BootLog is what an event log says of the PCRs that were quoted (TCG PC Client Platform Firmware
// Profile 1.06, 10). A log is the machine's word. Only what hashes to a quoted value is
// verified: which PCR, in which order, which digest, and the data of an event if they hash to
// its digest. The type of an event never is.
type BootLog struct {
	// Replays has a member for each quoted PCR that a log is judged by: whether the events
	// of that PCR hash to the quoted value. Of 0 to 7 and 14 each that was quoted is in it;
	// 8 and 9 only if they replay; no other.
	Replays map[int]bool
	// SecureBoot is "enabled", "disabled" or, if neither is proved, empty.
	SecureBoot string
	// NoSecureBoot says why SecureBoot is empty, for people; empty if it is not.
	NoSecureBoot string

	// DB are the SHA-256 of the certificates (DER) in the signature database db, and DBX
	// the SHA-256 digests in the database of forbidden signatures dbx.
	DB, DBX Measured
	// Authorities are the SHA-256 of the certificates (DER) that have vouched for what was
	// booted: those of the variable events of PCR 7 behind its separator, except for what is
	// built into shim.
	Authorities Measured
	// Images are the digests in PCR 4, in Bank, of what firmware has started.
	Images Measured

	// Events are the events of all PCRs that replay, in the order of the log.
	Events []BootEvent
}

// Measured is a set of digests that a log proves.
type Measured struct {
	Digests [][]byte // each once
	// Partial is empty if there are no others. Otherwise it says, for people, what there is
	// that is not in Digests or cannot be verified.
	Partial string
}

// BootEvent is one event of a PCR that replays.
type BootEvent struct {
	PCR int
	// Number is the place of the event in the log, from 1. The header is no event.
	Number int
	Digest []byte // in Boot.Bank
	// What names the event for people, such as "EV_EFI_VARIABLE_AUTHORITY". It is not
	// verified, and neither quotes nor describes the data of the event.
	What string
}
