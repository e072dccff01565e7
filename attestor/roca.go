package attestor

import "math/big"

// hasROCA reports whether the RSA modulus n has the fingerprint of keys that an Infineon library
// generated until 2017 (CVE-2017-15361; Nemec et al., "The Return of Coppersmith's Attack", CCS
// 2017, 3.3). Their primes have the form k·M + (65537^a mod M), where M is the product of the first
// primes, so n is a power of 65537 modulo each of those primes. The probability that another key
// has this property by chance is about 2^-27.
func hasROCA(n *big.Int) bool {
	residue, modulus := new(big.Int), new(big.Int)
	for _, p := range rocaPrimes {
		modulus.SetUint64(p)
		if !isPowerOf65537(residue.Mod(n, modulus).Uint64(), p) {
			return false
		}
	}
	return true
}

// isPowerOf65537 reports whether r is a power of 65537 modulo p.
func isPowerOf65537(r, p uint64) bool {
	for x := uint64(1); ; {
		if x == r {
			return true
		}
		if x = x * 65537 % p; x == 1 {
			return false
		}
	}
}

// rocaPrimes are the primes from 3 to 167: the factors of the smallest M, which is that
// of 512-bit keys, and so factors of every larger M. It is immutable.
var rocaPrimes = [...]uint64{
	3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73,
	79, 83, 89, 97, 101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
}
