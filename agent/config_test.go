package agent

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spire-tpm/spire-tpm-attestor/agent/tpm"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// A configuration means the same in every form in which SPIRE may pass it: HCL, JSON, and
// HCL with quoted keys.
func TestValidConfigurations(t *testing.T) {
	full := tpm.Config{
		Device: "unix:/run/s", EK: attestor.P384, AK: attestor.RSA2048,
		EndorsementPassword: "e $x \"quoted\"", OwnerPassword: "o",
	}
	files := &tpm.DevIDConfig{CertPath: "/c", PrivPath: "/p", PubPath: "/q", Password: "w"}
	for name, tt := range map[string]struct {
		config string
		want   tpm.Config
	}{
		"nothing":      {"", tpm.Config{}},
		"a comment":    {"# the machine's own TPM\n", tpm.Config{}},
		"empty JSON":   {"{}", tpm.Config{}},
		"empty values": {`device = "" ek = "" ak = ""`, tpm.Config{}},
		"a DevID":      {"devid {\n  cert_path = \"/c\"\n  priv_path = \"/p\"\n  pub_path = \"/q\"\n  password = \"w\"\n}", tpm.Config{DevID: files}},
		"a DevID, quoted": {
			`"devid" = { "cert_path" = "/c" "priv_path" = "/p" "pub_path" = "/q" "password" = "w" }`, tpm.Config{DevID: files},
		},
		"a DevID, listed": {
			`"devid" = [{ "cert_path" = "/c", "priv_path" = "/p", "pub_path" = "/q", "password" = "w" }]`, tpm.Config{DevID: files},
		},
		"a DevID in JSON": {
			`{"devid": {"cert_path": "/c", "priv_path": "/p", "pub_path": "/q", "password": "w"}, "ek": "p384"}`,
			tpm.Config{DevID: files, EK: attestor.P384},
		},
		"a DevID in a JSON list": {
			`{"devid": [{"cert_path": "/c", "priv_path": "/p", "pub_path": "/q", "password": "w"}]}`, tpm.Config{DevID: files},
		},
		"a handle": {
			`devid { cert_path = "/c" handle = "0x81000010" }`,
			tpm.Config{DevID: &tpm.DevIDConfig{CertPath: "/c", Handle: "0x81000010"}},
		},
		"an IDevID": {
			`devid { cert_path = "/c" idevid = "H-3" }`, tpm.Config{DevID: &tpm.DevIDConfig{CertPath: "/c", IDevID: "H-3"}},
		},
		"auto":   {"ek = \"auto\"\nak = \"auto\"", tpm.Config{}},
		"an AK":  {`ak = "p256"`, tpm.Config{AK: attestor.P256}},
		"device": {`device = "/dev/tpm0"`, tpm.Config{Device: "/dev/tpm0"}},
		"HCL": {
			"device = \"unix:/run/s\"\nek = \"p384\"\nak = \"rsa2048\"\nendorsement_password = \"e $x \\\"quoted\\\"\"\nowner_password = \"o\"",
			full,
		},
		"quoted keys": {
			"\"device\" = \"unix:/run/s\"\n\"ek\" = \"p384\"\n\"ak\" = \"rsa2048\"\n\"endorsement_password\" = \"e $x \\\"quoted\\\"\"\n\"owner_password\" = \"o\"",
			full,
		},
		"JSON": {
			`{"device": "unix:/run/s", "ek": "p384", "ak": "rsa2048", "endorsement_password": "e $x \"quoted\"", "owner_password": "o"}`,
			full,
		},
		// Editors and other programs write line ends of Windows, a byte order mark,
		// and JSON with unnecessary escapes.
		"line ends of Windows": {
			"# the TPM\r\ndevice = \"/dev/tpm0\"\r\n\r\n/* its\r\nkey */\r\nek = \"p384\"\r\n",
			tpm.Config{Device: "/dev/tpm0", EK: attestor.P384},
		},
		"heredoc of Windows":     {"owner_password = <<EOF\r\no\r\nEOF\r\n", tpm.Config{OwnerPassword: "o\n"}},
		"a byte order mark":      {"\ufeffdevice = \"/dev/tpm0\"\n", tpm.Config{Device: "/dev/tpm0"}},
		"the mark before JSON":   {"\ufeff{\r\n\"device\": \"/dev/tpm0\"\r\n}\r\n", tpm.Config{Device: "/dev/tpm0"}},
		"JSON, escaped slashes":  {`{"device": "\/dev\/tpm0"}`, tpm.Config{Device: "/dev/tpm0"}},
		"JSON, a surrogate pair": {`{"owner_password": "\ud83d\ude00"}`, tpm.Config{OwnerPassword: "😀"}},
		"JSON, an escaped key":   {`{"owner\u005fpassword": "o"}`, tpm.Config{OwnerPassword: "o"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, problems := ParseConfig(tt.config)
			if len(problems) > 0 || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("%+v, %q", got, problems)
			}
		})
	}
}

// Each mistake is refused with its key, and with what to write instead. A misspelled key
// must not be ignored, and a mistake must not replace the configuration in use.
func TestRefusedConfigurations(t *testing.T) {
	p := serve(t, `device = "/dev/tpmrm0"`)
	before := p.tpm.Load()
	for name, tt := range map[string]struct {
		config string
		want   []string
	}{
		"no HCL":             {`device = `, []string{"not valid HCL"}},
		"cut behind a key":   {`device`, []string{"not valid HCL"}},
		"cut in a string":    {`device = "/dev`, []string{"not valid HCL"}},
		"cut in a comment":   {`device = "/dev/tpm0" /* the machine's`, []string{"not valid HCL"}},
		"cut in a heredoc":   {"device = <<EOF\n/dev/tpm0", []string{"not valid HCL"}},
		"cut in a block":     {`device {`, []string{"not valid HCL"}},
		"no JSON":            {`{"device"`, []string{"not valid JSON"}},
		"more than JSON":     {`{"device": "/dev/tpm0"} device`, []string{"not valid JSON"}},
		"a JSON list":        {`["device"]`, []string{"not valid HCL"}},
		"unknown key":        {`devise = "x"`, []string{"devise: unknown key: the keys are ak, device, devid, ek, endorsement_password, event_log_path, owner_password"}},
		"quoted unknown key": {`"devise" = "x"`, []string{"devise: unknown key"}},
		"unknown block":      {`source "x" { path = "/" }`, []string{"source: unknown key"}},
		"upper case":         {`Device = "/dev/tpm0"`, []string{"Device: unknown key"}},
		"twice":              {"device = \"/dev/tpm0\"\ndevice = \"/dev/tpm1\"", []string{"device: set twice"}},
		"twice, once quoted": {"device = \"/dev/tpm0\"\n\"device\" = \"/dev/tpm0\"", []string{"device: set twice"}},
		"twice in JSON":      {`{"device": "/dev/tpm0", "device": "/dev/tpm0"}`, []string{"device: set twice"}},
		"a number":           {`device = 5`, []string{`device: not a string: write device = "…"`}},
		"a truth":            {`ek = true`, []string{"ek: not a string"}},
		"a float":            {`ek = 1.5`, []string{"ek: not a string"}},
		"a list":             {`device = ["/dev/tpm0"]`, []string{"device: not a string"}},
		"a block":            {`device { path = "/dev/tpm0" }`, []string{"device: not a string"}},
		"a labelled block":   {`device "tpm0" {}`, []string{"device: not a string"}},
		"null":               {`{"device": null}`, []string{"device: not a string"}},
		"a JSON list in it":  {`{"device": ["/dev/tpm0", {"x": 1}], "ek": 5}`, []string{"device: not a string", "ek: not a string"}},
		"half a pair":        {`{"owner_password": "\ud83d"}`, []string{"not valid JSON"}},
		"cut, with CRLF":     {"# a TPM\r\ndevice = \r\n", []string{"not valid HCL"}},
		"an endless JSON":    {`{"device": ` + strings.Repeat("[", 60000), []string{"not valid JSON"}},
		"a JSON object":      {`{"device": {"path": "/dev/tpm0"}}`, []string{"device: not a string"}},
		"no device":          {`device = "tpm0"`, []string{"device: \"tpm0\" is not a TPM device"}},
		"no type of EK":      {`ek = "rsa1024"`, []string{"ek: \"rsa1024\" is not a type of endorsement key: use one of auto, rsa2048"}},
		"no type of AK":      {`ak = "p384"`, []string{"ak: \"p384\" is not a type of attestation key: use one of auto, p256, rsa2048"}},
		"AK in upper case":   {`ak = "RSA2048"`, []string{"ak: \"RSA2048\" is not a type"}},
		"AK twice":           {"ak = \"p256\"\nak = \"p256\"", []string{"ak: set twice"}},
		"AK of another kind": {`ak = ["p256"]`, []string{"ak: not a string"}},
		"a long password":    {`owner_password = "` + strings.Repeat("x", 65) + `"`, []string{"owner_password: a TPM takes at most 64 bytes"}},
		"an empty DevID":     {`devid {}`, []string{"devid: cert_path: it is missing", "devid: it names 0 keys: set priv_path and pub_path"}},
		"a DevID as a text":  {`devid = "/etc/tpm"`, []string{"devid: not a block: write devid { … }"}},
		"a labelled DevID":   {`devid "laptop" { cert_path = "/c" }`, []string{"devid: not a block"}},
		"two DevIDs":         {`devid { cert_path = "/c" handle = "0x81000010" } devid {}`, []string{"devid: set twice"}},
		"two DevIDs, listed": {`{"devid": [{}, {}]}`, []string{"devid: not a block"}},
		"a list of texts":    {`{"devid": ["x"]}`, []string{"devid: not a block"}},
		"a DevID, unknown key": {
			`devid { devid_cert_path = "/c" cert_path = "/c" handle = "0x81000010" }`,
			[]string{"devid: devid_cert_path: unknown key: the keys are cert_path, handle, idevid, password, priv_path, pub_path"},
		},
		"a DevID, key twice": {
			`devid { cert_path = "/c" "cert_path" = "/d" handle = "0x81000010" }`, []string{"devid: cert_path: set twice"},
		},
		"a DevID, not a string": {
			`{"devid": {"cert_path": "/c", "handle": 2164260880}}`,
			[]string{"devid: handle: not a string", "devid: it names 0 keys"},
		},
		"a block in a DevID": {
			`devid { cert_path { x = 1 } handle = "0x81000010" }`,
			[]string{"devid: cert_path: not a string", "devid: cert_path: it is missing"},
		},
		"half a key": {`devid { cert_path = "/c" priv_path = "/p" }`, []string{"devid: pub_path: it is missing beside priv_path"}},
		"two keys": {
			`devid { cert_path = "/c" idevid = "H-1" handle = "0x81000010" }`, []string{"devid: it names 2 keys"},
		},
		"all mistakes of a DevID": {
			`devid { cert_path = "c" handle = "0x80000001" idevid = "H-4" password = "` + strings.Repeat("x", 65) + `" priv_path = "p" }`,
			[]string{
				`devid: cert_path: "c" is not an absolute path`,
				`devid: handle: "0x80000001" is not the handle of a persistent key: write it as "0x81000010"`,
				`devid: idevid: "H-4" is not a template for IDevIDs: use one of H-1, H-2, H-3`,
				`devid: password: an IDevID that is made again has none`,
				`devid: priv_path: "p" is not an absolute path`,
				`devid: pub_path: it is missing beside priv_path`,
				`devid: it names 3 keys`,
			},
		},
		// The parser would take half a minute for these.
		"deep lists":  {"device = " + strings.Repeat("[", 16_000), []string{"more than 256 brackets"}},
		"deep blocks": {strings.Repeat("device {", 5000), []string{"more than 256 brackets"}},
		"too long":    {strings.Repeat("#", maxConfigSize+1), []string{"at most 65536 are allowed"}},
		"all at once": {
			"device = \"tpm0\"\nek = 5\nfoo = 1\nowner_password = \"" + strings.Repeat("s", 65) + `"`,
			[]string{"device: ", "ek: ", "foo: ", "owner_password: "},
		},
	} {
		t.Run(name, func(t *testing.T) {
			err := p.configure(t, tt.config)
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("Configure: %v", err)
			}
			rsp, err := p.service.Validate(t.Context(), &configv1.ValidateRequest{HclConfiguration: tt.config})
			if err != nil || rsp.GetValid() || len(rsp.GetNotes()) != len(tt.want) {
				t.Fatalf("Validate: %v, %v", rsp, err)
			}
			for _, want := range tt.want {
				if !strings.Contains(strings.Join(rsp.GetNotes(), "\n"), want) {
					t.Errorf("notes %q, want %q", rsp.GetNotes(), want)
				}
			}
		})
	}
	if p.tpm.Load() != before {
		t.Error("a refused configuration replaced the one in use")
	}
}

// A valid configuration has no notes, since SPIRE takes any note for a failure. Validate
// does not put the configuration into use.
func TestValidateDoesNotConfigure(t *testing.T) {
	p := serve(t, "")
	rsp, err := p.service.Validate(t.Context(), &configv1.ValidateRequest{HclConfiguration: `ek = "p256"`})
	if err != nil || !rsp.GetValid() || len(rsp.GetNotes()) > 0 {
		t.Errorf("Validate: %v, %v", rsp, err)
	}
	if p.tpm.Load() != nil {
		t.Error("the plugin is configured")
	}
}

// Problems go to SPIRE's log. They must not show the passwords in the configuration.
func TestProblemsShowNoPassword(t *testing.T) {
	const secret = "hunter2"
	for _, config := range []string{
		`endorsement_password "` + secret + `"`,
		`endorsement_password = ` + secret,
		`endorsement_password "` + secret + `" {}`,
		`{"endorsement_password": "` + secret + `}`,
		`endorsement_password = ["` + secret + `"]`,
		`endorsement_password = "` + strings.Repeat(secret, 10) + `"`,
		"owner_password = \"" + secret + "\"\nowner_password = \"" + secret + "\"",
		`devid { password "` + secret + `" {} }`,
		`devid { password = ["` + secret + `"] }`,
		`devid { password = "` + strings.Repeat(secret, 10) + `" }`,
		`devid = "` + secret + `"`,
		`{"devid": {"password": "` + secret + `}}`,
		`{"devid": [{"password": "` + secret + `"}, {"password": "` + secret + `"}]}`,
	} {
		_, problems := ParseConfig(config)
		if text := fmt.Sprint(problems); len(problems) == 0 || strings.Contains(text, secret) {
			t.Errorf("problems %s", text)
		}
	}
}

// The agent's plugin_data is told from the server's by its keys, so that an operator's check
// names the right mistakes. A text that has none, or cannot be parsed, has no side.
func TestHasKeys(t *testing.T) {
	for text, want := range map[string]bool{
		``:                                false,
		`device = "/dev/tpm0"`:            true,
		`{"ek": "p384"}`:                  true,
		`devid { }`:                       true,
		"devise = \"x\"\nak = 5":          true,
		`source "hash_dir" "machines" {}`: false,
		`{"hash_path": "/srv/hashes"}`:    false,
		`device = `:                       false,
		strings.Repeat("device {", 5000):  false,
	} {
		if got := HasKeys(text); got != want {
			t.Errorf("%.40q: %v", text, got)
		}
	}
}

// Every text either is a valid configuration, and can be put into use, or has problems. A
// panic or an endless loop would cost a machine its identity.
func FuzzConfig(f *testing.F) {
	f.Add(`device = "unix:/run/s"`)
	f.Add(`{"ek": "p384", "owner_password": "x"}`)
	f.Add("\"device\" = <<EOF\n/dev/tpm0\nEOF\n")
	f.Add(`device "x" { y = [1, 2.5, true] }`)
	f.Add(`devid { cert_path = "/c" handle = "0x81000010" }`)
	f.Add(`{"devid": [{"cert_path": "/c", "idevid": "H-1"}]}`)
	f.Add(`directory = "/var/lib/spire/agent/tpm"`)
	f.Fuzz(func(t *testing.T, text string) {
		keys, problems := ParseKeyManagerConfig(text)
		if (len(problems) > 0) != (keys == KeyManagerConfig{}) || keys.Directory != "" && keys.Directory[0] != '/' {
			t.Errorf("%q with the problems %q", keys, problems)
		}
		config, problems := ParseConfig(text)
		if len(problems) > 0 {
			if config != (tpm.Config{}) {
				t.Errorf("problems and a configuration: %q %+v", problems, config)
			}
			return
		}
		if _, err := tpm.New(config); err != nil {
			t.Errorf("it is valid and cannot be used: %v", err)
		}
	})
}
