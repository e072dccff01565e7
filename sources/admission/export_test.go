package admission

// Slow is how long every attestation may wait for a source before the challenge.
const Slow = slow
