package libvirthost

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAConsolesLinesComeWithoutWhatSteersATerminal(t *testing.T) {
	const said = "\x1bc\x1b[?7l\x1b[2J\r\nBooting from Hard Disk...\r\n[\x1b[0;32m  OK  \x1b[0m] Started \x1b[0;1;39mssh.service\x1b[0m.\r\n\r\n\a login: "
	want := []string{"Booting from Hard Disk...", "[  OK  ] Started ssh.service."}
	for _, size := range []int{1, 5, len(said)} {
		var lines []string
		w := &lineWriter{line: func(line string) { lines = append(lines, line) }}
		for rest := said; rest != ""; {
			n := min(size, len(rest))
			_, err := w.Write([]byte(rest[:n]))
			require.NoError(t, err)
			rest = rest[n:]
		}
		require.Equal(t, want, lines)
	}
}

func TestEachGuestHasAMACAndAnAddressOfItsOwn(t *testing.T) {
	seen := map[string]bool{Gateway: true}
	for n := 1; n <= MostGuests; n++ {
		require.False(t, seen[MAC(n)] || seen[Address(n)], "guest %d", n)
		seen[MAC(n)], seen[Address(n)] = true, true
	}
}

func TestTheBootSectorIsOne(t *testing.T) {
	sector := bootSector()
	require.Len(t, sector, 512)
	require.Equal(t, []byte{0x55, 0xaa}, sector[510:])
}
