package validate

import (
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/server/agentpath"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/httplist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// idleRules warns of rules that decide nothing.
func (s *serverContent) idleRules() {
	names := make([]string, len(s.config.Members))
	for i, m := range s.config.Members {
		names[i] = m.Name
	}
	for _, r := range s.config.Policy.Idle(names) {
		effect := "allow"
		if r.Deny {
			effect = "deny"
		}
		at := effect + ` "` + r.Name + `"`
		switch quoted := `"` + strings.Join(r.By, `", "`) + `"`; {
		case r.Denied:
			s.result.Findings.Warn(at, "remove it, or have the deny rule name other sources",
				"admits nobody: whenever it holds, deny %s holds as well", quoted)
		case r.Deny:
			s.result.Findings.Warn(at, "remove it, or name other sources",
				"decides nothing: whenever it holds, %s %s holds as well", effect, quoted)
		default:
			s.result.Findings.Warn(at, "remove it if its selectors are not used, or name other sources",
				"decides nothing: whenever it holds, %s %s holds as well; it only adds selectors", effect, quoted)
		}
	}
}

// emptyDenyLists warns of the lists in deny rules that deny nobody. Rules on trial do not count.
func (s *serverContent) emptyDenyLists() {
	said := map[string]bool{}
	for _, r := range s.config.Policy.Deny {
		for _, name := range slices.Concat(r.All, r.Any) {
			if !r.Trial && !said[name] {
				said[name] = true
				s.denyList(r, name)
			}
		}
	}
}

// denyList warns if a source of a deny rule has an empty list, or has never loaded its list from the web server.
func (s *serverContent) denyList(r policy.Rule, name string) {
	at := `deny "` + r.Name + `"`
	if d := s.documents[name]; d != nil {
		if d.Len() == 0 {
			s.result.Findings.Warn(at, "check that it is the right list, and that it is mounted",
				"the list of %s is empty, so it denies nobody", s.config.Place(name))
		}
		return
	}
	for _, m := range s.config.Members {
		cfg, ok := m.Config.(httplist.Config)
		if !ok || m.Name != name || cfg.CachePath == "" {
			continue
		}
		if _, err := os.Stat(cfg.CachePath); os.IsNotExist(err) {
			s.result.Findings.Warn(at, "check that the web server has it: tpm-attestor validate --network",
				"the list of %s was never loaded here: there is no cache %s; until it is loaded, nobody is admitted",
				s.config.Place(name), cfg.CachePath)
		}
	}
}

// mostShared is how many warnings sharedNames adds at most.
const mostShared = 20

// sharedNames warns of machines that would get the same SPIFFE ID.
func (s *serverContent) sharedNames() {
	path := s.config.AgentPath
	if path == nil || !path.Uses(agentpath.Name) || path.Uses(agentpath.PubHash) {
		return
	}
	type machine struct {
		source string
		hash   sources.EKHash
	}
	names := slices.DeleteFunc(slices.Sorted(maps.Keys(s.documents)), func(source string) bool {
		return !s.config.MayGive(source, agentpath.Name) || !s.admits(source)
	})
	if len(names) < 2 { // within a list, each name is unique
		return
	}
	first, told := map[string]machine{}, 0
	for _, source := range names {
		for e := range s.documents[source].All() {
			if e.Name == "" {
				continue
			}
			other, there := first[e.Name]
			if !there {
				first[e.Name] = machine{source, e.Hash}
				continue
			}
			if other.hash == e.Hash || told == mostShared {
				continue
			}
			told++
			s.result.Findings.Warn("agent_path_template", "give each machine a name of its own",
				"the machines %s of %s and %s of %s have the name %q, and so the same ID", other.hash,
				s.config.Place(other.source), e.Hash, s.config.Place(source), e.Name)
		}
	}
}

// admits reports whether an enforced allow rule names a source.
func (s *serverContent) admits(source string) bool {
	return slices.ContainsFunc(s.config.Policy.Allow, func(r policy.Rule) bool {
		return !r.Trial && (slices.Contains(r.All, source) || slices.Contains(r.Any, source))
	})
}
