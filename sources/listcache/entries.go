package listcache

import (
	"encoding/binary"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/boltfile"
	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
)

// An entry is, in a value: the hash; the length of the record, in two bytes; the
// record. Values hold whole entries, one behind another.
const entryHead = len(sources.EKHash{}) + 2

func appendEntry(dst []byte, hash sources.EKHash, record eklist.Record) []byte {
	dst = append(dst, hash[:]...)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(record)))
	return append(dst, record...)
}

// addEntries adds the entries of a value to a list.
func addEntries(builder *eklist.Builder, value []byte) error {
	for len(value) > 0 {
		if len(value) < entryHead {
			return errCutOff
		}
		hash := sources.EKHash(value)
		n := int(binary.BigEndian.Uint16(value[len(hash):]))
		if value = value[entryHead:]; n > len(value) {
			return errCutOff
		}
		if err := builder.Add(hash, value[:n]); err != nil {
			return boltfile.Unusable("holds a list that is none: %v", err)
		}
		value = value[n:]
	}
	return nil
}

var errCutOff = boltfile.Unusable("has an entry that is cut off")
