package vm

import (
	"slices"
	"testing"
)

func TestAGuestWithCodeFromADiskGetsASmallTranslationBuffer(t *testing.T) {
	for _, c := range []struct {
		version       string
		diskCode, kvm bool
		want          string
	}{
		{"11.1", true, false, "tcg,tb-size=8"},
		{"11.1", false, false, "tcg"},
		{"7.2", true, false, "tcg"},
		{"11.1", true, true, "kvm"},
	} {
		args, err := Config{QEMU: QEMU{Version: c.version}, Dir: "x", DiskCode: c.diskCode, KVM: c.kvm}.args()
		if err != nil {
			t.Fatal(err)
		}
		if i := slices.Index(args, "-accel"); i < 0 || args[i+1] != c.want {
			t.Errorf("%+v: %q", c, args)
		}
	}
}
