package eventlogtest

import "fmt"

// Boot is a boot of a PC, from the firmware to the kernel. Its zero value has Secure Boot enabled.
type Boot struct {
	Banks []string // default "sha256"
	// SecureBoot is the value of the variable, by default the one byte 1. Firmware without keys has
	// an empty value: []byte{}.
	SecureBoot []byte
	// DB are the certificates in db, and DBX the SHA-256 digests in dbx. By default there is one
	// of each: Certificate("db") and 32 bytes 0xdb.
	DB, DBX [][]byte
	// Authorities are the certificates that have verified what was started, by default the first of
	// DB if Secure Boot is enabled.
	Authorities [][]byte
	// Images are what firmware has started, by default a boot loader and a kernel.
	Images [][]byte
}

// Certificate returns DER with the outline of a certificate. Each name gives another one.
func Certificate(name string) []byte {
	body := append([]byte{0x0c, byte(len(name))}, name...) // UTF8String
	return append([]byte{0x30, byte(len(body))}, body...)  // SEQUENCE
}

// Log returns the log of the boot: events in PCRs 0 to 7, 9 and 14.
func (b Boot) Log() *Log {
	b.fill()
	l := New(b.Banks...)
	l.Add(0, CRTMVersion, []byte("1\x00.\x000\x00\x00\x00"))
	l.Config(Global, "SecureBoot", b.SecureBoot)
	l.Config(Global, "PK", Database(X509, Certificate("PK")))
	l.Config(Global, "KEK", Database(X509, Certificate("KEK")))
	l.Config(Security, "db", Database(X509, b.DB...))
	l.Config(Security, "dbx", Database(SHA256, b.DBX...))
	l.Add(1, VariableConfig, Variable(Global, "BootOrder", []byte{0, 0}))
	l.Text(4, "Calling EFI Application from Boot Option")
	l.Separators(0, 1, 2, 3, 4, 5, 6, 7)
	for i, image := range b.Images {
		if i < len(b.Authorities) {
			l.Authority(Security, "db", Signature(b.Authorities[i]))
		}
		l.Image(image)
		l.AddEvent(Event{PCR: 9, Type: IPL, Data: fmt.Appendf(nil, "/boot/%d", i), Measured: image})
	}
	l.AddEvent(Event{PCR: 14, Type: IPL, Data: []byte("MokList\x00"), Measured: []byte("keys of the owner")})
	l.Text(5, "Exit Boot Services Invocation")
	return l
}

func (b *Boot) fill() {
	if b.SecureBoot == nil {
		b.SecureBoot = []byte{1}
	}
	if b.DB == nil {
		b.DB = [][]byte{Certificate("db")}
	}
	if b.DBX == nil {
		dbx := make([]byte, 32)
		for i := range dbx {
			dbx[i] = 0xdb
		}
		b.DBX = [][]byte{dbx}
	}
	if b.Authorities == nil && string(b.SecureBoot) == "\x01" && len(b.DB) > 0 {
		b.Authorities = b.DB[:1]
	}
	if b.Images == nil {
		b.Images = [][]byte{[]byte("boot loader"), []byte("kernel")}
	}
}
