package devid

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/devid"
)

// checkTrusted returns why none of a configuration's sources "devid" would accept a DevID. It returns nil if a
// source accepts it, if there are no such sources, or if a source cannot tell here. It fetches nothing.
func checkTrusted(ctx context.Context, members []admission.Member, d *sources.DevID) error {
	var whys []string
	for _, m := range members {
		cfg, ok := m.Config.(devid.Config)
		if !ok {
			continue
		}
		verdict, err := trusts(ctx, cfg, d)
		if err != nil || verdict.Listed || len(cfg.AIAHosts) > 0 { // a server may fetch the issuers in between
			return nil //nolint:nilerr // the source cannot tell here
		}
		whys = append(whys, m.Name+": "+verdict.Reason)
	}
	if len(whys) == 0 {
		return nil
	}
	return fmt.Errorf("no server with this configuration would take the DevID (%s): add the CA to the ca_path of a "+
		"source \"devid\" first, or issue by another CA", strings.Join(whys, "; "))
}

// trusts asks a source "devid" about a DevID, with only the source's CA files.
func trusts(ctx context.Context, cfg devid.Config, d *sources.DevID) (v sources.Verdict, err error) {
	cfg.AIAHosts, cfg.MirrorURL, cfg.CRL, cfg.CachePath = nil, "", "", ""
	s, err := devid.New(cfg)
	if err != nil {
		return v, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := s.Load(ctx); err != nil {
		return v, err
	}
	return s.Check(ctx, &sources.Evidence{Proof: &sources.Proof{DevID: d}})
}
