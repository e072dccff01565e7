package admission

// Slow is how long a source may take before the challenge until whoever waits for it
// needs a reason.
const Slow = slow
