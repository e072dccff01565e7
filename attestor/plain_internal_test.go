package attestor

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"reflect"
	"strings"
	"testing"
)

// plainMessages are payloads and responses that are plain, and such that look
// nearly so.
func plainMessages() (is, not []string) {
	const ak = `"AK":{"Public":"AA==","CreateData":"AAE=","CreateAttestation":"AAEC","CreateSignature":"AAECAw=="}`
	const chain = `,"EKChain":["AA==","AAE="],"EKPublic":"AQ=="}`
	all := strings.Repeat(`,"AA=="`, maxChain)[1:]
	payload := `{"EK":"AAEC",` + ak
	is = []string{
		payload + `}`, payload + chain, payload + `,"EKChain":[` + all + `]}`, payload + `,"EKPublic":"AQ=="}`,
		strings.Replace(payload, `,"CreateData"`, `,"UseTCSDActivationFormat":false,"CreateData"`, 1) + `}`,
		`{"Secret":"AAEC"}`,
	}
	not = []string{
		"", "{}", payload, payload + `} `, payload + `}}`, " " + payload + `}`, payload + `,"EK":"AAEC"}`,
		payload + `,"EKChain":[]}`, payload + `,"EKChain":[` + all + `,"AA=="]}`, payload + `,"Can":["x"]}`,
		payload + `,"EKPublic":"` + strings.Repeat("AAAA", 1024) + `"}`,
		strings.Replace(payload, "AAEC", `\u0041AEC`, 1) + `}`, strings.Replace(payload, "AAEC", "AAE\n", 1) + `}`,
		strings.Replace(payload, "AAEC", "AA\r\nEC", 1) + `}`, strings.Replace(payload, "AAE=", "AAF=", 1) + `}`,
		strings.Replace(payload, "AAEC", "", 1) + `}`, strings.Replace(payload, "EK", "ek", 1) + `}`,
		strings.Replace(payload, `"AAEC"`, `null`, 1) + `}`, strings.Replace(payload, `"AAE="`, `"AAE="x`, 1) + `}`,
		`{"Secret":"AAEC","Secret":"AAEC"}`, `{"Secret":"AA"}`, `{"Secret":"` + strings.Repeat("AAAA", 22) + `"}`,
		"{\"Secret\":\"AA\xffC\"}", "{\"Secret\":\"AAEC\x00\"}",
	}
	return is, not
}

// What is read by the short way must be what the whole decoder reads: two
// readers of one message are how a server checks one key and challenges another.
func checkPlain(t *testing.T, msg []byte) (isPlain bool) {
	t.Helper()
	if len(msg) > MaxPayloadSize {
		return false
	}
	if p := plainPayload(msg); p != nil {
		isPlain = true
		if want, err := decodeAnyPayload(msg); err != nil || !reflect.DeepEqual(p, want) {
			t.Errorf("%q: the payload %+v, of the decoder %+v, %v", msg, p, want, err)
		}
	}
	if secret := plainResponse(msg); secret != nil {
		isPlain = true
		if want, err := decodeAnyResponse(msg); err != nil || !bytes.Equal(secret, want) {
			t.Errorf("%q: the secret %x, of the decoder %x, %v", msg, secret, want, err)
		}
	}
	return isPlain
}

func TestPlain(t *testing.T) {
	is, not := plainMessages()
	for _, msg := range is {
		if !checkPlain(t, []byte(msg)) {
			t.Errorf("%q is not read by the short way", msg)
		}
		for i := range msg { // cut anywhere, it is another message
			checkPlain(t, []byte(msg[:i]))
			checkPlain(t, []byte(msg[:i]+msg[i+1:]))
		}
	}
	for _, msg := range not {
		if checkPlain(t, []byte(msg)) {
			t.Errorf("%q is read by the short way", msg)
		}
	}
}

func FuzzPlain(f *testing.F) {
	is, not := plainMessages()
	for _, msg := range append(is, not...) {
		f.Add([]byte(msg))
	}
	f.Fuzz(func(t *testing.T, msg []byte) { checkPlain(t, msg) })
}

// The same for PEM: a block that is read by the short way is the first one that
// pem.Decode reads, and what follows it is the same.
func checkPlainPEM(t *testing.T, text []byte) (isPlain bool) {
	t.Helper()
	block, next, ok := plainPEM(text)
	if !ok {
		return false
	}
	want, wantNext := pem.Decode(text)
	if want == nil || block.Type != want.Type || !bytes.Equal(block.Bytes, want.Bytes) ||
		len(want.Headers) > 0 || !bytes.Equal(next, wantNext) {
		t.Errorf("%q: the block %+v before %q, of encoding/pem %+v before %q", text, block, next, want, wantNext)
	}
	if begins := bytes.Count(text[:len(text)-len(next)], []byte("-----BEGIN ")); begins != 1 {
		t.Errorf("%q: %d blocks are read as one", text, begins)
	}
	return true
}

func pemOf(typ string, size int) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: bytes.Repeat([]byte{0xA7}, size)}))
}

func TestPlainPEM(t *testing.T) {
	for _, typ := range []string{"CERTIFICATE", "PUBLIC KEY"} {
		for _, size := range []int{0, 1, 2, 3, 47, 48, 49, 91, 96, 294, 1000} {
			text := pemOf(typ, size)
			for _, text := range []string{text, text[:len(text)-1], text + pemOf("CERTIFICATE", 60), text + "\n x"} {
				if !checkPlainPEM(t, []byte(text)) {
					t.Errorf("%q is not read by the short way", text)
				}
			}
			for i := range text { // changed anywhere, it is another block or none
				checkPlainPEM(t, []byte(text[:i]))
				checkPlainPEM(t, []byte(text[:i]+text[i+1:]))
				for _, c := range "\n\r =-A:" {
					checkPlainPEM(t, []byte(text[:i]+string(c)+text[i:]))
					checkPlainPEM(t, []byte(text[:i]+string(c)+text[i+1:]))
				}
			}
		}
	}
	for _, text := range []string{"", pemOf("X", 60), " " + pemOf("CERTIFICATE", 60)} {
		if checkPlainPEM(t, []byte(text)) {
			t.Errorf("%q is read by the short way", text)
		}
	}
}

func FuzzPlainPEM(f *testing.F) {
	for _, size := range []int{0, 48, 91} {
		f.Add([]byte(pemOf("PUBLIC KEY", size) + pemOf("CERTIFICATE", size)))
	}
	f.Fuzz(func(t *testing.T, text []byte) { checkPlainPEM(t, text) })
}

// The challenge that is written out is what a JSON encoder writes.
func TestEncodeChallenge(t *testing.T) {
	for n := range 100 {
		ec := encryptedCredential{Credential: make([]byte, n), Secret: bytes.Repeat([]byte{0xFB}, 100-n)}
		want, err := json.Marshal(struct{ EC encryptedCredential }{ec})
		if err != nil {
			t.Fatal(err)
		}
		got := ec.encode()
		if !bytes.Equal(got, want) || len(got) != cap(got) && n > 0 {
			t.Errorf("%d bytes: %s, want %s", n, got, want)
		}
		if back, err := decodeChallenge(got); n > 0 && n < 100 && (err != nil || !reflect.DeepEqual(back, &ec)) {
			t.Errorf("%d bytes: read again, %+v, %v", n, back, err)
		}
	}
}
