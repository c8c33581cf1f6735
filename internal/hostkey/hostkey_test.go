package hostkey_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"berth/internal/hostkey"
)

func TestThePublicLineBelongsToThePrivateKey(t *testing.T) {
	pair, err := hostkey.New("vm-01")
	require.NoError(t, err)

	signer, err := ssh.ParsePrivateKey([]byte(pair.Private))
	require.NoError(t, err, "sshd must be able to read it")
	public, comment, _, rest, err := ssh.ParseAuthorizedKey([]byte(pair.Public))
	require.NoError(t, err)
	require.Empty(t, rest)
	require.Equal(t, "vm-01", comment)
	require.Equal(t, ssh.KeyAlgoED25519, public.Type())
	require.True(t, bytes.Equal(public.Marshal(), signer.PublicKey().Marshal()))
	require.True(t, strings.HasPrefix(pair.Private, "-----BEGIN OPENSSH PRIVATE KEY-----\n"))
}

func TestTwoKeysDiffer(t *testing.T) {
	one, err := hostkey.New("")
	require.NoError(t, err)
	two, err := hostkey.New("")
	require.NoError(t, err)
	require.NotEqual(t, one.Public, two.Public)
}

func TestPrintingAPairDoesNotTellThePrivateHalf(t *testing.T) {
	pair, err := hostkey.New("vm-01")
	require.NoError(t, err)
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		require.NotContains(t, fmt.Sprintf(format, pair), "PRIVATE KEY", format)
	}
}
