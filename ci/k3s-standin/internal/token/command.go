package token

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	bootstrapapi "k8s.io/cluster-bootstrap/token/api"
	bootstraputil "k8s.io/cluster-bootstrap/token/util"
	bootstraptoken "k8s.io/kubernetes/cmd/kubeadm/app/apis/bootstraptoken/v1"

	"orch.dev/k3s-standin/internal/layout"
)

const apiTimeout = 15 * time.Second

// Command runs `k3s token create|list|delete`. What it prints on stdout is the
// result only.
func Command(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: k3s token create|list|delete")
	}
	var dataDir, kubeconfig, description string
	var ttl time.Duration
	var groups, usages []string
	fs := pflag.NewFlagSet("k3s token "+args[0], pflag.ContinueOnError)
	fs.StringVarP(&dataDir, "data-dir", "d", "", "state directory")
	fs.StringVar(&kubeconfig, "kubeconfig", "", "kubeconfig of an administrator")
	if args[0] == "create" {
		fs.StringVar(&description, "description", "", "what the token is for")
		fs.DurationVar(&ttl, "ttl", 24*time.Hour, "time to live, 0 for ever")
		fs.StringSliceVar(&groups, "groups", []string{BootstrapGroup}, "groups of who uses the token")
		fs.StringSliceVar(&usages, "usages", []string{"signing", "authentication"}, "what the token may be used for")
	}
	if err := fs.Parse(args[1:]); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return nil
		}
		return err
	}
	if dataDir == "" {
		dataDir = os.Getenv("K3S_DATA_DIR")
	}
	if dataDir == "" {
		dataDir = layout.DefaultDataDir
	}
	data := layout.Data(dataDir)
	if kubeconfig == "" {
		kubeconfig = data.Credential("admin.kubeconfig")
	}
	restConfig, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return fmt.Errorf("`k3s token` works on a server node: %w", err)
	}
	client, err := kubernetes.NewForConfig(restConfig)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), apiTimeout)
	defer cancel()

	switch args[0] {
	case "create":
		return create(ctx, client, data, fs.Arg(0), bootstraptoken.BootstrapToken{
			Description: description, Groups: groups, Usages: usages, TTL: &metav1.Duration{Duration: ttl},
		})
	case "list":
		return list(ctx, client)
	case "delete":
		return remove(ctx, client, fs.Args())
	}
	return fmt.Errorf("the K3s stand-in has no command `token %s`", args[0])
}

func create(ctx context.Context, client kubernetes.Interface, data layout.Data, text string, spec bootstraptoken.BootstrapToken) error {
	ca, err := os.ReadFile(data.ServerCA())
	if err != nil {
		return err
	}
	if text == "" {
		if text, err = bootstraputil.GenerateBootstrapToken(); err != nil {
			return err
		}
	}
	if spec.Token, err = bootstraptoken.NewBootstrapTokenString(text); err != nil {
		return err
	}
	if spec.TTL.Duration > 0 {
		spec.Expires = &metav1.Time{Time: time.Now().Add(spec.TTL.Duration)}
	}
	spec.TTL = nil
	secret := bootstraptoken.BootstrapTokenToSecret(&spec)
	if _, err := client.CoreV1().Secrets(metav1.NamespaceSystem).Create(ctx, secret, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("failed to create the token: %w", err)
	}
	fmt.Println(Format(ca, text))
	return nil
}

func list(ctx context.Context, client kubernetes.Interface) error {
	secrets, err := client.CoreV1().Secrets(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{
		FieldSelector: "type=" + string(bootstrapapi.SecretTypeBootstrapToken),
	})
	if err != nil {
		return fmt.Errorf("failed to list the tokens: %w", err)
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "TOKEN\tTTL\tEXPIRES\tUSAGES\tDESCRIPTION\tEXTRA GROUPS")
	for i := range secrets.Items {
		token, err := bootstraptoken.BootstrapTokenFromSecret(&secrets.Items[i])
		if err != nil {
			fmt.Fprintf(os.Stderr, "secret %s: %v\n", secrets.Items[i].Name, err)
			continue
		}
		ttl, expires := "<forever>", "<never>"
		if token.Expires != nil {
			ttl = time.Until(token.Expires.Time).Round(time.Second).String()
			expires = token.Expires.Format(time.RFC3339)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", token.Token.ID, ttl, expires,
			strings.Join(token.Usages, ","), token.Description, strings.Join(token.Groups, ","))
	}
	return table.Flush()
}

func remove(ctx context.Context, client kubernetes.Interface, tokens []string) error {
	if len(tokens) == 0 {
		return errors.New("usage: k3s token delete ID|TOKEN...")
	}
	for _, text := range tokens {
		if _, credentials, secure := strings.Cut(text, "::"); secure {
			text = credentials
		}
		id, _, _ := strings.Cut(text, ".")
		name := bootstraputil.BootstrapTokenSecretName(id)
		if err := client.CoreV1().Secrets(metav1.NamespaceSystem).Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			return fmt.Errorf("failed to delete token %s: %w", id, err)
		}
		fmt.Printf("bootstrap token %q deleted\n", id)
	}
	return nil
}
