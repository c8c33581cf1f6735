package provisioners

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAPlaceIsWrittenForPeople(t *testing.T) {
	for n, want := range map[int]string{1: "1st", 2: "2nd", 3: "3rd", 4: "4th", 11: "11th", 12: "12th", 13: "13th", 21: "21st", 112: "112th"} {
		require.Equal(t, want+" in line", InLine(n))
	}
}

func TestAKeyThatNobodyKnowsIsAFault(t *testing.T) {
	require.Empty(t, UnknownKeys("xcat", "image.sources.xcat", map[string]string{"osimage": "a"}, "osimage", "profile"))
	faults := UnknownKeys("xcat", "image.sources.xcat", map[string]string{"osimage": "a", "two": "2", "one": "1"}, "osimage", "profile")
	require.Len(t, faults, 2)
	require.ErrorContains(t, faults[0], "image.sources.xcat.one")
	require.ErrorContains(t, faults[0], "provisioner xcat knows no such key: write one of osimage, profile")
	require.ErrorContains(t, faults[1], "image.sources.xcat.two")
}
