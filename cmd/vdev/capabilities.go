package main

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"vdev/internal/spec"
)

// What programs that manage virtual machines are told about this one: the types are
// VHostUserBackendCapabilities and VhostUserBackend of QEMU's docs/interop/vhost-user.json.

const capabilitiesFlag = "print-capabilities"

// capabilities is what --print-capabilities prints.
type capabilities struct {
	Type     string   `json:"type"`
	Features []string `json:"features,omitempty"`
}

// wantsCapabilities tells whether the capabilities are asked for, wherever among the arguments: the
// conventions say that everything else is then ignored.
func wantsCapabilities(args []string) bool {
	return slices.Contains(args, "--"+capabilitiesFlag)
}

// printCapabilities prints those of the command that the arguments begin with, or of blk.
func printCapabilities(w io.Writer, args []string) error {
	if args[0] == consoleName {
		return printJSON(w, capabilities{Type: "console"})
	}
	return printJSON(w, capabilities{Type: "block", Features: []string{"read-only", "blk-file"}})
}

// description is the file from which management software learns that vdev is installed, and where.
type description struct {
	Description string `json:"description"`
	Type        string `json:"type"`
	Binary      string `json:"binary"`
}

// The descriptions of a vdev installed in /usr/local/bin.
var (
	//go:embed 50-vdev-blk.json
	blkDescription []byte
	//go:embed 50-vdev-console.json
	consoleDescription []byte
)

func newDescriptionCommand() *cobra.Command {
	kind := spec.Choice{Value: "block", Of: []string{"block", "console"}}
	var binary string
	cmd := &cobra.Command{
		Use:   "print-description",
		Short: "Print the file by which managers of virtual machines find vdev",
		Long: `Prints the JSON description of this vhost-user back-end, as QEMU's vhost-user.json
schema has it. Programs that manage virtual machines look for such files in
/usr/share/qemu/vhost-user, /etc/qemu/vhost-user and
$XDG_CONFIG_HOME/qemu/vhost-user; a file of the same name in a later folder
overrides the one in an earlier.

A manager gives nothing but options. So what serves consoles is a link to vdev by
the name vdev-console, with which 'vdev console' is meant.`,
		Example: `  vdev print-description | sudo tee /etc/qemu/vhost-user/50-vdev-blk.json
  vdev print-description --type console | sudo tee /etc/qemu/vhost-user/50-vdev-console.json
  vdev print-description --binary /opt/vdev/bin/vdev`,
		Args: noArguments("; the path of vdev is given with --binary"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var d description
			if err := json.Unmarshal(map[string][]byte{"block": blkDescription, "console": consoleDescription}[kind.Value], &d); err != nil {
				return &failure{fmt.Errorf("the description built into this program: %w", err)}
			}
			if cmd.Flags().Changed("binary") {
				if !filepath.IsAbs(binary) {
					return fmt.Errorf("--binary %q: must be an absolute path", binary)
				}
				d.Binary = binary
			}
			if err := printJSON(cmd.OutOrStdout(), d); err != nil {
				return &failure{err}
			}
			return nil
		},
	}
	cmd.Flags().Var(&kind, "type", "what it is that vdev serves")
	cmd.Flags().StringVar(&binary, "binary", "", "absolute `path` at which vdev is installed (default /usr/local/bin/vdev, or vdev-console there)")
	completeChoices(cmd, map[string]*spec.Choice{"type": &kind})
	return cmd
}
