package spiretest

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/template"
	"time"
)

// serverConfig has the values for serverTemplate.
type serverConfig struct {
	Dir, TrustDomain, Socket string
	Port                     int
	MetricsPort              int // 0: none
	AgentTTL                 time.Duration
	PluginCmd                string
	PluginData               string // HCL, or empty if DataFile is set
	DataFile                 string
	LogLevel, MorePlugins    string
	Datastore                string
}

// serverTemplate is the configuration of a server. SPIRE's rate limits are off, since they would
// hide what the plugin does under a storm. SPIRE reloads its cache every second instead of every
// five.
var serverTemplate = template.Must(template.New("server.conf").Parse(`server {
  trust_domain = "{{.TrustDomain}}"
  bind_address = "127.0.0.1"
  bind_port    = {{.Port}}
  socket_path  = "{{.Socket}}"
  data_dir     = "{{.Dir}}"
  log_level    = "{{.LogLevel}}"
  ca_ttl       = "24h"
{{- if .AgentTTL}}
  agent_ttl    = "{{.AgentTTL}}"
{{- end}}
  ratelimit { attestation = false }
  experimental { cache_reload_interval = "1s" }
}
{{- if .MetricsPort}}

telemetry {
  Prometheus {
    host = "127.0.0.1"
    port = {{.MetricsPort}}
  }
}
{{- end}}

plugins {
  DataStore "sql" {
    plugin_data {
      database_type     = "sqlite3"
      connection_string = "{{.Datastore}}"
    }
  }
  KeyManager "memory" { plugin_data {} }
  NodeAttestor "tpm" {
    plugin_cmd = "{{.PluginCmd}}"
{{- if .DataFile}}
    plugin_data_file = "{{.DataFile}}"
{{- else}}
    plugin_data {
{{.PluginData}}
    }
{{- end}}
  }
{{.MorePlugins}}
}
`))

type agentConfig struct {
	Dir, TrustDomain, Socket string
	Port                     int
	Bundle                   string
	PluginCmd, PluginData    string
	KeyManager               string // plugin_data of the KeyManager "tpm", or empty for another one
	DiskKeys                 bool   // the KeyManager "disk"
}

var agentTemplate = template.Must(template.New("agent.conf").Parse(`agent {
  trust_domain      = "{{.TrustDomain}}"
  server_address    = "127.0.0.1"
  server_port       = {{.Port}}
  trust_bundle_path = "{{.Bundle}}"
  data_dir          = "{{.Dir}}"
  socket_path       = "{{.Socket}}"
  log_level         = "DEBUG"
  experimental { sync_interval = "1s" }
}

plugins {
{{- if .KeyManager}}
  KeyManager "tpm" {
    plugin_cmd = "{{.PluginCmd}}"
    plugin_data {
{{.KeyManager}}
    }
  }
{{- else if .DiskKeys}}
  KeyManager "disk" { plugin_data { directory = "{{.Dir}}" } }
{{- else}}
  KeyManager "memory" { plugin_data {} }
{{- end}}
  WorkloadAttestor "unix" { plugin_data {} }
  NodeAttestor "tpm" {
    plugin_cmd = "{{.PluginCmd}}"
    plugin_data {
{{.PluginData}}
    }
  }
}
`))

func render(t *template.Template, data any) (string, error) {
	var b strings.Builder
	if err := t.Execute(&b, data); err != nil {
		return "", fmt.Errorf("render %s: %w", t.Name(), err)
	}
	return b.String(), nil
}

// object is a JSON object; encoding/json sorts its keys, as Helm does.
type object = map[string]any

// renderJSON returns the server's configuration in JSON, like that of a Helm chart. pluginData is
// a JSON object.
func (c serverConfig) renderJSON(pluginData string) (string, error) {
	plugin := func(data any) object { return object{"plugin_data": data} }
	b, err := json.MarshalIndent(object{
		"server": object{
			"trust_domain": c.TrustDomain,
			"bind_address": "127.0.0.1",
			"bind_port":    c.Port,
			"socket_path":  c.Socket,
			"data_dir":     c.Dir,
			"log_level":    "DEBUG",
			"ca_ttl":       "24h",
			"ratelimit":    object{"attestation": false},
			"experimental": object{"cache_reload_interval": "1s"},
		},
		"plugins": object{
			"DataStore": []object{{"sql": plugin(object{
				"database_type":     "sqlite3",
				"connection_string": c.Datastore,
			})}},
			"KeyManager": []object{{"memory": plugin(object{})}},
			"NodeAttestor": []object{{"tpm": object{
				"plugin_cmd":  c.PluginCmd,
				"plugin_data": json.RawMessage(pluginData),
			}}},
		},
	}, "", "  ")
	if err != nil {
		return "", fmt.Errorf("render server.json: %w", err)
	}
	return string(b), nil
}
