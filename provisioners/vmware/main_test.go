package vmware_test

import (
	"flag"
	"os"
	"testing"
)

// The tests wait for a simulator more than they compute, so more of them run at once than there are processors.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}
