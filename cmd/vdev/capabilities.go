package main

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
)

// What programs that manage virtual machines are told about this one: the types are
// VHostUserBackendCapabilities and VhostUserBackend of QEMU's docs/interop/vhost-user.json.

const capabilitiesFlag = "print-capabilities"

// capabilities is what --print-capabilities prints.
type capabilities struct {
	Type     string   `json:"type"`
	Features []string `json:"features"`
}

// wantsCapabilities tells whether the capabilities are asked for, wherever among the arguments: the
// conventions say that everything else is then ignored.
func wantsCapabilities(args []string) bool {
	return slices.Contains(args, "--"+capabilitiesFlag)
}

func printCapabilities(w io.Writer) error {
	return printJSON(w, capabilities{Type: "block", Features: []string{"read-only", "blk-file"}})
}

// description is the file from which management software learns that vdev is installed, and where.
type description struct {
	Description string `json:"description"`
	Type        string `json:"type"`
	Binary      string `json:"binary"`
}

// descriptionFile is the description of a vdev installed in /usr/local/bin.
//
//go:embed 50-vdev-blk.json
var descriptionFile []byte

func newDescriptionCommand() *cobra.Command {
	var binary string
	cmd := &cobra.Command{
		Use:   "print-description",
		Short: "Print the file by which managers of virtual machines find vdev",
		Long: `Prints the JSON description of this vhost-user back-end, as QEMU's vhost-user.json
schema has it. Programs that manage virtual machines look for such files in
/usr/share/qemu/vhost-user, /etc/qemu/vhost-user and
$XDG_CONFIG_HOME/qemu/vhost-user; a file of the same name in a later folder
overrides the one in an earlier.`,
		Example: `  vdev print-description | sudo tee /etc/qemu/vhost-user/50-vdev-blk.json
  vdev print-description --binary /opt/vdev/bin/vdev`,
		Args: noArguments("; the path of vdev is given with --binary"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var d description
			if err := json.Unmarshal(descriptionFile, &d); err != nil {
				return &failure{fmt.Errorf("the description built into this program: %w", err)}
			}
			if !filepath.IsAbs(binary) {
				return fmt.Errorf("--binary %q: must be an absolute path", binary)
			}
			d.Binary = binary
			if err := printJSON(cmd.OutOrStdout(), d); err != nil {
				return &failure{err}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&binary, "binary", "/usr/local/bin/vdev", "absolute `path` at which vdev is installed")
	return cmd
}
