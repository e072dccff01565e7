package agent

import (
	"bytes"
	"sync"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/spiffe/spire-plugin-sdk/pluginsdk"
	"github.com/spiffe/spire-plugin-sdk/plugintest"
	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/nodeattestor/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"go.uber.org/goleak"
)

// The ignored goroutines are plugintest's: a connection, two pipes, a watch on this process
// and a timer.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/hashicorp/go-plugin/internal/cmdrunner.pidWait"),
		goleak.IgnoreAnyFunction("github.com/hashicorp/go-plugin.copyChan"),
		goleak.IgnoreAnyFunction("github.com/hashicorp/go-plugin.(*GRPCBroker).timeoutWait"),
		goleak.IgnoreAnyFunction("google.golang.org/grpc.(*addrConn).connect"),
		goleak.IgnoreAnyFunction("google.golang.org/grpc/internal/grpcsync.(*CallbackSerializer).run"))
}

// plugin is a plugin that is called through gRPC, as by SPIRE.
type plugin struct {
	*Plugin
	attestor nodeattestorv1.NodeAttestorPluginClient
	service  configv1.ConfigServiceClient
	log      *logBuffer
}

// serve serves a plugin until the test ends. If config is not empty, serve configures the
// plugin with it.
func serve(t *testing.T, config string) *plugin {
	t.Helper()
	p := &plugin{Plugin: New(), log: new(logBuffer)}
	plugintest.ServeInBackground(t, plugintest.Config{
		PluginServer:   nodeattestorv1.NodeAttestorPluginServer(p.Plugin),
		PluginClient:   &p.attestor,
		ServiceServers: []pluginsdk.ServiceServer{configv1.ConfigServiceServer(p.Plugin)},
		ServiceClients: []pluginsdk.ServiceClient{&p.service},
		Logger:         hclog.New(&hclog.LoggerOptions{Output: p.log, Level: hclog.Debug}),
	})
	if config != "" {
		if err := p.configure(t, config); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func (p *plugin) configure(t *testing.T, config string) error {
	t.Helper()
	_, err := p.service.Configure(t.Context(), &configv1.ConfigureRequest{
		CoreConfiguration: &configv1.CoreConfiguration{TrustDomain: "example.org"},
		HclConfiguration:  config,
	})
	return err
}

// logBuffer collects the log. It is safe for concurrent use.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
